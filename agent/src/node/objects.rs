//! Following what is known of the mesh: what the source and the CNI plugin say is taken in, and everyone who acts on it
//! looks at the result.

use std::sync::Arc;

use arc_swap::ArcSwap;
use culvert_core::mesh::{Mesh, Snapshot};
use tokio::sync::{mpsc, watch};

use crate::bypass::Destinations;
use crate::charge::{Charge, taken_after};
use crate::cni::server::Told;
use crate::identity::CertificateStore;
use crate::proxy::control::Proxies;
use crate::role;
use crate::source::Source;

/// Who looks at each new state of the mesh.
pub(super) struct Followers {
    pub(super) certificates: CertificateStore,
    pub(super) proxies: Proxies,
    pub(super) destinations: Destinations,
    pub(super) charge: Charge,
    /// The newest snapshot, for whoever asks.
    pub(super) mesh: Arc<ArcSwap<Snapshot>>,
    /// Every snapshot that the others have taken in.
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    /// Whether there has been one.
    pub(super) loaded: watch::Sender<bool>,
}

/// Takes in what `source` and the CNI plugin say, and has everyone look at the result once it is whole. Ends with the
/// source.
pub(super) async fn follow(
    mut source: Source,
    mut told: mpsc::Receiver<Told>,
    mut state: Mesh,
    mut followers: Followers,
) {
    let mut turns = followers.charge.subscribe();
    // The turn in which the programs were told last.
    let mut told_in = 0;
    let mut settled = false;
    let mut waiting = Vec::new();
    loop {
        let changes = tokio::select! {
            update = source.next() => {
                let Some(update) = update else { return };
                settled = update.settled;
                if settled {
                    state.set_completeness(update.whole, update.incomplete);
                }
                update.changes
            }
            Some(Told { pod, sandbox, seen }) = told.recv() => {
                state.set_sandbox(pod, sandbox);
                waiting.extend(seen);
                Vec::new()
            }
            // The programs are told everything anew by who is in charge.
            _ = taken_after(&mut turns, told_in) => Vec::new(),
        };
        for finding in state.stage(changes) {
            tracing::warn!("{finding}");
        }
        if !settled {
            continue;
        }
        if turns.borrow().taken == 0 {
            followers.charge.take().await;
        }
        told_in = turns.borrow().taken;
        followers = match followers.look(&mut state).await {
            Some(followers) => followers,
            None => return,
        };
        for seen in waiting.drain(..) {
            // Who has stopped waiting does not mind.
            let _ = seen.send(());
        }
    }
}

impl Followers {
    /// Shows everyone what `state` is now, in the order in which they rely on each other. `None` when the runtime is
    /// being shut down.
    async fn look(mut self, state: &mut Mesh) -> Option<Self> {
        let snapshot = state.publish();
        let touched = state.take_touched();
        role::set_trust_domains(&self.certificates, &snapshot);
        self.mesh.store(snapshot.clone());
        // What is open must not wait until the programs have been told of thousands of destinations.
        let ended = self.proxies.recheck(&snapshot);
        if ended > 0 {
            tracing::info!(ended, "connections closed: what allowed them has changed");
        }
        // Before the pods are taken in that rely on it.
        let (mut destinations, known) = (self.destinations, snapshot.clone());
        let follow = move || {
            destinations.follow(&known, touched);
            destinations
        };
        // A panic was reported by the runtime.
        self.destinations = tokio::task::spawn_blocking(follow).await.ok()?;
        self.snapshots.send_replace(snapshot);
        self.loaded.send_replace(true);
        Some(self)
    }
}
