//! The pool of tunnels that a pod has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use culvert_core::hbone::h2::Request;
use culvert_core::identity::Identity;
use tokio::sync::watch;

use super::Key;
use super::dial::{Dialled, Dialler, Origin};
use crate::hbone::buffers::Buffers;
use crate::hbone::local::{self, Connecting};
use crate::hbone::tunnel::{Detached, Handle, Open, Redial, Role, Tunnel};
use crate::hbone::vetted::Vetted;
use crate::identity::{CertificateStore, Trust};
use crate::proxy::live::Flow;
use crate::telemetry::{Outcome, ResponseFlags};
use crate::workers::Workers;

/// Streams a tunnel is given before another is opened, whatever the peer allows (as ztunnel does).
const MAX_STREAMS: usize = 100;
/// Streams from which on another worker's tunnel is worth its handshake.
const SPREAD_AT: usize = 16;
/// Tunnels for one key: as many as a server of ours takes from one address. A peer that allows few streams or none, so
/// that each connection would need one of its own, costs no more. (Fewer in tests, as each takes a handshake.)
const MAX_TUNNELS: usize = if cfg!(test) { 16 } else { 512 };
/// Connections that may wait for one tunnel to come up.
const MAX_WAITING: usize = 4096;
/// How often a connection is sent through another tunnel because one closed under it.
const MAX_ATTEMPTS: u8 = 3;

/// The tunnels of one pod.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    dialler: Dialler,
    workers: Workers,
    home: usize,
    buffers: Arc<Buffers>,
    entries: Mutex<HashMap<Key, Entry>>,
    /// Nothing begins any more, and what is being dialled is given up.
    draining: watch::Sender<bool>,
}

#[derive(Default)]
struct Entry {
    tunnels: Vec<Vetted>,
    /// A tunnel is being dialled; these wait for it.
    dialling: Option<Waiting>,
}

/// Those that wait for a tunnel.
#[allow(clippy::vec_box, reason = "they come boxed and go boxed")]
type Waiting = Vec<Box<Open>>;

