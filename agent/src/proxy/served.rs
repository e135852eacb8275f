//! The tunnels that peers have opened to a pod.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slab::Slab;

use crate::hbone::vetted::Vetted;
use crate::identity::{Trust, TrustWatch};

/// Those that are open.
pub(super) struct Served {
    open: Mutex<Slab<Vetted>>,
    trust: TrustWatch,
    /// Nothing begins here any more.
    stopping: AtomicBool,
}

/// Takes a tunnel off the list when it has ended.
pub(super) struct Serving {
    served: Arc<Served>,
    key: usize,
}

impl Served {
    pub(super) fn new(trust: TrustWatch) -> Arc<Self> {
        Arc::new(Self { open: Mutex::default(), trust, stopping: AtomicBool::new(false) })
    }

    /// Notes a tunnel that a peer opened when the mesh trusted, at the least, whom `seen` says; until the guard goes.
    pub(super) fn enter(self: &Arc<Self>, vetted: Vetted, seen: &Trust) -> Serving {
        let key = self.open().insert(vetted.clone());
        // A change between the handshake and the listing has not found the tunnel on the list.
        vetted.vet_if_changed(seen, &self.trust.now());
        // Nor has a stop: the peer opens its streams elsewhere.
        if self.stopping.load(Ordering::Acquire) {
            vetted.tunnel.drain();
        }
        Serving { served: self.clone(), key }
    }

    /// Says GOAWAY to every peer, and to those whose handshake is still to end.
    pub(super) fn drain(&self) {
        self.stopping.store(true, Ordering::Release);
        for (_, vetted) in self.open().iter() {
            vetted.tunnel.drain();
        }
    }

    /// A copy of the list: to verify chains takes its time.
    pub(super) fn tunnels(&self) -> Vec<Vetted> {
        self.open().iter().map(|(_, vetted)| vetted.clone()).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.open().len()
    }

    fn open(&self) -> MutexGuard<'_, Slab<Vetted>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.served.open().try_remove(self.key);
    }
}
