//! Which workload a waypoint is itself.

use std::net::IpAddr;
use std::sync::Arc;

use crate::mesh::Snapshot;
use crate::service::ServiceKey;
use crate::workload::{NamespacedName, Workload};

/// Why a waypoint does not find itself in the mesh; each message names what to check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplaced {
    /// There is no such Gateway.
    #[error("there is no waypoint {0}: create the Gateway (class istio-waypoint), or correct --gateway")]
    NoGateway(NamespacedName),
    /// There is no such pod.
    #[error(
        "there is no pod {0} with an address: --pod-name has to be the waypoint's own pod, in its Gateway's namespace"
    )]
    NoPod(NamespacedName),
    /// Nobody is behind its service.
    #[error(
        "no pod is behind service {0}, by which waypoints are found: create the Service, with a selector that selects \
         this pod, or give --pod-name"
    )]
    NoEndpoint(ServiceKey),
    /// Several are, and nothing says which.
    #[error(
        "{pods} pods are behind service {service}: say which is this one, by --pod-name or an address in --hbone-addr"
    )]
    Ambiguous {
        /// The service.
        service: ServiceKey,
        /// How many.
        pods: usize,
    },
}

/// The workload that the waypoint of `gateway` is: the pod of that name, or else the one behind the Gateway's Service
/// that has one of the `addresses`, or the only one there.
///
/// # Errors
/// When there is none, with what to check.
pub fn own_workload<'s>(
    snapshot: &'s Snapshot,
    gateway: &NamespacedName,
    pod: Option<&str>,
    addresses: &[IpAddr],
) -> Result<&'s Arc<Workload>, Unplaced> {
    if let Some(pod) = pod {
        let missing = || Unplaced::NoPod(NamespacedName::new(gateway.namespace.clone(), pod));
        return snapshot.pod(&gateway.namespace, pod).ok_or_else(missing);
    }
    let waypoint = snapshot.waypoint(gateway).ok_or_else(|| Unplaced::NoGateway(gateway.clone()))?;
    let service = ServiceKey { namespace: gateway.namespace.clone(), hostname: waypoint.service.clone() };
    let endpoints = || snapshot.endpoints(&service).map(|endpoint| &endpoint.workload);
    let is_at = |workload: &&Arc<Workload>| workload.addresses.iter().any(|ip| addresses.contains(ip));
    if let Some(found) = endpoints().find(is_at) {
        return Ok(found);
    }
    let mut all = endpoints();
    match (all.next(), all.count()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(Unplaced::NoEndpoint(service)),
        (Some(_), others) => Err(Unplaced::Ambiguous { service, pods: others + 1 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::tests::{mesh, objects};

    const GATEWAY: &str = "
{apiVersion: v1, kind: Service, metadata: {name: wp, namespace: shop},
 spec: {selector: {app: wp}, clusterIP: 10.96.0.9, ports: [{port: 15008}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: wp, namespace: shop},
 spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
";

    fn pod(name: &str, ip: &str) -> String {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: wp}}}}, \
             spec: {{serviceAccountName: waypoint}}, status: {{podIP: {ip}}}}}"
        )
    }

    #[test]
    fn a_waypoint_is_the_pod_behind_its_gateways_service() {
        let gateway = NamespacedName::new("shop", "wp");
        let found = |mesh: &crate::mesh::Mesh, pod: Option<&str>, addresses: &[&str]| {
            let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            own_workload(&mesh.snapshot(), &gateway, pod, &addresses).map(|found| found.name.to_string())
        };
        let mut state = mesh("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
        assert_eq!(found(&state, None, &[]), Err(Unplaced::NoGateway(gateway.clone())));
        state.apply(objects(GATEWAY));
        assert!(matches!(found(&state, None, &[]), Err(Unplaced::NoEndpoint(_))));
        state.apply(objects(&pod("wp-1", "10.0.0.1")));
        assert_eq!(found(&state, None, &[]), Ok("wp-1".to_owned()));
        state.apply(objects(&pod("wp-2", "10.0.0.2")));
        assert!(matches!(found(&state, None, &["192.0.2.1"]), Err(Unplaced::Ambiguous { pods: 2, .. })));
        assert_eq!(found(&state, None, &["10.0.0.2"]), Ok("wp-2".to_owned()));
        assert_eq!(found(&state, Some("wp-1"), &["10.0.0.2"]), Ok("wp-1".to_owned()));
        assert!(matches!(found(&state, Some("wp-3"), &[]), Err(Unplaced::NoPod(_))));
    }
}
