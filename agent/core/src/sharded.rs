//! Hash tables that grow a little at a time.
//!
//! A hash table that is full moves everything it holds into a larger one. For a table of a hundred thousand entries
//! that takes milliseconds, which whoever made the one change that was too many has to wait. Here the entries are
//! spread over many small tables, each of which grows on its own.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash};

/// Enough for a million entries to be moved in less than a millisecond, and few enough to cost nothing when empty.
const SHARDS: usize = 256;

/// Tables `S`, of which each key belongs to one.
#[derive(Debug)]
pub(crate) struct Sharded<S> {
    shards: Box<[S]>,
    hasher: RandomState,
}

/// A map in shards.
pub(crate) type ShardedMap<K, V> = Sharded<HashMap<K, V>>;

impl<S: Default> Default for Sharded<S> {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| S::default()).collect(), hasher: RandomState::new() }
    }
}

impl<S> Sharded<S> {
    /// The table that `key` belongs to.
    pub(crate) fn shard(&self, key: &(impl Hash + ?Sized)) -> &S {
        &self.shards[self.index(key)]
    }

    /// The table that `key` belongs to.
    pub(crate) fn shard_mut(&mut self, key: &(impl Hash + ?Sized)) -> &mut S {
        let index = self.index(key);
        &mut self.shards[index]
    }

    /// Every table.
    #[cfg(test)]
    pub(crate) fn shards(&self) -> impl Iterator<Item = &S> {
        self.shards.iter()
    }

    fn index(&self, key: &(impl Hash + ?Sized)) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }
}

impl<K: Hash + Eq, V> ShardedMap<K, V> {
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shard(key).get(key)
    }

    pub(crate) fn get_mut<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.shard_mut(key).get_mut(key)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.shard_mut(&key).insert(key, value)
    }

    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.shard_mut(key).remove(key)
    }

    /// The value of `key`, made if there is none.
    pub(crate) fn or_default(&mut self, key: K) -> &mut V
    where
        V: Default,
    {
        self.shard_mut(&key).entry(key).or_default()
    }
}

impl<K, V> IntoIterator for ShardedMap<K, V> {
    type Item = (K, V);
    type IntoIter = std::iter::Flatten<std::vec::IntoIter<HashMap<K, V>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.shards.into_vec().into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_found_changed_and_taken_out() {
        let mut map: ShardedMap<String, usize> = ShardedMap::default();
        for n in 0..10_000 {
            assert_eq!(map.insert(n.to_string(), n), None);
        }
        *map.or_default("x".to_owned()) += 7;
        *map.get_mut("7").unwrap() += 1;
        assert_eq!((map.get("7"), map.get("x"), map.get("y")), (Some(&8), Some(&7), None));
        assert_eq!((map.remove("x"), map.remove("x")), (Some(7), None));
        assert_eq!(map.into_iter().map(|(_, n)| n).sum::<usize>(), 10_000 * 9_999 / 2 + 1);
    }

    #[test]
    fn no_table_holds_much_more_than_its_share() {
        let mut map: ShardedMap<usize, ()> = ShardedMap::default();
        for n in 0..SHARDS * 1_000 {
            map.insert(n, ());
        }
        assert!(map.shards.iter().all(|shard| shard.len() < 2_000));
    }
}
