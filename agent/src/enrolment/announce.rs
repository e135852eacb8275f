//! What the cluster is told of a pod's enrolment: the annotation `ambient.istio.io/redirection` on the pod's status,
//! and Events. Never in the way of the data path: saying something only queues it, and what cannot be delivered waits
//! for the API server, up to a bound.

mod events;
mod worker;

use std::collections::HashSet;
use std::time::Duration;

use culvert_core::workload::NamespacedName;
use tokio::sync::{mpsc, oneshot};

use crate::cluster::Cluster;

/// How much may wait to be said: more than a node has pods.
const QUEUE: usize = 4096;

/// What has become of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is captured and served.
    Enrolled,
    /// It could not be taken in, for this reason; it is tried again.
    Failed(String),
    /// It cannot be in the mesh as it is, for this reason.
    Refused(String),
    /// It is not in the mesh any more.
    Left,
}

impl Said {
    /// The value of the annotation.
    fn annotation(&self) -> Option<&'static str> {
        match self {
            Self::Enrolled => Some("enabled"),
            Self::Failed(_) => Some("pending"),
            Self::Refused(_) | Self::Left => None,
        }
    }
}

/// What is said.
#[derive(Debug)]
enum Saying {
    /// Of one pod.
    Of {
        uid: String,
        /// `None` where the name is known already.
        pod: Option<NamespacedName>,
        said: Said,
    },
    /// These pods belong to the mesh; the others of the node do not, whatever an earlier agent wrote on them.
    Wanted(HashSet<String>),
    /// None does any more: the agent is uninstalled. Answered when that is said.
    Farewell(oneshot::Sender<()>),
}

/// Says what becomes of pods. Clones are one.
#[derive(Clone, Debug)]
pub struct Announcer(Option<mpsc::Sender<Saying>>);

impl Announcer {
    /// Nobody is told: there is no API server.
    pub fn silent() -> Self {
        Self(None)
    }

    /// Tells the API server of `cluster` about the pods of `node`. Needs a tokio runtime.
    pub fn start(cluster: Cluster, node: String) -> Self {
        let (sender, sayings) = mpsc::channel(QUEUE);
        tokio::spawn(worker::run(cluster, node, sayings));
        Self(Some(sender))
    }

    /// Queues something to be said of the pod `uid`; without its name only if something was said of it before.
    pub fn say(&self, uid: &str, pod: Option<&NamespacedName>, said: Said) {
        self.queue(|| Saying::Of { uid: uid.to_owned(), pod: pod.cloned(), said });
    }

    /// Queues that of the node's pods only these belong to the mesh: others lose the annotation, if they have it.
    pub fn wanted(&self, uids: impl Iterator<Item = String>) {
        self.queue(|| Saying::Wanted(uids.collect()));
    }

    /// Takes the annotation from every pod, and waits a little for the API server to have done so.
    pub async fn farewell(&self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let (done, is_done) = oneshot::channel();
        self.queue(|| Saying::Farewell(done));
        if self.0.is_some() && tokio::time::timeout(PATIENCE, is_done).await.is_err() {
            tracing::warn!("the API server does not answer: pods keep the annotation ambient.istio.io/redirection");
        }
    }

    fn queue(&self, saying: impl FnOnce() -> Saying) {
        let Some(sender) = &self.0 else { return };
        if sender.try_send(saying()).is_err() {
            tracing::warn!("too much waits to be said to the API server: a pod's annotation may be out of date");
        }
    }
}
