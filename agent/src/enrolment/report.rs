//! How each pod is doing, for `/redirection` and readiness.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use culvert_core::workload::NamespacedName;
use serde::Serialize;

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
}

/// The states of all pods of the node. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct States {
    pods: Arc<Mutex<BTreeMap<String, PodStatus>>>,
    considered: Arc<AtomicBool>,
}

impl States {
    pub(super) fn set(&self, uid: &str, name: &NamespacedName, state: PodState) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut states = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if states.get(uid).is_some_and(|known| known.state == state) {
            return;
        }
        // Trying again after a failure is no news until it succeeds or fails differently.
        if state == PodState::Pending && states.get(uid).is_some_and(|known| matches!(known.state, PodState::Failed(_)))
        {
            return;
        }
        let (namespace, name) = (name.namespace.clone(), name.name.clone());
        states.insert(uid.to_owned(), PodStatus { uid: uid.to_owned(), namespace, name, state, since });
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

    /// Why the agent is not ready: the pods that are captured or should be, and are not served.
    pub fn not_ready(&self) -> Vec<String> {
        if !self.considered.load(Ordering::Acquire) {
            return vec!["the pods of this node have not been looked at yet".to_owned()];
        }
        let states = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let reasons = states.values().filter_map(|pod| match &pod.state {
            PodState::Enrolled => None,
            PodState::Pending => Some(format!("pod {}/{} is being enrolled", pod.namespace, pod.name)),
            PodState::Failed(why) => Some(format!("pod {}/{} cannot be enrolled: {why}", pod.namespace, pod.name)),
        });
        reasons.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_pod_is_reported_until_it_succeeds() {
        let states = States::default();
        assert_eq!(states.not_ready(), ["the pods of this node have not been looked at yet"]);
        states.set_considered();
        let name = NamespacedName::new("shop", "cart");
        states.set("u", &name, PodState::Pending);
        assert_eq!(states.not_ready(), ["pod shop/cart is being enrolled"]);
        states.set("u", &name, PodState::Failed("no netns".to_owned()));
        states.set("u", &name, PodState::Pending);
        assert_eq!(states.not_ready(), ["pod shop/cart cannot be enrolled: no netns"]);
        states.set("u", &name, PodState::Enrolled);
        assert!(states.not_ready().is_empty());
    }
}
