//! Calls that no node of the mesh handles on the client's side: Kubernetes alone brings them to their end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Arrival, Caller, Transport};
use crate::mesh::Snapshot;
use crate::service::{Resolution, Service, ServiceKey};
use crate::traffic::policy::Subset;
use crate::workload::Workload;

/// An end of a connection, and who is there, if the mesh knows.
pub(super) type End = (SocketAddr, Option<Arc<Workload>>);

/// Where a connection to `dialled` can end, in plaintext.
pub(super) fn arrivals(snapshot: &Snapshot, caller: &Caller, dialled: SocketAddr) -> Result<Vec<Arrival>, String> {
    let ends = match snapshot.service_by_address(dialled.ip(), caller.namespace()) {
        Some(service) if service.resolution == Resolution::Endpoints => {
            endpoints(snapshot, &service.key, dialled.port(), None)?
        }
        _ => vec![(dialled, snapshot.workload_by_address(dialled.ip()).cloned())],
    };
    let arrive = |(destination, workload): End| Arrival {
        path: Vec::new(),
        transport: Transport::Plaintext,
        principal: None,
        client: None,
        source_ip: caller.address_towards(destination.ip()),
        destination,
        workload,
        l7: None,
    };
    Ok(ends.into_iter().map(arrive).collect())
}

/// Where a waypoint of `namespace` may end that sends a request to a service, or to a part of it.
pub(super) fn destination(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
    subset: Option<&str>,
    namespace: &str,
) -> Result<Vec<End>, String> {
    if service.resolution != Resolution::Endpoints {
        let address = service.vips.first().map_or(IpAddr::from([0, 0, 0, 0]), |vip| vip.addr());
        return Ok(vec![(SocketAddr::new(address, port), None)]);
    }
    let (_, subset) = snapshot.traffic_rule(namespace, service, subset);
    endpoints(snapshot, &service.key, port, subset)
}

/// The ready endpoints of a service, or of a part of it, by the port that its clients dial.
pub(super) fn endpoints(
    snapshot: &Snapshot,
    key: &ServiceKey,
    port: u16,
    subset: Option<&Subset>,
) -> Result<Vec<End>, String> {
    let service = snapshot.service(key).ok_or_else(|| format!("service {} is gone", key.hostname))?;
    let service_port = service
        .port(port)
        .ok_or_else(|| format!("service {} has no port {port}: check spec.ports of the Service", key.hostname))?;
    let ready = snapshot.endpoints(key).filter(|endpoint| endpoint.ready || service.load_balancing.allow_unhealthy);
    let ready = ready.filter(|endpoint| subset.is_none_or(|subset| subset.selects(&endpoint.workload)));
    let ends: Vec<_> = ready
        .filter_map(|endpoint| {
            let address = endpoint.workload.addresses.first()?;
            Some((SocketAddr::new(*address, endpoint.port(service_port)?), Some(endpoint.workload.clone())))
        })
        .collect();
    if ends.is_empty() {
        let part = subset.map(|subset| format!(" of subset {}", subset.name)).unwrap_or_default();
        return Err(format!("service {} has no ready endpoint{part} for port {port}: check its pods", key.hostname));
    }
    Ok(ends)
}
