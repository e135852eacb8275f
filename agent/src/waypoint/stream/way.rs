//! Where a connection that carries no requests goes.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_core::mesh::Snapshot;
use culvert_core::route::decide::route_connection;
use culvert_core::route::request::Origin;
use culvert_core::traffic::hash;
use culvert_core::traffic::policy::{Algorithm, HashKey};
use culvert_core::workload::Protocol;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::Refusal;
use crate::telemetry::ConnectionInfo;
use crate::waypoint::session::{Session, SessionTarget};
use crate::waypoint::upstream::{Cluster, ConnectionLease, Selection};

thread_local! {
    // Chooses among weights; nothing secret depends on it.
    static RNG: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// A place at an endpoint.
pub(super) struct Way {
    pub(super) cluster: Arc<Cluster>,
    pub(super) lease: ConnectionLease,
}

impl Way {
    /// By the routes of `target`, and then by how it is spoken to.
    pub(super) fn find(
        session: &Session,
        snapshot: &Arc<Snapshot>,
        target: &SessionTarget,
        sni: Option<&str>,
    ) -> Result<Self, Refusal> {
        let upstreams = &session.shared.upstreams;
        let (client, principal) = (session.client_address, session.principal.as_ref());
        let mut selection = Selection::first(client, session.destination, principal);
        let cluster = match target {
            SessionTarget::Workload(workload, port) => upstreams.workload(snapshot, workload, *port),
            SessionTarget::Service(service, port) => {
                let origin = Origin {
                    service,
                    port: *port,
                    client: session.client.as_deref(),
                    client_address: session.client_address,
                    destination: session.destination.ip(),
                    sni,
                };
                let routed = RNG.with_borrow_mut(|rng| route_connection(snapshot, &origin, rng));
                let (target, _) = routed.map_err(|why| Refusal::failed(503, why.to_string()))?;
                let cluster = upstreams.cluster(snapshot, &target);
                // Of what can be hashed, a connection without requests has its address alone.
                if matches!(cluster.balancer().settings().algorithm, Algorithm::Hash(HashKey::SourceIp, _)) {
                    selection.hash = Some(hash::of_source(&origin));
                }
                cluster
            }
        };
        let lease = cluster.select_connection(selection).map_err(|why| Refusal::failed(503, why.to_string()))?;
        Ok(Self { cluster, lease })
    }

    /// Adds to `info` who is at the end of it.
    pub(super) fn describe(&self, info: &mut ConnectionInfo) {
        let endpoint = self.lease.endpoint();
        let workload = &endpoint.workload;
        if let Some(ip) = workload.addresses.first() {
            info.destination_addr = SocketAddr::new(*ip, endpoint.port);
        }
        if workload.protocol == Protocol::Hbone {
            info.destination_identity = Some(workload.identity.clone());
        }
        info.destination = Some(workload.clone());
        if let Some(service) = self.cluster.service() {
            info.service = Some(service.clone());
        }
    }
}
