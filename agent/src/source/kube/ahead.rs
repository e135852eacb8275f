//! Objects that somebody asked the API server for, since the watch had not brought them yet. They go the way of all
//! others, so that it is known of each that it is there, and the watch can take it away again.

use culvert_api::Kind;
use culvert_api::k8s_openapi::api::core::v1::{Namespace, Pod};
use serde::Serialize;
use tokio::sync::mpsc;

/// How many objects wait to be taken in.
const WAITING: usize = 16;

/// An object as the API server has it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(super) kind: Kind,
    pub(super) json: Vec<u8>,
}

/// Takes objects in ahead of the watch. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Ahead(mpsc::Sender<Found>);

impl Found {
    /// What it is.
    #[cfg(test)]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }
}

impl Ahead {
    /// And where they come out.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Found>) {
        let (to, found) = mpsc::channel(WAITING);
        (Self(to), found)
    }

    /// Takes in a pod; without effect where the watch has brought one of its name.
    pub async fn pod(&self, pod: &Pod) {
        self.take(Kind::Pod, pod).await;
    }

    /// Takes in a namespace; without effect where the watch has brought it.
    pub async fn namespace(&self, namespace: &Namespace) {
        self.take(Kind::Namespace, namespace).await;
    }

    async fn take(&self, kind: Kind, object: &impl Serialize) {
        if let Ok(json) = serde_json::to_vec(object) {
            // Without whoever takes it the agent is stopping.
            let _ = self.0.send(Found { kind, json }).await;
        }
    }
}
