//! Dialling tunnels, and the pool of tunnels that a pod has.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use culvert_core::hbone::h2::Request;
use culvert_core::identity::Identity;
use rustls::pki_types::ServerName;
use smallvec::SmallVec;
use socket2::{Protocol, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;

use super::handshake::{self, Established, HandshakeError};
use super::local::{self, Connecting};
use super::tunnel::{Detached, Handle, Open, Redial, Role, Tunnel};
use super::vetted::Vetted;
use crate::ca::Usage;
use crate::identity::{
    CertificateHandle, CertificateStore, Clock, Evidence, PeerError, TlsProblem, Trust, TrustWatch, verify_server,
};
use crate::proxy::live::Flow;
use crate::redirect::{Family, PodNetns};
use crate::telemetry::{Outcome, ResponseFlags};
use crate::workers::Workers;

/// Streams a tunnel is given before another is opened, whatever the peer allows (as ztunnel does).
const MAX_STREAMS: usize = 100;
/// Streams from which on another worker's tunnel is worth its handshake.
const SPREAD_AT: usize = 16;
/// Connections that may wait for one tunnel to come up.
const MAX_WAITING: usize = 4096;
/// How often a connection is sent through another tunnel because one closed under it.
const MAX_ATTEMPTS: u8 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What tunnels may be shared for: who is spoken to, where, from which of the pod's addresses. The pod's own identity
/// is the pool's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The other end: an address and port 15008.
    pub peer: SocketAddr,
    /// The identities it may present.
    pub expected: SmallVec<[Arc<Identity>; 1]>,
    /// The address to dial from.
    pub source: IpAddr,
}

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
    fn flags(&self) -> ResponseFlags {
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

/// The tunnels of one pod.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    origin: Origin,
    certificate: CertificateHandle,
    trust: TrustWatch,
    clock: Arc<dyn Clock>,
    workers: Workers,
    home: usize,
    entries: Mutex<HashMap<Key, Entry>>,
    /// Nothing begins any more.
    draining: AtomicBool,
}

#[derive(Default)]
struct Entry {
    tunnels: Vec<(usize, Vetted)>,
    /// A tunnel is being dialled; these wait for it.
    #[allow(clippy::vec_box, reason = "they come boxed and go boxed")]
    dialling: Option<Vec<Box<Open>>>,
}

/// A handshake that led to who was expected.
struct Dialled {
    established: Established,
    evidence: Evidence,
    /// Whom the mesh trusted, at the least, when it began.
    seen: Trust,
}

impl Pool {
    /// A pool of tunnels from `origin`, which speaks as `identity`. Its first tunnel to anywhere is served by worker
    /// `home`.
    pub fn new(
        origin: impl Into<Origin>,
        certificates: &CertificateStore,
        identity: &Identity,
        workers: Workers,
        home: usize,
    ) -> Self {
        Self(Arc::new(Inner {
            origin: origin.into(),
            certificate: certificates.handle(identity),
            trust: certificates.trust(),
            clock: certificates.clock().clone(),
            workers,
            home,
            entries: Mutex::default(),
            draining: AtomicBool::new(false),
        }))
    }

    /// Opens a stream to `key` that is read and written in this process. The CONNECT is on its way when this returns,
    /// through the same tunnels and by the same rules as the connections of sockets; it counts as no connection of its
    /// own. Resolves when the peer has answered; to drop the future is to give the stream up.
    pub fn connect(&self, key: Key, request: Request) -> Connecting {
        let (connecting, end) = local::connect();
        self.open(key, Box::new(Open { app: Detached::Local(end), request, flow: Flow::unlisted(), attempts: 0 }));
        connecting
    }

    /// Carries `open` through a tunnel to `key`, dialling one if need be. However many ask at once, one is dialled.
    pub fn open(&self, key: Key, mut open: Box<Open>) {
        if open.attempts > MAX_ATTEMPTS {
            open.refuse(Outcome::failed(
                ResponseFlags::ConnectFailure,
                "every tunnel to the destination closed under it",
            ));
            return;
        }
        let mut entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.draining.load(Ordering::Relaxed) {
            drop(entries);
            open.refuse(Outcome::error("the pod is leaving the mesh"));
            return;
        }
        let entry = entries.entry(key.clone()).or_default();
        // Those that take nothing new stay as long as they carry something, or no revocation would find them.
        entry.tunnels.retain(|(_, vetted)| !vetted.tunnel.is_gone());
        let usable = entry.usable();
        let with_room = entry.tunnels.iter().map(|(_, vetted)| &vetted.tunnel).filter(|tunnel| tunnel.has_room());
        let best = with_room.min_by_key(|tunnel| tunnel.streams());
        let spread = best.is_some_and(|tunnel| tunnel.streams() >= SPREAD_AT) && usable < self.0.workers.count();
        if spread && entry.dialling.is_none() {
            entry.dialling = Some(Vec::new());
            self.dial(&key, usable);
        }
        if let Some(tunnel) = best {
            match tunnel.open(open) {
                Ok(()) => return,
                Err(back) => open = back,
            }
        }
        let first = usable;
        let entry_dialling = entry.dialling.is_some();
        let waiting = entry.dialling.get_or_insert_default();
        if waiting.len() >= MAX_WAITING {
            waiting.retain(|open| !open.app.is_abandoned());
        }
        if waiting.len() >= MAX_WAITING {
            drop(entries);
            open.refuse(Outcome::failed(ResponseFlags::ConnectFailure, "too many connections wait for the tunnel"));
            return;
        }
        waiting.push(open);
        drop(entries);
        if !entry_dialling {
            self.dial(&key, first);
        }
    }

