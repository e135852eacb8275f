//! Coming to speak with a peer: TCP, TLS, and whether it is who it should be.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use socket2::{Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

use super::Key;
use crate::ca::Usage;
use crate::hbone::handshake::{self, Established, HandshakeError};
use crate::identity::{CertificateHandle, Clock, Evidence, PeerError, TlsProblem, Trust, TrustWatch, verify_server};
use crate::redirect::{Family, PodNetns, begin_connect};
use crate::telemetry::ResponseFlags;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a tunnel did not come up. Each message says what to check.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No TCP connection.
    #[error("no route to {peer} from the pod: {error}; a NetworkPolicy may block port 15008, or the node may be down")]
    Connect {
        /// Where.
        peer: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// No TLS.
    #[error("{peer}: {error}")]
    Handshake {
        /// Where.
        peer: SocketAddr,
        /// What TLS said.
        error: HandshakeError,
    },
    /// Someone else is there.
    #[error("{peer}: {error}")]
    Peer {
        /// Where.
        peer: SocketAddr,
        /// Who.
        error: PeerError,
    },
    /// The pod has no certificate.
    #[error("the pod has no certificate yet; see `culvertctl certificates`")]
    NoCertificate,
    /// It took too long.
    #[error("{peer}: the TLS handshake took more than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Slow {
        /// Where.
        peer: SocketAddr,
    },
}

impl DialError {
    pub(super) fn flags(&self) -> ResponseFlags {
        match self {
            Self::Connect { .. } => ResponseFlags::ConnectFailure,
            Self::Handshake { error: HandshakeError::Tls(error), .. } => TlsProblem(error).response_flags(),
            Self::Handshake { .. } | Self::Slow { .. } => ResponseFlags::TlsFailure,
            Self::Peer { .. } | Self::NoCertificate => ResponseFlags::IdentityError,
        }
    }
}

/// Where a pool's connections come from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The network namespace of a pod, which is not our own.
    Pod(Arc<PodNetns>),
    /// Our own, which takes no privilege.
    Here,
}

impl From<Arc<PodNetns>> for Origin {
    fn from(netns: Arc<PodNetns>) -> Self {
        Self::Pod(netns)
    }
}

impl Origin {
    fn tcp_socket(&self, family: Family) -> io::Result<Socket> {
        match self {
            Self::Pod(netns) => netns.tcp_socket(family),
            Self::Here => Socket::new(family.domain(), Type::STREAM.nonblocking(), Some(Protocol::TCP)),
        }
    }
}

/// Dials for one pod: from its network namespace, as its identity.
pub(super) struct Dialler {
    pub(super) origin: Origin,
    pub(super) certificate: CertificateHandle,
    pub(super) trust: TrustWatch,
    pub(super) clock: Arc<dyn Clock>,
}

/// A handshake that led to who was expected.
pub(super) struct Dialled {
    pub(super) established: Established,
    pub(super) evidence: Evidence,
    /// Whom the mesh trusted, at the least, when it began.
    pub(super) seen: Trust,
}

impl Dialler {
    /// Dials `key` and proves both ends to each other.
    pub(super) async fn dial(&self, key: &Key) -> Result<Dialled, DialError> {
        let peer = key.peer;
        let certificate = self.certificate.current().ok_or(DialError::NoCertificate)?;
        let seen = Trust { bundle: certificate.trust.clone(), ..self.trust.now() };
        let io = match tokio::time::timeout(CONNECT_TIMEOUT, self.connect(key)).await {
            Ok(Ok(io)) => io,
            Ok(Err(error)) => return Err(DialError::Connect { peer, error }),
            Err(_) => return Err(DialError::Connect { peer, error: io::ErrorKind::TimedOut.into() }),
        };
        let handshake = handshake::connect(io, certificate.client.clone(), ServerName::IpAddress(peer.ip().into()));
        let mut established = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(established)) => established,
            Ok(Err(error)) => return Err(DialError::Handshake { peer, error }),
            Err(_) => return Err(DialError::Slow { peer }),
        };
        let now = self.clock.now();
        let server =
            verify_server(&established.peer, &key.expected, now).map_err(|error| DialError::Peer { peer, error })?;
        let chain = std::mem::take(&mut established.peer);
        let evidence = Evidence::new(chain, Usage::Server, now, &server, &seen.domains);
        Ok(Dialled { established, evidence, seen })
    }

    async fn connect(&self, key: &Key) -> io::Result<TcpStream> {
        let socket = self.origin.tcp_socket(Family::of(key.peer.ip()))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&keepalive())?;
        if Family::of(key.source) == Family::of(key.peer.ip()) {
            socket.bind(&SocketAddr::new(key.source, 0).into())?;
        }
        connect(socket, key.peer).await
    }
}

/// The keepalive of every TCP connection to another machine, proxy or not (as ztunnel's).
pub fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(Duration::from_secs(180)).with_interval(Duration::from_secs(180)).with_retries(9)
}

/// Starts connecting a nonblocking socket and waits until it has.
///
/// # Errors
/// What the kernel says.
pub async fn connect(socket: Socket, peer: SocketAddr) -> io::Result<TcpStream> {
    connected(start_connect(socket, peer)?).await
}

/// Waits until a connection that is under way is there.
///
/// # Errors
/// What the kernel says.
pub async fn connected(stream: TcpStream) -> io::Result<TcpStream> {
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Starts connecting a nonblocking socket.
///
/// # Errors
/// What the kernel says at once.
pub fn start_connect(socket: Socket, peer: SocketAddr) -> io::Result<TcpStream> {
    begin_connect(&socket, peer)?;
    TcpStream::from_std(socket.into())
}
