//! What is known of a connection before its first byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use culvert_core::identity::Identity;
use culvert_core::mesh::Snapshot;
use culvert_core::policy::{Call, RequestTarget};
use culvert_core::protocol::{Declared, declared};
use culvert_core::service::Service;
use culvert_core::waypoint::NotServed;
pub use culvert_core::waypoint::SessionTarget;
use culvert_core::workload::Workload;

use super::shared::{Counted, Shared};
use crate::telemetry::SecurityPolicy;

/// One connection of a client's application, through the stream of a tunnel. It lives on the worker of that tunnel.
pub struct Session {
    /// What all sessions share.
    pub shared: Arc<Shared>,
    /// Who the client proved to be.
    pub principal: Option<Arc<Identity>>,
    /// The client, where the mesh knows it as that principal at the address that it came from.
    pub client: Option<Arc<Workload>>,
    /// The client's address.
    pub client_address: SocketAddr,
    /// What the client dialled.
    pub destination: SocketAddr,
    /// What that was at the time; [`look`](Self::look) tells what it is now.
    pub target: SessionTarget,
    /// When it was opened.
    pub opened: Instant,
    /// What the target was in the snapshot of this version.
    seen: ArcSwap<(u64, SessionTarget)>,
    _place: Counted,
}

/// Who comes, from where, and to what.
pub(super) struct Arrival {
    pub(super) principal: Arc<Identity>,
    pub(super) client_address: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) target: SessionTarget,
}

impl Session {
    /// A session that has its place.
    pub(super) fn new(shared: Arc<Shared>, snapshot: &Snapshot, arrival: Arrival, place: Counted) -> Self {
        let Arrival { principal, client_address, destination, target } = arrival;
        let client = snapshot.workload_by_address(client_address.ip());
        // An address that was someone else's a moment ago is nobody's until the mesh has heard. Trust domains may have
        // other names while they are being renamed.
        let is_client = |workload: &&Arc<Workload>| {
            workload.identity.namespace == principal.namespace
                && workload.identity.service_account == principal.service_account
        };
        Self {
            client: client.filter(is_client).cloned(),
            seen: ArcSwap::from_pointee((snapshot.version(), target.clone())),
            shared,
            principal: Some(principal),
            client_address,
            destination,
            target,
            opened: Instant::now(),
            _place: place,
        }
    }

    /// The newest snapshot, and what the session is for in it. To be called for each request: between two of them the
    /// service may have changed, or have been given to another waypoint.
    ///
    /// # Errors
    /// When it is not this waypoint's any more. The session has to end.
    pub fn look(&self) -> Result<(Arc<Snapshot>, SessionTarget), NotServed> {
        let snapshot = self.shared.mesh.load_full();
        let seen = self.seen.load();
        if seen.0 == snapshot.version() {
            let target = seen.1.clone();
            return Ok((snapshot, target));
        }
        let target = self.target.renew(&snapshot, &self.shared.own.gateway)?;
        self.seen.store(Arc::new((snapshot.version(), target.clone())));
        Ok((snapshot, target))
    }

    /// How the client's side of it is protected.
    pub fn security(&self) -> SecurityPolicy {
        match self.principal {
            Some(_) => SecurityPolicy::MutualTls,
            None => SecurityPolicy::Unknown,
        }
    }

    /// The service that it is for; `None` for a workload that was addressed itself.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.target.service()
    }

    /// What policies are asked about.
    pub fn call(&self) -> Call<'_> {
        Call {
            principal: self.principal.as_deref(),
            source_ip: self.client_address.ip(),
            destination: self.destination,
        }
    }

    /// What policies are attached to.
    pub fn request_target<'a>(&'a self, target: &'a SessionTarget) -> RequestTarget<'a> {
        RequestTarget { gateway: &self.shared.own.gateway, service: target.service().map(|service| &**service) }
    }

    /// What its port is declared to speak.
    pub(super) fn declared(&self) -> Option<Declared> {
        match &self.target {
            SessionTarget::Service(service, port) => declared(service.port(*port)?),
            // Of a port that is dialled by a workload's address nothing is declared.
            SessionTarget::Workload(..) => None,
        }
    }
}
