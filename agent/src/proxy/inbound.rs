//! Tunnels that peers open to the pod.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_core::address::ClientAddr;
use culvert_core::hbone::client_identity::{CLIENT_IDENTITY, client_identity};
use culvert_core::hbone::h2::Request;
use culvert_core::hbone::{Authority, Forwarded};
use culvert_core::mesh::Snapshot;
use culvert_core::policy::Call;
use culvert_core::service::Service;
use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::accept::Incoming;
use super::live::Admission;
use super::pod::{Pod, is_own_port};
use crate::hbone::server::Peer;
use crate::hbone::tunnel::{Accept, Accepted};
use crate::telemetry::{ConnectionInfo, Direction, HboneTarget, Outcome, PeerLine, ResponseFlags, SecurityPolicy};

/// Takes a peer's connection through its handshake and serves the tunnel.
pub(super) fn serve(pod: &Arc<Pod>, incoming: Incoming) {
    let worker = pod.shared.workers.get(pod.home + pod.next_served());
    let judged = pod.clone();
    let judge = move |peer, remote, local| Judge { pod: judged, peer, remote, local };
    pod.tunnels.serve(worker, incoming, judge);
}

/// Judges the streams of one tunnel.
struct Judge {
    pod: Arc<Pod>,
    peer: Peer,
    remote: SocketAddr,
    local: SocketAddr,
}

impl Accept for Judge {
    fn accept(&self, request: Request) -> Accepted {
        let destination = match request.target() {
            Ok(Authority::Ip(addr)) => addr,
            Ok(Authority::Host(host, _)) => {
                return self.refuse(503, format_args!("{host} is not an address of this pod"));
            }
            Err(error) => return self.refuse(400, format_args!("{error}")),
        };
        if destination.ip() != self.local.ip() {
            return self.refuse(400, format_args!("{destination} is not {}, which was dialled", self.local.ip()));
        }
        if is_own_port(destination) {
            return self.refuse(503, format_args!("{destination} is the proxy's own port"));
        }
        self.admit(&request, destination)
    }
}

impl Judge {
    fn refuse(&self, status: u16, why: fmt::Arguments<'_>) -> Accepted {
        if PeerLine::StreamRefused.may_be_written() {
            tracing::warn!(peer = %self.remote, "stream refused: {why}");
        }
        Accepted::Refuse(status)
    }

    fn admit(&self, request: &Request, destination: SocketAddr) -> Accepted {
        let pod = &self.pod;
        let Some((snapshot, workload)) = pod.look() else { return Accepted::Refuse(503) };
        let client = match client_identity(&request.headers) {
            Ok(client) => client.map(Arc::new),
            Err(error) => return self.refuse(400, format_args!("{CLIENT_IDENTITY}: {error}")),
        };
        let call = Call { principal: Some(&self.peer.identity), source_ip: self.remote.ip(), destination };
        let decision = pod.judge(&snapshot, &workload, &call, client.as_deref());
        let record = pod.shared.telemetry.connection(ConnectionInfo {
            direction: Direction::Inbound,
            source_addr: self.remote,
            source: snapshot.workload_by_address(self.remote.ip()).cloned(),
            source_identity: Some(self.peer.identity.clone()),
            destination_addr: destination,
            hbone_target: Some(HboneTarget::Addr(destination)),
            destination: Some(workload.clone()),
            destination_identity: Some(pod.identity.clone()),
            service: asked_for(&snapshot, request),
            security: SecurityPolicy::MutualTls,
        });
        if !decision.allowed {
            record.close(Outcome::failed(ResponseFlags::Denied, decision.reason.to_string()));
            return Accepted::Refuse(401);
        }
        if pod.is_full() {
            record.close(Outcome::failed(ResponseFlags::ConnectFailure, "the pod has too many connections"));
            return Accepted::Refuse(503);
        }
        let leg = pod.netns.connect_application(ClientAddr::new(self.remote), destination);
        match leg.and_then(|leg| TcpStream::from_std(leg.into())) {
            Ok(app) => {
                let admission = Admission::Inbound {
                    principal: Some(self.peer.identity.clone()),
                    client,
                    source_ip: self.remote.ip(),
                    destination,
                };
                let flow = pod.admit(&snapshot, admission, Direction::Inbound, record);
                let baggage = pod.baggage(&workload);
                let headers = if baggage.is_empty() {
                    SmallVec::new()
                } else {
                    SmallVec::from_iter([("baggage", baggage.to_string())])
                };
                Accepted::Dial { app, flow, headers }
            }
            Err(error) => {
                let why = format!("the application at {destination} could not be dialled: {error}");
                record.close(Outcome::failed(ResponseFlags::ConnectFailure, why));
                Accepted::Refuse(503)
            }
        }
    }
}

/// The service that the client says it asked for. It labels telemetry and decides nothing.
fn asked_for(snapshot: &Snapshot, request: &Request) -> Option<Arc<Service>> {
    let forwarded: Forwarded = request.headers.get("forwarded")?.parse().ok()?;
    let host = forwarded.host?;
    snapshot.services_by_hostname(&host).next().cloned()
}