    /// Has every tunnel finish what it carries and close; no other is opened.
    pub fn drain(&self) {
        let mut entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.draining.store(true, Ordering::Relaxed);
        for entry in entries.values_mut() {
            entry.handles().for_each(Handle::drain);
            for open in entry.dialling.take().into_iter().flatten() {
                open.refuse(Outcome::error("the pod is leaving the mesh"));
            }
        }
        entries.retain(|_, entry| !entry.tunnels.is_empty());
    }

    /// The tunnels there are, those that drain among them, to be vetted. A copy: to verify chains takes its time.
    pub fn tunnels(&self) -> Vec<Vetted> {
        let entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.values().flat_map(|entry| &entry.tunnels).map(|(_, vetted)| vetted.clone()).collect()
    }

    /// Tunnels in use.
    pub fn len(&self) -> usize {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner).values().map(Entry::usable).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn dial(&self, key: &Key, index: usize) {
        let (pool, key) = (self.clone(), key.clone());
        let worker = self.0.home + index;
        self.0.workers.get(worker).spawn(async move {
            let dialled = pool.0.dial(&key).await;
            let role = Role::Client(Arc::new(Again { pool: Arc::downgrade(&pool.0), key: key.clone() }));
            let (tunnel, vetted, failure) = match dialled {
                Ok(Dialled { established, evidence, seen }) => {
                    let (tunnel, handle) = Tunnel::new(established, role, MAX_STREAMS);
                    (Some(tunnel), Some((Vetted::new(handle, evidence), seen)), None)
                }
                Err(error) => (None, None, Some(error)),
            };
            let waiting = {
                let mut entries = pool.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
                // Gone if the pod drained meanwhile: then nobody waits, and the tunnel closes when its handle does.
                let Some(entry) = entries.get_mut(&key) else { return };
                if let Some((vetted, seen)) = vetted {
                    entry.tunnels.push((worker, vetted.clone()));
                    // A change between the handshake and the listing has not found the tunnel on the list.
                    vetted.vet_if_changed(&seen, &pool.0.trust.now());
                    if pool.0.draining.load(Ordering::Relaxed) {
                        vetted.tunnel.drain();
                    }
                }
                let waiting = entry.dialling.take().unwrap_or_default();
                if entry.tunnels.is_empty() {
                    entries.remove(&key);
                }
                waiting
            };
            if let Some(error) = failure {
                let why = error.to_string();
                for open in waiting {
                    open.refuse(Outcome::failed(error.flags(), why.clone()));
                }
                return;
            }
            // Through the pool again: there may be more than one tunnel takes.
            for open in waiting {
                pool.open(key.clone(), open);
            }
            let Some(tunnel) = tunnel else { return };
            if let Err(error) = tunnel.await {
                tracing::debug!(peer = %key.peer, %error, "tunnel ended");
            }
            pool.0.forget_closed(&key);
        });
    }
}

impl Entry {
    fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.tunnels.iter().map(|(_, vetted)| &vetted.tunnel)
    }

    /// How many tunnels take new streams.
    fn usable(&self) -> usize {
        self.handles().filter(|tunnel| !tunnel.is_draining()).count()
    }
}

impl Inner {
    async fn dial(&self, key: &Key) -> Result<Dialled, DialError> {
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

    fn forget_closed(&self, key: &Key) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(key) {
            entry.tunnels.retain(|(_, vetted)| !vetted.tunnel.is_gone());
            if entry.tunnels.is_empty() && entry.dialling.is_none() {
                entries.remove(key);
            }
        }
    }
}

/// The way back to the pool for connections that a tunnel could not carry.
struct Again {
    pool: Weak<Inner>,
    key: Key,
}

impl Redial for Again {
    fn redial(&self, open: Box<Open>) {
        match self.pool.upgrade() {
            Some(pool) => Pool(pool).open(self.key.clone(), open),
            None => open.refuse(Outcome::error("the pod has left the mesh")),
        }
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
    match socket.connect(&peer.into()) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    TcpStream::from_std(socket.into())
}
