//! Whether an agent that is asked to stop is being replaced or uninstalled.
//!
//! Through an upgrade everything stays: pods captured, plugin installed. With its DaemonSet gone, or on its way, nothing
//! may be left on the node. The API server says which; when it does not answer, everything stays, since a node that is
//! left with a plugin can be cleaned (`culvert cni uninstall`), and pods in clear cannot be called back. An answer of 401
//! or 403 says nothing either: the token of an agent whose pod was deleted by force is void at once, and so is every
//! agent's whose role somebody removed. Whoever uninstalls keeps both until the agents are gone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_api::k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;

use crate::cluster::Cluster;

/// How long the API server has to answer: an agent that stops is not waited for long.
const ANSWER: Duration = Duration::from_secs(5);

/// The agent's own DaemonSet.
#[derive(Debug)]
pub struct Lifecycle {
    cluster: Cluster,
    daemonset: String,
    was_there: AtomicBool,
}

/// What the API server says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    There,
    Gone,
    Forbidden,
    Silent,
}

impl Lifecycle {
    /// By the DaemonSet of this name in the agent's own namespace.
    pub fn new(cluster: Cluster, daemonset: String) -> Self {
        Self { cluster, daemonset, was_there: AtomicBool::new(false) }
    }

    /// To be called when the agent starts: remembers whether there is one.
    pub async fn begin(&self) {
        let word = self.ask().await;
        self.was_there.store(word == Word::There, Ordering::Relaxed);
        if word == Word::Forbidden {
            tracing::warn!(
                "cannot get daemonsets.apps: when Culvert is uninstalled, pods of this node stay captured; install \
                 the chart with the value rbac.create=true"
            );
        }
    }

    /// Whether nothing of the agent is to stay on the node.
    pub async fn is_over(&self) -> bool {
        let (word, was_there) = (self.ask().await, self.was_there.load(Ordering::Relaxed));
        let over = is_over(word, was_there);
        if over {
            tracing::info!(daemonset = self.daemonset, "uninstalled: nothing stays on this node");
        } else if was_there && word == Word::Forbidden {
            tracing::warn!(
                daemonset = self.daemonset,
                "may not be looked for any more: the node is left as it is, its pods captured; if Culvert was \
                 uninstalled, run `culvert cni uninstall` on it"
            );
        }
        over
    }

    async fn ask(&self) -> Word {
        let client = self.cluster.client();
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), client.default_namespace());
        let answer = tokio::time::timeout(ANSWER, sets.get_opt(&self.daemonset)).await;
        answer.map_or(Word::Silent, |answer| Word::of(&answer))
    }
}

impl Word {
    fn of(answer: &kube::Result<Option<DaemonSet>>) -> Self {
        match answer {
            Ok(Some(set)) if set.metadata.deletion_timestamp.is_none() => Self::There,
            Ok(_) => Self::Gone,
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => Self::Forbidden,
            Err(_) => Self::Silent,
        }
    }
}

fn is_over(word: Word, was_there: bool) -> bool {
    match word {
        Word::There | Word::Silent | Word::Forbidden => false,
        // Never there: started by hand, and stopped by hand.
        Word::Gone => was_there,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certainly_uninstalled_is_removed() {
        for (word, was_there, expected) in [
            (Word::There, true, false),
            (Word::Gone, true, true),
            (Word::Forbidden, true, false),
            (Word::Forbidden, false, false),
            (Word::Silent, true, false),
            (Word::Gone, false, false),
        ] {
            assert_eq!(is_over(word, was_there), expected, "{word:?} {was_there}");
        }
    }

    #[test]
    fn an_agent_whose_pod_was_deleted_by_force_or_whose_role_is_gone_leaves_the_node_as_it_is() {
        for code in [401, 403] {
            let status = kube::core::Status { code, ..Default::default() };
            let word = Word::of(&Err(kube::Error::Api(Box::new(status))));
            assert_eq!((word, is_over(word, true)), (Word::Forbidden, false), "{code}");
        }
        assert!(is_over(Word::of(&Ok(None)), true));
    }
}
