//! What the pod's applications dial.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_core::address::OriginalDst;
use culvert_core::hbone::h2::Request;
use culvert_core::hbone::{Authority, Forwarded};
use culvert_core::identity::Identity;
use culvert_core::mesh::Snapshot;
use culvert_core::route::outbound::{Outbound, Upstream, outbound};
use culvert_core::workload::Workload;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use smallvec::SmallVec;
use tokio::net::TcpStream;

use super::accept::Incoming;
use super::limits::CONNECT_TIMEOUT;
use super::live::{Admission, Flow};
use super::pod::Pod;
use super::pump::{Limits, pump};
use super::resolve;
use crate::hbone::client::{Key, connect, keepalive};
use crate::hbone::tunnel::{Open, abort};
use crate::redirect::Family;
use crate::telemetry::{ConnectionInfo, Direction, HboneTarget, Outcome, ResponseFlags, SecurityPolicy};

thread_local! {
    // Chooses endpoints; nothing secret depends on it.
    static RNG: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Decides where a connection goes and sends it there.
pub(super) fn serve(pod: &Arc<Pod>, incoming: Incoming) {
    let Some((snapshot, source)) = pod.look() else {
        abort(&incoming.socket);
        return;
    };
    let destination = OriginalDst::new(incoming.local);
    let decided = RNG.with_borrow_mut(|rng| outbound(&snapshot, &source, destination, rng));
    let mut info = ConnectionInfo {
        direction: Direction::Outbound,
        source_addr: incoming.remote,
        source: Some(source.clone()),
        source_identity: Some(pod.identity.clone()),
        destination_addr: incoming.local,
        hbone_target: None,
        destination: None,
        destination_identity: None,
        service: None,
        security: SecurityPolicy::Unknown,
    };
    if pod.is_full() {
        abort(&incoming.socket);
        let outcome = Outcome::failed(ResponseFlags::ConnectFailure, "the pod has too many connections");
        pod.shared.telemetry.connection(info).close(outcome);
        return;
    }
    let Outbound { upstream, service, workload, .. } = match decided {
        Ok(decided) => decided,
        Err(refusal) => {
            abort(&incoming.socket);
            let outcome = Outcome::failed(ResponseFlags::ConnectFailure, refusal.to_string());
            pod.shared.telemetry.connection(info).close(outcome);
            return;
        }
    };
    let host = service.as_ref().map(|service| service.key.hostname.clone());
    info.service = service;
    info.destination = workload;
    match upstream {
        Upstream::Hbone { peer, authority, expected, .. } => {
            info.destination_addr = peer;
            info.hbone_target = Some(target(&authority));
            info.destination_identity = expected.first().cloned();
            info.security = SecurityPolicy::MutualTls;
            let request = connect_request(pod, &source, &authority, incoming.remote, host.as_deref());
            let flow = admit(pod, &snapshot, destination, info);
            tunnel(
                pod,
                peer,
                expected,
                Open { app: incoming.socket.into(), request, flow, attempts: 0 },
                incoming.remote,
            );
        }
        Upstream::Tcp { peer } => {
            info.destination_addr = peer;
            let flow = admit(pod, &snapshot, destination, info);
            pass_through(pod, incoming, To::Addr(peer), flow);
        }
        Upstream::Resolve { hostname, port } => {
            let flow = admit(pod, &snapshot, destination, info);
            pass_through(pod, incoming, To::Name(hostname, port), flow);
        }
    }
}

fn admit(pod: &Pod, seen: &Arc<Snapshot>, destination: OriginalDst, info: ConnectionInfo) -> Flow {
    pod.admit(seen, Admission::Outbound { destination }, Direction::Outbound, pod.shared.telemetry.connection(info))
}

fn target(authority: &Authority) -> HboneTarget {
    match authority {
        Authority::Ip(addr) => HboneTarget::Addr(*addr),
        Authority::Host(host, port) => HboneTarget::Host(host.clone(), *port),
    }
}

fn connect_request(
    pod: &Pod,
    source: &Arc<Workload>,
    authority: &Authority,
    client: SocketAddr,
    host: Option<&str>,
) -> Request {
    let forwarded = Forwarded { client, host: host.map(Into::into) };
    let mut request = Request::connect(authority).with_header("forwarded", &forwarded.to_string());
    let baggage = pod.baggage(source);
    if !baggage.is_empty() {
        request = request.with_header("baggage", &baggage);
    }
    request.with_header("traceparent", &traceparent())
}

/// A trace of its own for each connection, not sampled: applications' own traces travel inside (W3C Trace Context).
fn traceparent() -> String {
    let (trace, span): (u128, u64) = RNG.with_borrow_mut(|rng| (rng.random(), rng.random()));
    // All zeros would be invalid.
    format!("00-{:032x}-{:016x}-00", trace | 1, span | 1)
}

fn tunnel(pod: &Arc<Pod>, peer: SocketAddr, expected: SmallVec<[Arc<Identity>; 1]>, open: Open, client: SocketAddr) {
    pod.pool.open(Key { peer, expected, source: client.ip() }, Box::new(open));
}

enum To {
    Addr(SocketAddr),
    Name(Arc<str>, u16),
}

/// Dials plainly from inside the pod's network namespace, so that the network sees the pod, and copies.
fn pass_through(pod: &Arc<Pod>, incoming: Incoming, to: To, flow: Flow) {
    let this = pod.clone();
    pod.shared.workers.get(pod.home).spawn(async move {
        let addresses: SmallVec<[SocketAddr; 4]> = match to {
            To::Addr(addr) => SmallVec::from_iter([addr]),
            To::Name(host, port) => match resolve::resolve(&host, port, &this.shared.telemetry.dns().on_demand).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    abort(&incoming.socket);
                    flow.close(Outcome::failed(
                        ResponseFlags::ConnectFailure,
                        format!("{host} does not resolve: {error}"),
                    ));
                    return;
                }
            },
        };
        let mut failure = None;
        for addr in addresses {
            match dial(&this, addr, incoming.remote).await {
                Ok(server) => {
                    match TcpStream::from_std(incoming.socket) {
                        Ok(client) => pump(client, server, flow, Limits::default()).await,
                        Err(error) => flow.close(Outcome::error(error.to_string())),
                    }
                    return;
                }
                Err(error) => failure = Some((addr, error)),
            }
        }
        abort(&incoming.socket);
        let why = failure.map_or_else(
            || "the name resolves to no address".to_owned(),
            |(addr, error)| format!("{addr} cannot be reached from the pod: {error}"),
        );
        flow.close(Outcome::failed(ResponseFlags::ConnectFailure, why));
    });
}

async fn dial(pod: &Pod, addr: SocketAddr, client: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = pod.netns.tcp_socket(Family::of(addr.ip()))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&keepalive())?;
    if Family::of(addr.ip()) == Family::of(client.ip()) {
        socket.bind(&SocketAddr::new(client.ip(), 0).into())?;
    }
    match tokio::time::timeout(CONNECT_TIMEOUT, connect(socket, addr)).await {
        Ok(connected) => connected,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}
