//! What is proven of metrics and logs.

mod log;
mod metrics;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use culvert_core::identity::Identity;
use culvert_core::service::{LoadBalancing, Resolution, Service, ServiceKey};
use culvert_core::workload::Workload;

use super::connection::{ConnectionInfo, Direction, HboneTarget, SecurityPolicy};

/// A writer that keeps what it is given.
#[derive(Clone, Default)]
pub(crate) struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn workload(name: &str, owner: &str, revision: &str) -> Arc<Workload> {
    use culvert_core::workload::{Health, NetworkMode, Protocol, Template, WorkloadType, WorkloadUid};
    Arc::new(Workload {
        uid: WorkloadUid(format!("Kubernetes//Pod/shop/{name}").into()),
        name: name.into(),
        addresses: Default::default(),
        node: "n1".into(),
        health: Health::Healthy,
        locality: Default::default(),
        template: Arc::new(Template {
            namespace: "shop".into(),
            identity: Arc::new(Identity::new("cluster.local", "shop", owner)),
            hostname: None,
            protocol: Protocol::Hbone,
            network_mode: NetworkMode::Standard,
            waypoint: None,
            labels: Default::default(),
            workload_name: owner.into(),
            workload_type: WorkloadType::Deployment,
            canonical_name: owner.into(),
            canonical_revision: revision.into(),
            cluster: "Kubernetes".into(),
            network: "".into(),
            capacity: 1,
            outbound_rules: None,
            pod_name: None,
        }),
    })
}

fn service() -> Arc<Service> {
    Arc::new(Service {
        key: ServiceKey { namespace: "shop".into(), hostname: "cart.shop.svc.cluster.local".into() },
        name: "cart".into(),
        vips: vec![],
        ports: vec![],
        resolution: Resolution::Endpoints,
        load_balancing: LoadBalancing::default(),
        waypoint: None,
        subject_alt_names: vec![],
        canonical: true,
        created: Default::default(),
    })
}

/// `web` calls `cart` through a tunnel.
pub(super) fn info(direction: Direction) -> ConnectionInfo {
    let addr = |s: &str| s.parse::<SocketAddr>().unwrap();
    ConnectionInfo {
        direction,
        source_addr: addr("10.0.1.2:51234"),
        source: Some(workload("web-1", "web", "v1")),
        source_identity: Some(Arc::new(Identity::new("cluster.local", "shop", "web"))),
        destination_addr: addr("10.0.2.3:15008"),
        hbone_target: Some(HboneTarget::Addr(addr("10.0.2.3:8080"))),
        destination: Some(workload("cart-1", "cart", "v2")),
        destination_identity: Some(Arc::new(Identity::new("cluster.local", "shop", "cart"))),
        service: Some(service()),
        security: SecurityPolicy::MutualTls,
    }
}
