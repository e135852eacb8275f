//! One copy of each string and label set: a mesh of 100 000 pods has few different ones.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;

use super::facts::TemplateFacts;
use crate::identity::Identity;
use crate::sharded::Sharded;
use crate::workload::{Labels, Locality, Template};

/// Keeps values that are in use, so that equal ones are shared.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    strings: Pool<str>,
    labels: Pool<Labels>,
    localities: Pool<Locality>,
    ports: Pool<[(Arc<str>, u16)]>,
    port_maps: Pool<[(u16, u16)]>,
    identities: Pool<Identity>,
    template_facts: Pool<TemplateFacts>,
    templates: Pool<Template>,
}

impl Interner {
    pub(crate) fn string(&mut self, text: &str) -> Arc<str> {
        self.strings.share(text, || text.into())
    }

    pub(crate) fn labels(&mut self, labels: Option<&BTreeMap<String, String>>) -> Arc<Labels> {
        let labels: Labels =
            labels.into_iter().flatten().map(|(key, value)| (self.string(key), self.string(value))).collect();
        self.labels.own(labels)
    }

    pub(crate) fn locality(&mut self, locality: Locality) -> Arc<Locality> {
        self.localities.own(locality)
    }

    pub(crate) fn ports(&mut self, ports: &[(Arc<str>, u16)]) -> Arc<[(Arc<str>, u16)]> {
        self.ports.share(ports, || ports.into())
    }

    pub(crate) fn port_map(&mut self, ports: &[(u16, u16)]) -> Arc<[(u16, u16)]> {
        self.port_maps.share(ports, || ports.into())
    }

    pub(crate) fn template_facts(&mut self, template: TemplateFacts) -> Arc<TemplateFacts> {
        self.template_facts.own(template)
    }

    pub(crate) fn template(&mut self, template: Template) -> Arc<Template> {
        self.templates.own(template)
    }

    pub(crate) fn identity(&mut self, identity: Identity) -> Arc<Identity> {
        self.identities.own(identity)
    }
}

/// Values of one type, in shards: each lets go on its own of what is no longer in use, so that no change has to wait
/// until all have been looked at.
#[derive(Debug)]
struct Pool<T: ?Sized>(Sharded<Shard<T>>);

#[derive(Debug)]
struct Shard<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// The size at which those no longer in use are let go.
    sweep_at: usize,
}

/// The size at which a shard is first looked through.
const FIRST_SWEEP: usize = 32;

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self(Sharded::default())
    }
}

impl<T: ?Sized> Default for Shard<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), sweep_at: FIRST_SWEEP }
    }
}

impl<T: ?Sized + Hash + Eq> Pool<T>
where
    Arc<T>: Borrow<T>,
{
    fn share(&mut self, value: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        let shard = self.0.shard_mut(value);
        match shard.known.get(value) {
            Some(known) => known.clone(),
            None => shard.keep(make()),
        }
    }
}

impl<T: Hash + Eq> Pool<T> {
    fn own(&mut self, value: T) -> Arc<T> {
        let shard = self.0.shard_mut(&value);
        match shard.known.get(&value) {
            Some(known) => known.clone(),
            None => shard.keep(Arc::new(value)),
        }
    }
}

impl<T: ?Sized + Hash + Eq> Shard<T> {
    fn keep(&mut self, value: Arc<T>) -> Arc<T> {
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = (self.known.len() * 2).max(FIRST_SWEEP);
        }
        self.known.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_are_one() {
        let mut interner = Interner::default();
        assert!(Arc::ptr_eq(&interner.string("a"), &interner.string("a")));
    }

    #[test]
    fn strings_out_of_use_are_let_go() {
        let mut interner = Interner::default();
        for i in 0..100_000 {
            interner.string(&i.to_string());
        }
        let kept: usize = interner.strings.0.shards().map(|shard| shard.known.len()).sum();
        let shards = interner.strings.0.shards().count();
        assert!(kept <= shards * FIRST_SWEEP, "{kept} of {shards} shards");
    }
}
