//! Questions to the server that the pod asked, from inside the pod and with its address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_core::dns::message;
use rand::Rng;
use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use super::PATIENCE;
use super::metrics::{Metrics, Protocol};
use crate::hbone::client::connect;
use crate::redirect::{Family, PodNetns};

/// What a server may answer over UDP: as much as fits a datagram, since the client has said itself what it takes.
const MAX_ANSWER: usize = 65_535;

/// Asks `server` over UDP and returns its answer with the client's id.
///
/// Every question has a socket, and so a port, and an id of its own: who would forge an answer has to guess both.
///
/// # Errors
/// The server cannot be reached, or does not answer in time.
pub(super) async fn ask(
    netns: &PodNetns,
    metrics: &Metrics,
    server: SocketAddr,
    client: IpAddr,
    question: &[u8],
) -> io::Result<Vec<u8>> {
    let started = Instant::now();
    metrics.upstream_request(Protocol::Udp);
    let asked = timeout(PATIENCE, exchange(netns, server, client, question)).await;
    match asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(answer) => {
            metrics.upstream_duration(started.elapsed());
            Ok(answer)
        }
        Err(error) => {
            metrics.failure(Protocol::Udp);
            Err(error)
        }
    }
}

async fn exchange(netns: &PodNetns, server: SocketAddr, client: IpAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let own = message::id(question).ok_or(io::ErrorKind::InvalidInput)?;
    let socket = netns.dns_socket(Family::of(server.ip()))?;
    if Family::of(client) == Family::of(server.ip()) {
        socket.bind(&SocketAddr::new(client, 0).into())?;
    }
    // Connected, it takes nothing that comes from elsewhere.
    socket.connect(&server.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    let id = rand::rng().random();
    let mut sent = question.to_vec();
    message::set_id(&mut sent, id);
    socket.send(&sent).await?;
    loop {
        // An error is nobody's answer: nobody listens there, or the network says so.
        let ready = socket.ready(Interest::READABLE | Interest::ERROR).await?;
        if ready.is_error() {
            return Err(socket.take_error()?.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into()));
        }
        // Only now: most of the time is spent waiting.
        let mut answer = vec![0; MAX_ANSWER];
        match socket.try_recv(&mut answer) {
            Ok(length) => answer.truncate(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        if message::id(&answer) == Some(id) && message::is_response(&answer) {
            message::set_id(&mut answer, own);
            return Ok(answer);
        }
    }
}

/// Connects to `server` for questions over TCP.
///
/// # Errors
/// It cannot be reached in time.
pub(super) async fn open(netns: &PodNetns, server: SocketAddr, client: IpAddr) -> io::Result<TcpStream> {
    let socket = netns.tcp_socket(Family::of(server.ip()))?;
    socket.set_tcp_nodelay(true)?;
    if Family::of(client) == Family::of(server.ip()) {
        socket.bind(&SocketAddr::new(client, 0).into())?;
    }
    timeout(PATIENCE, connect(socket, server)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// How long a connection for DNS may be silent (RFC 7766 6.2.3: a few seconds; some transfers take longer).
pub(super) const IDLE: Duration = Duration::from_secs(30);
