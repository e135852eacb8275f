//! Accepting tunnels.

use std::sync::Arc;
use std::time::Duration;

use culvert_core::identity::Identity;
use rustls::ServerConfig;
use tokio::net::TcpStream;

use super::buffers::Buffers;
use super::client::keepalive;
use super::handshake::{self, HandshakeError};
use super::tunnel::{Accept, Role, Tunnel};
use super::vetted::Vetted;
use crate::ca::Usage;
use crate::identity::{Evidence, PeerError, TrustDomains, verify_peer};

/// How long a peer has for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that a peer may have open: the HTTP/2 settings hold it to that.
const MAX_STREAMS: usize = 200;

/// Why a peer gets no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// TLS.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Not one of ours.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// Too slow.
    #[error("the TLS handshake took more than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Slow,
}

/// Who opened a tunnel.
pub struct Peer {
    /// The identity that its certificate proves.
    pub identity: Arc<Identity>,
}

/// Does the server's side of the handshake on `socket` and returns the tunnel, to be awaited, with its handle.
/// `acceptor` makes the judge of its streams once the peer is known; what it holds unread counts in `buffers`.
///
/// # Errors
/// The peer is not let in, and why.
pub async fn accept<A: Accept + 'static>(
    socket: std::net::TcpStream,
    config: Arc<ServerConfig>,
    trusted: &TrustDomains,
    now: std::time::SystemTime,
    buffers: &Arc<Buffers>,
    acceptor: impl FnOnce(Peer) -> A,
) -> Result<(Tunnel, Vetted), AcceptError> {
    let io = TcpStream::from_std(socket).map_err(HandshakeError::from)?;
    io.set_nodelay(true).map_err(HandshakeError::from)?;
    socket2::SockRef::from(&io).set_tcp_keepalive(&keepalive()).map_err(HandshakeError::from)?;
    let mut established = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake::accept(io, config)).await {
        Ok(established) => established?,
        Err(_) => return Err(AcceptError::Slow),
    };
    let peer = Peer { identity: Arc::new(verify_peer(&established.peer, trusted, now)?) };
    let chain = std::mem::take(&mut established.peer);
    let evidence = Evidence::new(chain, Usage::Client, now, &peer.identity, trusted);
    let (tunnel, handle) = Tunnel::new(established, Role::Server(Arc::new(acceptor(peer))), MAX_STREAMS, buffers);
    let tunnel = tunnel.leaving_in(evidence.life());
    Ok((tunnel, Vetted::new(handle, evidence)))
}
