//! Which service accounts run on which node: an index of all pods, and a direct look where the index may be late.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tokio::sync::Semaphore;

use super::refusal::Refusal;

/// Direct looks at once: agents that ask for what is not theirs must not become a load on the API server.
const MAX_LOOKS: usize = 8;
/// The most pods of one namespace on one node that are looked at, and in one answer.
const MAX_LISTED: usize = 5000;
const PAGE: u32 = 500;

/// Where pods run. Cloning is cheap; all clones are one.
#[derive(Clone)]
pub(super) struct Placement(Arc<Inner>);

struct Inner {
    client: kube::Client,
    index: RwLock<Index>,
    looks: Semaphore,
}

impl Placement {
    pub(super) fn new(client: kube::Client) -> Self {
        Self(Arc::new(Inner { client, index: RwLock::default(), looks: Semaphore::new(MAX_LOOKS) }))
    }

    /// Follows all pods until dropped.
    pub(super) async fn follow(self) {
        let pods = Api::<Pod>::all(self.0.client.clone());
        let mut events = pin!(watcher::watcher(pods, super::watching()).default_backoff());
        let mut next = Index::default();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => next = Index::default(),
                Ok(Event::InitApply(pod)) => next.set(&pod),
                Ok(Event::InitDone) => {
                    let index = std::mem::take(&mut next);
                    tracing::info!(pods = index.pods.len(), "indexed the pods by node and service account");
                    *self.index_mut() = index;
                }
                Ok(Event::Apply(pod)) => self.index_mut().set(&pod),
                Ok(Event::Delete(pod)) => self.index_mut().remove(&pod),
                Err(error) => {
                    tracing::warn!(error = %super::explain_watch(&error, "pods"), "the pods may be out of date")
                }
            }
        }
    }

    /// How many pods are known.
    pub(super) fn len(&self) -> usize {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner).pods.len()
    }

    /// The node of pod `namespace/name`, provided that it is still the one of `uid`.
    pub(super) async fn node_of(&self, namespace: &str, name: &str, uid: &str) -> Result<Arc<str>, Refusal> {
        let known = self.index().pods.get(&key(namespace, name)).filter(|placed| &*placed.uid == uid).cloned();
        if let Some(placed) = known {
            return Ok(placed.node);
        }
        let refused = |now: String| Refusal::Pod { pod: format!("{namespace}/{name}"), token: uid.to_owned(), now };
        let _look = self.0.looks.acquire().await.map_err(|_| Refusal::Busy)?;
        let pods = Api::<Pod>::namespaced(self.0.client.clone(), namespace);
        let pod = pods.get_opt(name).await.map_err(|e| Refusal::ApiServer(super::explain(&e, "get", "pods")))?;
        let pod = pod.ok_or_else(|| refused("there is no such pod".to_owned()))?;
        let now = pod.metadata.uid.as_deref().unwrap_or_default();
        if now != uid {
            return Err(refused(format!("the pod of that name has uid {now}")));
        }
        let node = pod.spec.and_then(|spec| spec.node_name).filter(|node| !node.is_empty());
        node.map(Arc::from).ok_or_else(|| refused("it runs on no node yet".to_owned()))
    }

    /// Whether a pod of `account` runs on `node`, by the index or else by a direct look: the index learns of a pod
    /// that was created a moment ago a moment later, and its CNI ADD is waiting.
    pub(super) async fn runs_on(&self, node: &str, namespace: &str, account: &str) -> Result<bool, Refusal> {
        if self.index().runs(node, namespace, account) {
            return Ok(true);
        }
        let _look = self.0.looks.acquire().await.map_err(|_| Refusal::Busy)?;
        let pods = Api::<Pod>::namespaced(self.0.client.clone(), namespace);
        let mut page = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(PAGE);
        for _ in 0..MAX_LISTED / PAGE as usize {
            let list = pods.list(&page).await.map_err(|e| Refusal::ApiServer(super::explain(&e, "list", "pods")))?;
            if list.items.iter().filter_map(Placed::of).any(|placed| &*placed.account == account) {
                return Ok(true);
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(false),
            }
        }
        Ok(false)
    }

    fn index(&self) -> std::sync::RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> std::sync::RwLockWriteGuard<'_, Index> {
        self.0.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Namespace and name.
type PodKey = (Arc<str>, Arc<str>);

/// Node, namespace and account.
type Residence = (Arc<str>, Arc<str>, Arc<str>);

fn key(namespace: &str, name: &str) -> PodKey {
    (namespace.into(), name.into())
}

