//! The API server as seen from another network namespace, and a wire to it that can be cut.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::ControlPlane;
use crate::process::Place;

/// Listens in a network namespace and carries every connection to a server in the harness's own; ended when dropped.
#[derive(Debug)]
pub struct Forwarder {
    state: watch::Sender<State>,
    accepted: Arc<AtomicUsize>,
    servers: Servers,
}

/// Where connections are carried to, in turn.
#[derive(Debug, Clone, Default)]
struct Servers(Arc<(Mutex<Vec<SocketAddr>>, AtomicUsize)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Through,
    Cut,
    Ended,
}

impl ControlPlane {
    /// Makes the API server reachable in `place` under the address it has here, so that the kubeconfigs hold there.
    ///
    /// # Errors
    /// When the port is taken there.
    pub fn reachable_in(&self, place: &Place) -> Result<Forwarder> {
        Forwarder::start(place, self.address(), self.address())
    }
}

impl Forwarder {
    /// From `listen` in `place` to `server`.
    ///
    /// # Errors
    /// When `listen` cannot be bound.
    pub fn start(place: &Place, listen: SocketAddr, server: SocketAddr) -> Result<Self> {
        let here = Place::netns(Path::new("/proc/self/ns/net"));
        let started = Self::between(place, listen, &here)?;
        started.lead_to(vec![server]);
        Ok(started)
    }

    /// From `listen` in one place to servers that are dialled from another; nowhere until [`Forwarder::lead_to`].
    ///
    /// # Errors
    /// When `listen` cannot be bound.
    pub fn between(place: &Place, listen: SocketAddr, from: &Place) -> Result<Self> {
        let listener = place.run(|| TcpListener::bind(listen))?.with_context(|| format!("cannot bind {listen}"))?;
        listener.set_nonblocking(true)?;
        let (sender, state) = watch::channel(State::Through);
        let (accepted, servers) = (Arc::new(AtomicUsize::new(0)), Servers::default());
        let (count, lead) = (accepted.clone(), servers.clone());
        from.spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
            runtime.block_on(async {
                if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                    serve(&listener, &lead, state, &count).await;
                }
            });
        });
        Ok(Self { state: sender, accepted, servers })
    }

    /// Carries connections from now on to these, in turn; with none, they are reset.
    pub fn lead_to(&self, servers: Vec<SocketAddr>) {
        *self.servers.0.0.lock().unwrap_or_else(PoisonError::into_inner) = servers;
    }

    /// Resets every connection, and each new one at once, until [`Forwarder::restore`].
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Resets every connection once: those that come next are carried. A watch that is cut.
    pub fn reset(&self) {
        self.cut();
        self.restore();
    }

    /// Carries connections again.
    pub fn restore(&self) {
        self.state.send_replace(State::Through);
    }

    /// How many connections have been made to it, refused ones too.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Servers {
    fn next(&self) -> Option<SocketAddr> {
        let servers = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = self.0.1.fetch_add(1, Ordering::Relaxed);
        servers.get(turn.checked_rem(servers.len())?).copied()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.state.send_replace(State::Ended);
    }
}

async fn serve(
    listener: &tokio::net::TcpListener,
    servers: &Servers,
    mut state: watch::Receiver<State>,
    accepted: &AtomicUsize,
) {
    loop {
        let client = tokio::select! {
            client = listener.accept() => client,
            ended = state.wait_for(|state| *state == State::Ended) => {
                drop(ended);
                return;
            }
        };
        let Ok((client, _)) = client else { continue };
        accepted.fetch_add(1, Ordering::Relaxed);
        // A version of its own: whatever changes from here on ends this connection.
        let mut changes = state.clone();
        match servers.next().filter(|_| *changes.borrow_and_update() == State::Through) {
            Some(server) => drop(tokio::spawn(carry(client, server, changes))),
            None => reset(&client),
        }
    }
}

async fn carry(mut client: TcpStream, server: SocketAddr, mut changes: watch::Receiver<State>) {
    let Ok(mut server) = TcpStream::connect(server).await else { return reset(&client) };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = changes.changed() => reset(&client),
    }
}

/// Closing will be a reset, as when a host is gone.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
}
