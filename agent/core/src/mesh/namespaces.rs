//! What belongs to a namespace.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Mesh;
use super::selectors::{LabelIndex, SelectorIndex};
use crate::service::ServiceKey;
use crate::translate::facts::NamespaceFacts;

/// A namespace as the writer keeps it; its object may come after, or go before, those within.
#[derive(Debug, Default)]
pub(super) struct NamespaceState {
    facts: Option<NamespaceFacts>,
    pub(super) labels: LabelIndex,
    pub(super) services: HashSet<ServiceKey>,
    pub(super) selectors: SelectorIndex<ServiceKey>,
}

#[derive(Debug, Default)]
pub(super) struct Namespaces(HashMap<Arc<str>, NamespaceState>);

impl Namespaces {
    pub(super) fn get(&self, name: &str) -> Option<&NamespaceState> {
        self.0.get(name)
    }

    pub(super) fn facts(&self, name: &str) -> Option<&NamespaceFacts> {
        self.0.get(name)?.facts.as_ref()
    }

    pub(super) fn entry(&mut self, name: &Arc<str>) -> &mut NamespaceState {
        self.0.entry(name.clone()).or_default()
    }

    pub(super) fn forget_if_empty(&mut self, name: &str) {
        let is_empty = |state: &NamespaceState| {
            state.facts.is_none() && state.services.is_empty() && state.labels.all().next().is_none()
        };
        if self.0.get(name).is_some_and(is_empty) {
            self.0.remove(name);
        }
    }

    pub(super) fn into_facts(self) -> impl Iterator<Item = (Arc<str>, NamespaceFacts)> {
        self.0.into_iter().filter_map(|(name, state)| Some((name, state.facts?)))
    }
}

impl Mesh {
    /// Puts `facts` in the place of what was known of a namespace.
    pub(super) fn set_namespace(&mut self, name: Arc<str>, facts: Option<NamespaceFacts>) {
        let state = self.namespaces.entry(&name);
        if state.facts == facts {
            return self.namespaces.forget_if_empty(&name);
        }
        for uid in state.labels.all() {
            self.dirty.workloads.entry(uid.clone()).or_insert(false);
        }
        self.dirty.services.extend(state.services.iter().cloned());
        match &facts {
            Some(facts) => self.current.namespaces.insert(name.clone(), facts.labels.clone()),
            None => self.current.namespaces.remove(&name),
        };
        state.facts = facts;
        self.namespaces.forget_if_empty(&name);
    }
}
