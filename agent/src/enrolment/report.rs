//! How each pod is doing, for `/redirection` and readiness.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use culvert_core::workload::NamespacedName;
use serde::Serialize;
use tokio::sync::watch;

/// How many pods are named to whoever asks whether the agent is ready.
const MAX_NOTES: usize = 16;

/// How far a pod has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "lowercase")]
pub enum PodState {
    /// Being taken in.
    Pending,
    /// Captured and served.
    Enrolled,
    /// Not taken in, and why; it is tried again.
    Failed(String),
}

/// One pod's state and since when it has been in it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    uid: String,
    namespace: Arc<str>,
    name: Arc<str>,
    #[serde(flatten)]
    state: PodState,
    /// Seconds since the epoch.
    since: u64,
    /// The network namespace that it was asked to be taken in with, where one was named.
    #[serde(skip)]
    netns: Option<Arc<str>>,
    /// Whether it failed for a reason of its own and was never captured: the agent does what it can without it.
    #[serde(skip)]
    is_own_affair: bool,
}

/// The states of all pods of the node. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct States {
    pods: Arc<Mutex<BTreeMap<String, PodStatus>>>,
    considered: Arc<AtomicBool>,
    changed: Arc<watch::Sender<()>>,
}

impl States {
    pub(crate) fn set(&self, uid: &str, name: &NamespacedName, state: PodState, netns: Option<Arc<str>>) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut states = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = states.get_mut(uid).filter(|known| known.state == state) {
            if known.netns != netns {
                known.netns = netns;
                self.changed.send_replace(());
            }
            return;
        }
        // Trying again after a failure is no news until it succeeds or fails differently; in another network namespace
        // it is another matter.
        let failed_here = |known: &PodStatus| matches!(known.state, PodState::Failed(_)) && known.netns == netns;
        if state == PodState::Pending && states.get(uid).is_some_and(failed_here) {
            return;
        }
        let (namespace, name) = (name.namespace.clone(), name.name.clone());
        states.insert(
            uid.to_owned(),
            PodStatus { uid: uid.to_owned(), namespace, name, state, since, netns, is_own_affair: false },
        );
        self.changed.send_replace(());
    }

    /// What the pod failed by is its own affair: it keeps no agent from being ready, as one such pod would otherwise hold
    /// up every rollout.
    pub(super) fn is_own_affair(&self, uid: &str) {
        let mut states = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = states.get_mut(uid).filter(|known| matches!(known.state, PodState::Failed(_))) {
            known.is_own_affair = true;
        }
    }

    /// What has become of a pod in the network namespace at `netns`; `None` as long as nothing has.
    pub(crate) fn outcome(&self, uid: &str, netns: &str) -> Option<PodState> {
        let states = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let known = states.get(uid).filter(|known| known.netns.as_deref() == Some(netns))?;
        (known.state != PodState::Pending).then(|| known.state.clone())
    }

    /// Told of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn remove(&self, uid: &str) {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Every pod that the mesh wants on this node has a state now.
    pub(super) fn set_considered(&self) {
        self.considered.store(true, Ordering::Release);
    }

    /// Every pod, by uid.
    pub fn list(&self) -> Vec<PodStatus> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Whether every pod of the node is captured and served.
    pub(super) fn are_all_enrolled(&self) -> bool {
        let states = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        self.considered.load(Ordering::Acquire) && states.values().all(|pod| pod.state == PodState::Enrolled)
    }

    /// Why the agent is not ready: the pods that are captured or should be, and are not served.
    pub fn not_ready(&self) -> Vec<String> {
        if !self.considered.load(Ordering::Acquire) {
            return vec!["the pods of this node have not been looked at yet".to_owned()];
        }
        let states = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let reasons = states.values().filter_map(|pod| match &pod.state {
            PodState::Enrolled => None,
            PodState::Pending => Some(format!("pod {}/{} is being enrolled", pod.namespace, pod.name)),
            PodState::Failed(_) if pod.is_own_affair => None,
            PodState::Failed(why) => Some(cannot_be_enrolled(pod, why)),
        });
        reasons.collect()
    }

    /// What has to be said of an agent that is ready: the pods that it cannot take in.
    pub fn notes(&self) -> Vec<String> {
        let states = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let notes = states.values().filter(|pod| pod.is_own_affair).filter_map(|pod| match &pod.state {
            PodState::Failed(why) => Some(cannot_be_enrolled(pod, why)),
            PodState::Pending | PodState::Enrolled => None,
        });
        notes.take(MAX_NOTES).collect()
    }
}

fn cannot_be_enrolled(pod: &PodStatus, why: &str) -> String {
    format!("pod {}/{} cannot be enrolled: {why}", pod.namespace, pod.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_fails_for_its_own_reason_is_noted_and_holds_up_nothing() {
        let (states, name) = (States::default(), NamespacedName::new("shop", "cart"));
        states.set_considered();
        states.set("u", &name, PodState::Failed("gVisor".to_owned()), None);
        states.is_own_affair("u");
        assert!(states.not_ready().is_empty());
        assert_eq!(states.notes(), ["pod shop/cart cannot be enrolled: gVisor"]);
        // Tried again, and failed in the same way: still no news.
        states.set("u", &name, PodState::Pending, None);
        assert!(states.not_ready().is_empty());
        states.set("u", &name, PodState::Enrolled, None);
        states.set("u", &name, PodState::Failed("another".to_owned()), None);
        assert_eq!((states.not_ready().len(), states.notes().len()), (1, 0), "judged anew");
    }

    #[test]
    fn a_failing_pod_is_reported_until_it_succeeds() {
        let states = States::default();
        assert_eq!(states.not_ready(), ["the pods of this node have not been looked at yet"]);
        states.set_considered();
        let name = NamespacedName::new("shop", "cart");
        states.set("u", &name, PodState::Pending, None);
        assert_eq!(states.not_ready(), ["pod shop/cart is being enrolled"]);
        states.set("u", &name, PodState::Failed("no netns".to_owned()), None);
        states.set("u", &name, PodState::Pending, None);
        assert_eq!(states.not_ready(), ["pod shop/cart cannot be enrolled: no netns"]);
        states.set("u", &name, PodState::Enrolled, None);
        assert!(states.not_ready().is_empty());
    }

    #[test]
    fn an_outcome_is_of_one_network_namespace() {
        let (states, name) = (States::default(), NamespacedName::new("shop", "cart"));
        let netns = |path: &str| Some(Arc::from(path));
        assert_eq!(states.outcome("u", "/a"), None);
        states.set("u", &name, PodState::Enrolled, netns("/a"));
        assert_eq!((states.outcome("u", "/a"), states.outcome("u", "/b")), (Some(PodState::Enrolled), None));
        states.set("u", &name, PodState::Pending, netns("/b"));
        assert_eq!((states.outcome("u", "/a"), states.outcome("u", "/b")), (None, None));
        let failed = PodState::Failed("no".to_owned());
        states.set("u", &name, failed.clone(), netns("/b"));
        states.set("u", &name, PodState::Pending, netns("/b"));
        assert_eq!(states.outcome("u", "/b"), Some(failed));
        states.set("u", &name, PodState::Pending, netns("/c"));
        assert_eq!(states.outcome("u", "/b"), None);
    }
}