impl Pool {
    /// A pool of tunnels from `origin`, which speaks as `identity`. Its first tunnel to anywhere is served by worker
    /// `home`; what they hold unread counts in `buffers`.
    pub fn new(
        origin: impl Into<Origin>,
        certificates: &CertificateStore,
        identity: &Identity,
        workers: Workers,
        home: usize,
        buffers: Arc<Buffers>,
    ) -> Self {
        Self(Arc::new(Inner {
            dialler: Dialler {
                origin: origin.into(),
                certificate: certificates.handle(identity),
                trust: certificates.trust(),
                clock: certificates.clock().clone(),
            },
            workers,
            home,
            buffers,
            entries: Mutex::default(),
            draining: watch::Sender::new(false),
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
    pub fn open(&self, key: Key, open: Box<Open>) {
        if open.attempts > MAX_ATTEMPTS {
            open.refuse(Outcome::failed(
                ResponseFlags::ConnectFailure,
                "every tunnel to the destination closed under it",
            ));
            return;
        }
        let mut entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if *self.0.draining.borrow() {
            drop(entries);
            open.refuse(Outcome::error("the pod is leaving the mesh"));
            return;
        }
        let entry = entries.entry(key.clone()).or_default();
        // Those that take nothing new stay as long as they carry something, or no revocation would find them.
        entry.tunnels.retain(|vetted| !vetted.tunnel.is_gone());
        let (usable, was_dialling) = (entry.usable(), entry.dialling.is_some());
        let refused = entry.place(open, self.0.workers.count());
        let dials = entry.dialling.is_some() && !was_dialling;
        drop(entries);
        if dials {
            self.dial(&key, usable);
        }
        if let Err((open, why)) = refused {
            open.refuse(Outcome::failed(ResponseFlags::ConnectFailure, why));
        }
    }

    /// Has every tunnel finish what it carries and close; no other is opened.
    pub fn drain(&self) {
        let mut entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.draining.send_replace(true);
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
        entries.values().flat_map(|entry| &entry.tunnels).cloned().collect()
    }

    /// Whether no tunnel is left, nor one on its way.
    pub fn is_empty(&self) -> bool {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Every tunnel that is not gone.
    #[cfg(test)]
    pub(in crate::hbone) fn handles(&self) -> Vec<Handle> {
        let entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.values().flat_map(Entry::handles).cloned().collect()
    }

    /// How many tunnels take new streams.
    #[cfg(test)]
    pub(in crate::hbone) fn usable(&self) -> usize {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner).values().map(Entry::usable).sum()
    }

    /// Dials `key` on the worker that is `index` away from home.
    fn dial(&self, key: &Key, index: usize) {
        let (pool, key, worker) = (self.clone(), key.clone(), self.0.home + index);
        self.0.workers.get(worker).spawn(async move {
            let mut draining = pool.0.draining.subscribe();
            let dialled = tokio::select! {
                biased;
                // Those that waited have been told.
                _ = draining.wait_for(|draining| *draining) => None,
                dialled = pool.0.dialler.dial(&key) => Some(dialled),
            };
            match dialled {
                None => pool.0.forget_closed(&key),
                Some(Ok(dialled)) => pool.run(&key, dialled).await,
                Some(Err(error)) => {
                    let why = error.to_string();
                    for open in pool.0.end_dial(&key) {
                        open.refuse(Outcome::failed(error.flags(), why.clone()));
                    }
                }
            }
        });
    }

    /// Runs a tunnel that has been dialled, until it ends.
    async fn run(&self, key: &Key, dialled: Dialled) {
        let Dialled { established, evidence, seen } = dialled;
        let role = Role::Client(Arc::new(Again { pool: Arc::downgrade(&self.0), key: key.clone() }));
        let (tunnel, handle) = Tunnel::new(established, role, MAX_STREAMS, &self.0.buffers);
        let tunnel = tunnel.leaving_in(evidence.life());
        let vetted = Vetted::new(handle, evidence);
        self.0.list(key, vetted, &seen);
        // Through the pool again: there may be more than one tunnel takes.
        for open in self.0.end_dial(key) {
            self.open(key.clone(), open);
        }
        if let Err(error) = tunnel.await {
            tracing::debug!(peer = %key.peer, %error, "tunnel ended");
        }
        self.0.forget_closed(key);
    }
}

impl Entry {
    /// Has a tunnel carry `open`, or lets it wait for one that is to be dialled. Gives it back with the reason if neither
    /// can be.
    fn place(&mut self, mut open: Box<Open>, workers: usize) -> Result<(), (Box<Open>, &'static str)> {
        let usable = self.usable();
        let with_room = self.tunnels.iter().map(|vetted| &vetted.tunnel).filter(|tunnel| tunnel.has_room());
        if let Some(best) = with_room.min_by_key(|tunnel| tunnel.streams()) {
            if best.streams() >= SPREAD_AT && usable < workers {
                self.dialling.get_or_insert_default();
            }
            match best.open(open) {
                Ok(()) => return Ok(()),
                Err(back) => open = back,
            }
        }
        if self.dialling.is_none() && self.tunnels.len() >= MAX_TUNNELS {
            return Err((
                open,
                "as many tunnels as there may be to the destination's proxy are open, and none has room",
            ));
        }
        let waiting = self.dialling.get_or_insert_default();
        if waiting.len() >= MAX_WAITING {
            waiting.retain(|open| !open.app.is_abandoned());
        }
        if waiting.len() >= MAX_WAITING {
            return Err((open, "too many connections wait for the tunnel"));
        }
        waiting.push(open);
        Ok(())
    }

    fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.tunnels.iter().map(|vetted| &vetted.tunnel)
    }

    /// How many tunnels take new streams.
    fn usable(&self) -> usize {
        self.handles().filter(|tunnel| !tunnel.is_draining()).count()
    }
}

impl Inner {
    /// Puts a tunnel on the list.
    fn list(&self, key: &Key, vetted: Vetted, seen: &Trust) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // A change of trust, or a drain, between the handshake and the listing has not found the tunnel on the list.
        vetted.vet_if_changed(seen, &self.dialler.trust.now());
        if *self.draining.borrow() {
            vetted.tunnel.drain();
        }
        entries.entry(key.clone()).or_default().tunnels.push(vetted);
    }

    /// Dialling `key` is over: returns those that waited for it.
    fn end_dial(&self, key: &Key) -> Waiting {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // Gone if the pool has drained.
        let Some(entry) = entries.get_mut(key) else { return Waiting::new() };
        let waiting = entry.dialling.take().unwrap_or_default();
        if entry.tunnels.is_empty() {
            entries.remove(key);
        }
        waiting
    }

    fn forget_closed(&self, key: &Key) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(key) {
            entry.tunnels.retain(|vetted| !vetted.tunnel.is_gone());
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