/// A pod that runs, or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    uid: Arc<str>,
    node: Arc<str>,
    account: Arc<str>,
}

impl Placed {
    /// What is kept of `pod`; nothing of one that is on no node or has ended for good.
    fn of(pod: &Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let node = spec.node_name.as_deref().filter(|node| !node.is_empty())?;
        let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        Some(Self { uid: pod.metadata.uid.as_deref()?.into(), node: node.into(), account: account.into() })
    }
}

/// All pods that run.
#[derive(Debug, Default)]
struct Index {
    pods: HashMap<PodKey, Placed>,
    /// How many there are by node, namespace and account.
    counts: HashMap<Residence, usize>,
    names: Names,
}

impl Index {
    fn set(&mut self, pod: &Pod) {
        self.remove(pod);
        let (Some(placed), Some(name)) = (Placed::of(pod), pod.metadata.name.as_deref()) else { return };
        let namespace = self.names.shared(pod.metadata.namespace.as_deref().unwrap_or_default());
        let node = self.names.shared(&placed.node);
        let account = self.names.shared(&placed.account);
        *self.counts.entry((node.clone(), namespace.clone(), account.clone())).or_default() += 1;
        self.pods.insert((namespace, name.into()), Placed { uid: placed.uid, node, account });
    }

    fn remove(&mut self, pod: &Pod) {
        let meta = &pod.metadata;
        let key = key(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let Some(((namespace, _), placed)) = self.pods.remove_entry(&key) else { return };
        let residence = (placed.node.clone(), namespace.clone(), placed.account.clone());
        if let Some(count) = self.counts.get_mut(&residence) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&residence);
            }
        }
        drop(residence);
        for name in [namespace, placed.node, placed.account] {
            self.names.release(name);
        }
    }

    fn runs(&self, node: &str, namespace: &str, account: &str) -> bool {
        self.counts.contains_key(&(node.into(), namespace.into(), account.into()))
    }
}

/// Each name once: ten thousand pods have a few hundred nodes, namespaces and accounts.
#[derive(Debug, Default)]
struct Names(std::collections::HashSet<Arc<str>>);

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let new: Arc<str> = name.into();
        self.0.insert(new.clone());
        new
    }

    /// Forgets `name` if this was the last that had it.
    fn release(&mut self, name: Arc<str>) {
        let only_this_and_the_table = 2;
        if Arc::strong_count(&name) == only_this_and_the_table {
            self.0.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, account: &str, phase: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}")},
            "spec": {"nodeName": node, "serviceAccountName": account, "containers": []},
            "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn an_account_runs_on_a_node_until_its_last_pod_there_is_gone() {
        let mut index = Index::default();
        index.set(&pod("a", "n1", "cart", "Running"));
        index.set(&pod("b", "n1", "cart", "Pending"));
        index.set(&pod("c", "n2", "web", "Running"));
        assert!(index.runs("n1", "shop", "cart") && index.runs("n2", "shop", "web"));
        assert!(!index.runs("n2", "shop", "cart") && !index.runs("n1", "other", "cart"));
        index.remove(&pod("a", "n1", "cart", "Running"));
        assert!(index.runs("n1", "shop", "cart"));
        index.set(&pod("b", "n1", "cart", "Succeeded"));
        assert!(!index.runs("n1", "shop", "cart"), "a pod that has ended runs nothing");
        index.remove(&pod("never", "n1", "cart", "Running"));
        assert_eq!(index.pods.len(), 1);
        assert_eq!(index.counts.len(), 1);
    }

    #[test]
    fn a_pod_that_comes_again_is_counted_once() {
        let mut index = Index::default();
        for _ in 0..3 {
            index.set(&pod("a", "n1", "cart", "Running"));
        }
        index.set(&pod("a", "n2", "cart", "Running"));
        assert!(index.runs("n2", "shop", "cart") && !index.runs("n1", "shop", "cart"));
        index.remove(&pod("a", "", "", ""));
        assert!(index.counts.is_empty() && index.pods.is_empty());
        assert!(index.names.0.is_empty(), "names of what is gone are forgotten: {:?}", index.names);
    }

    #[test]
    fn a_pod_without_a_node_or_with_none_named_counts_for_nothing() {
        assert_eq!(Placed::of(&pod("a", "", "cart", "Pending")), None);
        assert_eq!(Placed::of(&Pod::default()), None);
        let placed = Placed::of(&pod("a", "n1", "", "Running")).unwrap();
        assert_eq!(&*placed.account, "default");
    }
}
