//! One tunnel as one task: the TCP socket, the record keys, the HTTP/2 state and the applications' ends it carries.

mod leaving;
mod mux;
mod shedding;
mod slots;
mod stream;
mod timing;
mod turn;
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use culvert_core::hbone::h2::{Connection, ConnectionError, Request, Settings};
use smallvec::SmallVec;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use self::leaving::Lingering;
use self::mux::Mux;
use self::wire::Wire;
pub use super::app::Detached;
pub(crate) use super::app::abort;
use super::buffers::{Buffers, Part};
use super::handshake::{Established, HandshakeError};
use super::local::End;
use super::record::RecordError;
use super::scratch;
use crate::identity::Distrust;
use crate::proxy::live::Flow;
use crate::telemetry::{Outcome, ResponseFlags};

/// How often the peer is asked whether it is alive (as ztunnel does).
const PING_EVERY: Duration = Duration::from_secs(10);
/// How long it may stay silent after being asked.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a client keeps a tunnel that carries nothing.
const IDLE_RELEASE: Duration = Duration::from_secs(300);
/// How long a server waits for the application to accept (as ztunnel does).
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client waits for the answer to its CONNECT: longer than a server may take to dial, so that where the server
/// gives up it is its answer, which knows more, that reaches the access log.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Why what a tunnel carried ended with its task.
const CUT_OFF: &str = "the proxy was stopped";

/// An application connection that wants to go through a tunnel.
pub struct Open {
    /// The application's end.
    pub app: Detached,
    /// The CONNECT.
    pub request: Request,
    /// Its account.
    pub flow: Flow,
    /// How often it has been sent elsewhere because a tunnel closed under it.
    pub attempts: u8,
}

impl Open {
    /// Ends a connection that never got through, with a reset.
    pub(super) fn refuse(self, outcome: Outcome) {
        self.app.abort(&outcome);
        self.flow.close(outcome);
    }
}

/// Headers of a 200: lower-case names, and values.
pub type ResponseHeaders = SmallVec<[(&'static str, String); 1]>;

/// What becomes of a stream that a peer asks for.
pub enum Accepted {
    /// The application is being dialled.
    Dial {
        /// A socket whose connect is under way.
        app: TcpStream,
        /// Its account.
        flow: Flow,
        /// Headers of the 200.
        headers: ResponseHeaders,
    },
    /// It ends in this process, where it is decided how it is answered: see [`local::offer`](super::local::offer).
    Serve {
        /// The tunnel's end of it.
        end: End,
        /// Its account.
        flow: Flow,
    },
    /// It is answered with this status.
    Refuse(u16),
}

/// Decides about the streams of a server's tunnel.
pub trait Accept: Send + Sync {
    /// Decides at once: looks at policy and starts dialling, but waits for nothing.
    fn accept(&self, request: Request) -> Accepted;
}

/// Takes back connections that a tunnel could not carry though the peer has not acted on them.
pub trait Redial: Send + Sync {
    /// Sends `open` through another tunnel.
    fn redial(&self, open: Box<Open>);
}

/// Which end of the tunnel this is.
pub enum Role {
    /// The end that dialled, and opens streams.
    Client(Arc<dyn Redial>),
    /// The end that accepted, and is asked for streams.
    Server(Arc<dyn Accept>),
}

/// Why a tunnel ended.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The socket failed.
    #[error("the tunnel's connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The peer's records are broken.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The peer's frames are broken.
    #[error(transparent)]
    Http2(#[from] ConnectionError),
    /// The peer's keys are broken.
    #[error(transparent)]
    Keys(#[from] HandshakeError),
    /// The peer does not answer.
    #[error("the peer has not answered a PING for {} s; its node may be gone", PING_TIMEOUT.as_secs())]
    Silent,
    /// The peer closed while streams were open.
    #[error("the peer closed the tunnel")]
    Closed,
    /// The peer sent a fatal TLS alert.
    #[error("the peer ended the tunnel with TLS alert {0}; it may not accept our certificate")]
    Alert(u8),
    /// The peer leaves unread what it is sent, and others need the memory.
    #[error("the peer does not read what it is sent, and its pod's tunnels hold more than they may")]
    Unread,
    /// Nothing of a peer that the mesh trusts no longer goes on.
    #[error("connection closed: {0}")]
    Distrusted(Distrust),
}

enum Command {
    Open(Box<Open>),
    /// GOAWAY: finish what is open, take nothing new.
    Drain,
    /// Ends everything at once.
    Distrust(Distrust),
}

/// The handle by which others use a tunnel.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Streams open or on their way to be.
    streams: AtomicUsize,
    /// How many the peer allows.
    limit: AtomicUsize,
    /// No new streams.
    draining: AtomicBool,
}

impl Handle {
    /// Streams that the tunnel carries.
    pub fn streams(&self) -> usize {
        self.shared.streams.load(Ordering::Relaxed)
    }

    /// Whether one more stream may be opened.
    pub fn has_room(&self) -> bool {
        !self.is_draining() && self.streams() < self.shared.limit.load(Ordering::Relaxed)
    }

    /// Whether the tunnel takes no new streams, or is gone.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::Relaxed) || self.commands.is_closed()
    }

    /// Whether the tunnel carries nothing any more.
    pub fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }

    /// Carries `open`; gives it back if the tunnel is gone.
    pub fn open(&self, open: Box<Open>) -> Result<(), Box<Open>> {
        self.shared.streams.fetch_add(1, Ordering::Relaxed);
        self.commands.send(Command::Open(open)).map_err(|refused| match refused.0 {
            Command::Open(open) => open,
            Command::Drain | Command::Distrust(_) => unreachable!("what was sent comes back"),
        })
    }

    /// Has the tunnel finish what it carries and close.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        // A tunnel that is gone is drained.
        let _ = self.commands.send(Command::Drain);
    }

    /// Ends the tunnel and all that it carries: its peer is not trusted any more.
    pub fn distrust(&self, why: Distrust) {
        self.shared.draining.store(true, Ordering::Relaxed);
        // A tunnel that is gone has ended.
        let _ = self.commands.send(Command::Distrust(why));
    }
}

