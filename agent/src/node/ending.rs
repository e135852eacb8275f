//! How an agent ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cni::lifecycle::Lifecycle;
use crate::cni::{self, Paths};
use crate::enrolment::Announcer;
use crate::proxy::control::Proxies;
use crate::redirect::Redirect;
use crate::source;
use crate::source::kube::Saver;
use crate::telemetry::Telemetry;

/// How long an agent that ends waits until the objects that it read are written.
const SAVE_WITHIN: Duration = Duration::from_secs(2);
/// How long it waits for the access log.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// What is to be done at the end.
pub(super) struct Ending {
    pub(super) redirect: Arc<Redirect>,
    pub(super) proxies: Proxies,
    /// Where there is a cluster.
    pub(super) lifecycle: Arc<Option<Lifecycle>>,
    pub(super) announcer: Announcer,
    pub(super) saver: Option<Saver>,
    /// Where there is a CNI plugin.
    pub(super) paths: Option<Paths>,
    pub(super) state_dir: PathBuf,
    pub(super) telemetry: Telemetry,
}

impl Ending {
    /// Lets connections finish. The pods stay captured, unless Culvert is being removed from the node: then nothing of it
    /// is left.
    pub(super) async fn end(self) {
        let is_over = match &*self.lifecycle {
            Some(lifecycle) => lifecycle.is_over().await,
            None => false,
        };
        if is_over {
            release_all(&self.redirect);
            self.announcer.farewell().await;
        } else {
            // Whoever is there, or comes, need not wait for what this agent still carries.
            let redirect = self.redirect.clone();
            let _ = tokio::task::spawn_blocking(move || redirect.give_up_charge()).await;
        }
        self.proxies.stop_all().await;
        if is_over {
            self.remove();
        } else if let Some(saver) = self.saver {
            // The disk may be what is wrong.
            let _ = tokio::time::timeout(SAVE_WITHIN, saver.save()).await;
        }
        self.redirect.retire();
        self.telemetry.access_log().flush(FLUSH_WITHIN);
    }

    fn remove(&self) {
        if let Err(error) = self.redirect.uninstall() {
            tracing::warn!(%error, "not everything could be removed from this node");
        }
        if let Some(paths) = &self.paths {
            cni::remove(paths);
        }
        source::forget(&self.state_dir);
    }
}

/// New connections of pods go as if there were no mesh; those that are open may finish.
fn release_all(redirect: &Redirect) {
    for uid in redirect.captured() {
        if let Err(error) = redirect.release(&uid) {
            tracing::warn!(%error, "a pod stays captured");
        }
    }
}
