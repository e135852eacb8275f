//! Which selectors match a set of labels, and which labels a selector matches, without trying them all.

use std::collections::{BTreeSet, HashMap as StdHashMap, HashSet};
use std::sync::Arc;

use imbl::HashMap;

use crate::workload::{Labels, WorkloadUid};

type Pair = (Arc<str>, Arc<str>);

/// Whether every pair of `selector` is in `labels`.
pub(super) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Things that select by labels, each kept under one pair of its selector: what matches a workload is found with one
/// lookup for each of its labels.
#[derive(Clone, Debug)]
pub(super) struct SelectorIndex<T> {
    buckets: HashMap<Pair, Arc<Bucket<T>>>,
}

type Bucket<T> = Vec<(Arc<Labels>, T)>;

impl<T> Default for SelectorIndex<T> {
    fn default() -> Self {
        Self { buckets: HashMap::new() }
    }
}

impl<T: Clone + PartialEq> SelectorIndex<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    /// Adds `value`; an empty selector selects nothing.
    pub(super) fn insert(&mut self, selector: &Arc<Labels>, value: T) {
        let size = |pair: &Pair| self.buckets.get(pair).map_or(0, |bucket| bucket.len());
        let Some(pair) = selector.iter().map(|(k, v)| (k.clone(), v.clone())).min_by_key(size) else { return };
        let bucket = self.buckets.entry(pair).or_default();
        Arc::make_mut(bucket).push((selector.clone(), value));
    }

    pub(super) fn remove(&mut self, selector: &Labels, value: &T) {
        for pair in selector.iter().map(|(k, v)| (k.clone(), v.clone())) {
            let Some(bucket) = self.buckets.get_mut(&pair) else { continue };
            let Some(at) = bucket.iter().position(|(_, known)| known == value) else { continue };
            Arc::make_mut(bucket).swap_remove(at);
            if bucket.is_empty() {
                self.buckets.remove(&pair);
            }
            return;
        }
    }

    /// What selects `labels`, in no particular order.
    pub(super) fn matching(&self, labels: &Labels) -> impl Iterator<Item = &T> {
        labels
            .iter()
            .filter_map(|(key, value)| self.buckets.get(&(key.clone(), value.clone())))
            .flat_map(|bucket| bucket.iter())
            .filter(move |(selector, _)| selects(selector, labels))
            .map(|(_, value)| value)
    }
}

/// Workloads by their labels. Those of one controller share a label set, so that a selector is tried once for all of
/// them.
#[derive(Debug, Default)]
pub(super) struct LabelIndex {
    sets: StdHashMap<Arc<Labels>, BTreeSet<WorkloadUid>>,
    pairs: StdHashMap<Pair, HashSet<Arc<Labels>>>,
}

impl LabelIndex {
    pub(super) fn insert(&mut self, labels: &Arc<Labels>, uid: WorkloadUid) {
        let set = self.sets.entry(labels.clone()).or_default();
        if set.is_empty() {
            for (key, value) in &**labels {
                self.pairs.entry((key.clone(), value.clone())).or_default().insert(labels.clone());
            }
        }
        set.insert(uid);
    }

    pub(super) fn remove(&mut self, labels: &Arc<Labels>, uid: &WorkloadUid) {
        let Some(set) = self.sets.get_mut(labels) else { return };
        set.remove(uid);
        if !set.is_empty() {
            return;
        }
        self.sets.remove(labels);
        for (key, value) in &**labels {
            let pair = (key.clone(), value.clone());
            let Some(sets) = self.pairs.get_mut(&pair) else { continue };
            sets.remove(labels);
            if sets.is_empty() {
                self.pairs.remove(&pair);
            }
        }
    }

    /// Every workload.
    pub(super) fn all(&self) -> impl Iterator<Item = &WorkloadUid> {
        self.sets.values().flatten()
    }

    /// The workloads that `selector` selects; none for an empty one.
    pub(super) fn matching(&self, selector: &Labels) -> impl Iterator<Item = &WorkloadUid> {
        let sets = |(key, value): (&Arc<str>, &Arc<str>)| self.pairs.get(&(key.clone(), value.clone()));
        let fewest = match selector.iter().map(sets).collect::<Option<Vec<_>>>() {
            Some(candidates) => candidates.into_iter().min_by_key(|sets| sets.len()),
            None => None,
        };
        fewest
            .into_iter()
            .flatten()
            .filter(|labels| selects(selector, labels))
            .filter_map(|labels| self.sets.get(labels))
            .flatten()
    }
}
