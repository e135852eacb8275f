//! Following what is known of the mesh.

use std::sync::Arc;

use culvert_core::mesh::{Mesh, Snapshot};
use tokio::sync::watch;

use super::Coming;
use crate::identity::CertificateStore;
use crate::role;
use crate::source::Source;

/// Who looks at each new state of the mesh.
pub(super) struct Followers {
    pub(super) certificates: CertificateStore,
    pub(super) coming: Coming,
    /// For who waits for something to be there.
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
}

/// Takes in what `source` says, and has everyone look at the result once it is whole. Ends with the source.
pub(super) async fn follow(mut source: Source, mut state: Mesh, followers: Followers) {
    while let Some(update) = source.next().await {
        if update.settled {
            state.set_completeness(update.whole, update.incomplete);
        }
        for finding in state.stage(update.changes) {
            tracing::warn!("{finding}");
        }
        if update.settled {
            let snapshot = state.publish();
            // What nodes tell their programs, and what would pile up.
            drop(state.take_touched());
            followers.look(snapshot);
        }
    }
}

impl Followers {
    /// Shows everyone a new snapshot.
    fn look(&self, snapshot: Arc<Snapshot>) {
        let Coming { mesh, loaded, shared, .. } = &self.coming;
        role::set_trust_domains(&self.certificates, &snapshot);
        mesh.store(snapshot.clone());
        if let Some(shared) = shared.get() {
            let ended = shared.recheck(&snapshot);
            if ended > 0 {
                tracing::info!(ended, "connections closed: what allowed them has changed");
            }
        }
        self.snapshots.send_replace(snapshot);
        loaded.send_replace(true);
    }
}
