//! EndpointSlices: who is behind a Service, as Kubernetes or a person says.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use culvert_api::names::label;
use smallvec::smallvec;

use super::facts::{SliceFacts, TemplateFacts, WaypointLabel, WorkloadFacts, WorkloadSource};
use super::{Findings, Interner, metadata};
use crate::workload::{Health, Locality, WorkloadType};

/// A slice; `None` where it belongs to no Service or holds names instead of addresses.
pub(crate) fn translate(
    slice: &EndpointSlice,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> Option<SliceFacts> {
    let service = interner.string(metadata::label(&slice.metadata, label::SERVICE_NAME)?);
    if slice.address_type == "FQDN" {
        findings.error("addressType", "FQDN is not supported (Kubernetes has deprecated it): write a ServiceEntry");
        return None;
    }
    let ports = slice
        .ports
        .iter()
        .flatten()
        .filter(|port| matches!(port.protocol.as_deref(), None | Some("" | "TCP")))
        .filter_map(|port| {
            let number = u16::try_from(port.port?).ok().filter(|number| *number != 0)?;
            Some((interner.string(port.name.as_deref().unwrap_or_default()), number))
        })
        .collect();
    let mut facts = SliceFacts { service, ports, pods: Vec::new(), others: Vec::new() };
    for (at, endpoint) in slice.endpoints.iter().enumerate() {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        match endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod")) {
            Some(target) => {
                if let Some(name) = target.name.as_deref() {
                    facts.pods.push((name.into(), ready));
                }
            }
            None => facts.others.extend(other(slice, at, endpoint, ready, interner, findings)),
        }
    }
    Some(facts)
}

/// An endpoint that is no pod. Kubernetes lets an endpoint have several addresses, and says to use the first.
fn other(
    slice: &EndpointSlice,
    at: usize,
    endpoint: &Endpoint,
    ready: bool,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> Option<WorkloadFacts> {
    let text = endpoint.addresses.first()?;
    let Ok(ip) = text.parse::<IpAddr>() else {
        findings.error(format!("endpoints[{at}].addresses[0]"), format!("{text:?} is not an IP address: ignored"));
        return None;
    };
    let ip = ip.to_canonical();
    let name: Arc<str> = findings.object.name.clone();
    let zone = interner.string(endpoint.zone.as_deref().unwrap_or_default());
    let template = TemplateFacts {
        source: WorkloadSource::EndpointSlice { suffix: ip.to_string().into() },
        namespace: findings.object.namespace.clone(),
        workload_name: name.clone(),
        canonical_name: name.clone(),
        service_account: interner.string("default"),
        hostname: None,
        host_network: false,
        labels: interner.labels(None),
        workload_type: WorkloadType::Pod,
        canonical_revision: interner.string("latest"),
        network: None,
        locality: Some(interner.locality(Locality { zone, ..Locality::default() })),
        capacity: 1,
        waypoint: WaypointLabel::None.into(),
        named_ports: interner.ports(&[]),
    };
    Some(WorkloadFacts {
        name,
        created: metadata::created(&slice.metadata),
        addresses: smallvec![ip],
        node: interner.string(endpoint.node_name.as_deref().unwrap_or_default()),
        terminating: false,
        health: if ready { Health::Healthy } else { Health::Unhealthy },
        template: interner.template_facts(template),
    })
}
