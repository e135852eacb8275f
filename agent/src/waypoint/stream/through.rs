//! What a connection that carries no requests is let through on.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_core::identity::Identity;
use culvert_core::mesh::Snapshot;
use culvert_core::policy::{Call, RequestDecision, RequestFacts, RequestTarget, authorize_request};
use culvert_core::waypoint::SessionTarget;
use culvert_core::workload::NamespacedName;

use crate::proxy::on_trial;
use crate::waypoint::session::Session;

/// Whose connection it is and to what, so that the question can be asked again.
#[derive(Clone, Debug)]
pub struct Through {
    gateway: NamespacedName,
    target: SessionTarget,
    principal: Option<Arc<Identity>>,
    client: SocketAddr,
    destination: SocketAddr,
    /// The server name that the client asked for, of TLS.
    sni: Option<Box<str>>,
}

impl Through {
    pub(super) fn new(session: &Session, sni: Option<Box<str>>) -> Self {
        Self {
            gateway: session.shared.own.gateway.clone(),
            target: session.target.clone(),
            principal: session.principal.clone(),
            client: session.client_address,
            destination: session.destination,
            sni,
        }
    }

    /// The server name that the client asked for.
    pub(super) fn sni(&self) -> Option<&str> {
        self.sni.as_deref()
    }

    /// What policies say of it; and, in the log, what those on trial would.
    pub(super) fn judge(&self, snapshot: &Snapshot, target: &SessionTarget) -> RequestDecision {
        let decision = self.decide(snapshot, target);
        on_trial::tell(&decision.dry_run, self.client.ip(), self.destination);
        decision
    }

    fn decide(&self, snapshot: &Snapshot, target: &SessionTarget) -> RequestDecision {
        let call =
            Call { principal: self.principal.as_deref(), source_ip: self.client.ip(), destination: self.destination };
        let facts = RequestFacts {
            call,
            remote_ip: call.source_ip,
            sni: self.sni(),
            http: None,
            authenticated: None,
            agreed: &[],
        };
        let target = RequestTarget { gateway: &self.gateway, service: target.service().map(|service| &**service) };
        authorize_request(snapshot, target, &facts)
    }

    /// Whether `snapshot` lets it through.
    pub fn is_allowed(&self, snapshot: &Snapshot) -> bool {
        let target = self.target.renew(snapshot, &self.gateway);
        target.is_ok_and(|target| self.decide(snapshot, &target).is_allowed())
    }
}