/// A tunnel: a future to be spawned on the worker whose reactor `Established::io` is registered with. It resolves when
/// the tunnel has closed.
pub struct Tunnel {
    wire: Wire,
    mux: Mux,
    part: Part,
    commands: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
    /// What rustls opened during the handshake, until the first turn.
    early: Option<Vec<u8>>,
    /// Fires when something is due, see [`timing`].
    timer: Pin<Box<Sleep>>,
    next_ping: Instant,
    /// When the peer was last heard of.
    heard: Instant,
    /// When the tunnel last carried something.
    busy: Instant,
    /// When the peer has to prove anew who it is, in another tunnel.
    leave_at: Option<Instant>,
    /// When the peer will have heard of the first GOAWAY, once it is said.
    last_call: Option<Instant>,
    /// Everything is said: nothing is read or written any more but for the end of the connection.
    lingering: Option<Lingering>,
    /// The connection is over, and why; applications have yet to read the last of what came by it.
    outlived: Option<TunnelError>,
    /// No handle is left.
    orphaned: bool,
}

impl Tunnel {
    /// Takes over an established connection. `streams` bounds how many are opened here, whatever the peer allows; what is
    /// kept for readers who do not read counts in `buffers`.
    pub fn new(established: Established, role: Role, streams: usize, buffers: &Arc<Buffers>) -> (Self, Handle) {
        let h2 = match role {
            Role::Client(_) => Connection::client(Settings::CLIENT),
            Role::Server(_) => Connection::server(Settings::SERVER),
        };
        let (sender, commands) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { limit: AtomicUsize::new(streams), ..Shared::default() });
        let now = Instant::now();
        let tunnel = Self {
            wire: Wire::new(
                established.io,
                established.sealer,
                established.opener,
                established.keys,
                established.received,
            ),
            mux: Mux::new(h2, role, shared.clone(), streams),
            part: buffers.part(),
            commands,
            shared: shared.clone(),
            early: Some(established.plaintext),
            timer: Box::pin(tokio::time::sleep_until(now + PING_EVERY)),
            next_ping: now + PING_EVERY,
            heard: now,
            busy: now,
            leave_at: None,
            last_call: None,
            lingering: None,
            outlived: None,
            orphaned: false,
        };
        (tunnel, Handle { commands: sender, shared })
    }

    /// Has it take no new streams after `life`, that of the peer's certificate: nothing begins on the word of one that has
    /// ended. Taking out a root whose certificates have ended then closes no younger connection.
    pub fn leaving_in(mut self, life: Duration) -> Self {
        // One that far away is never reached.
        self.leave_at = Instant::now().checked_add(life);
        self
    }
}

impl Future for Tunnel {
    type Output = Result<(), TunnelError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        scratch::with(|scratch| self.poll_turns(cx, scratch))
    }
}

impl Drop for Tunnel {
    /// Where the task is cut off, what it carried must not look whole to the applications, as after an orderly end.
    fn drop(&mut self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.mux.fail(|_| true, CUT_OFF, ResponseFlags::None);
        while let Some(open) = self.unopened() {
            self.shared.streams.fetch_sub(1, Ordering::Relaxed);
            open.refuse(Outcome::error(CUT_OFF));
        }
    }
}
