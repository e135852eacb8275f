//! Workloads that no object of the mesh describes: a host that is its own endpoint, and an address that is passed
//! through to.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_core::identity::Identity;
use culvert_core::workload::{Health, Labels, NetworkMode, Protocol, Template, Workload, WorkloadType, WorkloadUid};
use smallvec::SmallVec;

/// A host that is resolved when it is dialled.
pub(super) fn named(own: &Workload, host: &Arc<str>) -> Arc<Workload> {
    workload(own, host.clone(), SmallVec::new(), Some(host.clone()))
}

/// An address.
pub(super) fn addressed(own: &Workload, address: IpAddr) -> Arc<Workload> {
    workload(own, address.to_string().into(), SmallVec::from_iter([address]), None)
}

fn workload(
    own: &Workload,
    name: Arc<str>,
    addresses: SmallVec<[IpAddr; 2]>,
    hostname: Option<Arc<str>>,
) -> Arc<Workload> {
    let nothing: Arc<str> = "".into();
    let template = Template {
        namespace: nothing.clone(),
        // Never asked for: it is spoken to in plain TCP, or in TLS of its own.
        identity: Arc::new(Identity::new(own.identity.trust_domain.clone(), nothing.clone(), nothing.clone())),
        hostname,
        protocol: Protocol::Tcp,
        network_mode: NetworkMode::Standard,
        waypoint: None,
        labels: Arc::new(Labels::new()),
        workload_name: nothing.clone(),
        workload_type: WorkloadType::Pod,
        canonical_name: nothing.clone(),
        canonical_revision: nothing.clone(),
        cluster: nothing.clone(),
        network: nothing.clone(),
        capacity: 1,
        outbound_rules: None,
        pod_name: None,
    };
    Arc::new(Workload {
        uid: WorkloadUid(format!("//External//{name}").into()),
        name,
        addresses,
        node: nothing,
        health: Health::Healthy,
        locality: Arc::default(),
        template: Arc::new(template),
    })
}
