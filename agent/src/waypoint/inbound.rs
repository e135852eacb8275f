//! Tunnels of clients, and the judgement of what they are asked for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use culvert_core::hbone::h2::Request;
use culvert_core::hbone::{Authority, Forwarded};
use culvert_core::protocol::Declared;
use culvert_core::waypoint::SessionTarget;

use super::http;
use super::protocol::{self, Spoken};
use super::session::{Arrival, Session};
use super::shared::{Counted, Shared};
use super::stream::{self, Client};
use crate::hbone::local::{self, Unanswered};
use crate::hbone::server::Peer;
use crate::hbone::tunnel::{Accept, Accepted, ResponseHeaders};
use crate::proxy::accept::Incoming;
use crate::proxy::live::Flow;
use crate::telemetry::PeerLine;

/// Takes a client's connection through its handshake and serves the tunnel.
pub(super) fn serve(shared: &Arc<Shared>, incoming: Incoming) {
    let (worker, place) = shared.assign();
    let judging = shared.clone();
    let judge = move |peer, remote, _| Judge { shared: judging, peer, remote, _place: place };
    shared.tunnels.serve(shared.workers.get(worker), incoming, judge);
}

/// Judges the streams of one tunnel.
struct Judge {
    shared: Arc<Shared>,
    peer: Peer,
    remote: SocketAddr,
    _place: Counted,
}

impl Accept for Judge {
    fn accept(&self, request: Request) -> Accepted {
        let authority = match request.target() {
            Ok(authority) => authority,
            Err(error) => return self.refuse(400, format_args!("{error}")),
        };
        let (snapshot, gateway) = (self.shared.mesh.load_full(), &self.shared.own.gateway);
        let namespace = &self.peer.identity.namespace;
        let target = match SessionTarget::resolve(&snapshot, gateway, &authority, namespace) {
            Ok(target) => target,
            Err(why) => return self.refuse(why.status(), format_args!("{authority}: {why}")),
        };
        let Some(place) = self.shared.enter() else {
            return self.refuse(503, format_args!("{authority}: as many connections as there may be are open"));
        };
        let arrival = Arrival {
            principal: self.peer.identity.clone(),
            client_address: client_address(&request, self.remote),
            destination: destination(&authority, &target),
            target,
        };
        let session = Session::new(self.shared.clone(), &snapshot, arrival, place);
        let (unanswered, end) = local::offer(request);
        // On the worker of the tunnel, whose turn this is: nothing that either does wakes another thread.
        tokio::spawn(attend(session, unanswered));
        // What it carries is accounted for where it is known what that is.
        Accepted::Serve { end, flow: Flow::unlisted() }
    }
}

impl Judge {
    fn refuse(&self, status: u16, why: fmt::Arguments<'_>) -> Accepted {
        if PeerLine::StreamRefused.may_be_written() {
            tracing::warn!(peer = %self.remote, identity = %self.peer.identity, "stream refused ({status}): {why}");
        }
        Accepted::Refuse(status)
    }
}

/// Serves a session by what it speaks.
async fn attend(session: Session, unanswered: Unanswered) {
    let declared = session.declared();
    if declared == Some(Declared::Tcp) {
        // Nothing has to be read first: so the client hears whether its connection came about.
        return stream::serve(session, None, Client::Waiting(unanswered)).await;
    }
    let stream = unanswered.accept(ResponseHeaders::new());
    match protocol::detect(stream, declared, session.shared.draining()).await {
        Ok((Spoken::Http(version), stream)) => http::serve(session, stream, version).await,
        Ok((Spoken::Tls(name), stream)) => stream::serve(session, name, Client::Open(stream)).await,
        Ok((Spoken::Tcp, stream)) => stream::serve(session, None, Client::Open(stream)).await,
        Err(error) => {
            tracing::debug!(client = %session.client_address, %error, "a connection ended before its first byte");
        }
    }
}

/// Where the client dialled from. Its node says with which port; the address is the one that the tunnel came from, since
/// policies rely on it, and peers may say what they like.
fn client_address(request: &Request, remote: SocketAddr) -> SocketAddr {
    let forwarded = request.headers.get("forwarded").and_then(|value| value.parse::<Forwarded>().ok());
    forwarded.map(|forwarded| forwarded.client).filter(|client| client.ip() == remote.ip()).unwrap_or(remote)
}

/// What the client dialled; where it asked by name, an address of what it asked for.
fn destination(authority: &Authority, target: &SessionTarget) -> SocketAddr {
    let first = || match target {
        SessionTarget::Service(service, _) => service.vips.first().map(|vip| vip.addr()),
        SessionTarget::Workload(workload, _) => workload.addresses.first().copied(),
    };
    let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    authority.addr().unwrap_or_else(|| SocketAddr::new(first().unwrap_or(unknown), authority.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_where_its_tunnel_comes_from_whatever_it_says() {
        let remote: SocketAddr = "10.0.0.7:40000".parse().unwrap();
        let asked = |forwarded: Option<&str>| {
            let request = Request::connect(&"10.96.0.1:80".parse().unwrap());
            let request = forwarded.into_iter().fold(request, |request, value| request.with_header("forwarded", value));
            client_address(&request, remote).to_string()
        };
        assert_eq!(asked(Some("for=\"10.0.0.7:51515\";host=cart.shop.svc.cluster.local")), "10.0.0.7:51515");
        assert_eq!(asked(Some("for=\"10.0.0.8:51515\"")), "10.0.0.7:40000", "another one's address");
        assert_eq!(asked(Some("for=_hidden")), "10.0.0.7:40000");
        assert_eq!(asked(None), "10.0.0.7:40000");
    }
}
