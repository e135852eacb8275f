//! The objects of one resource: enough of each to tell that it has changed or is gone, and no more.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher as _};

use super::journal::Place;

/// What is kept of an object.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    /// Of what is read of it.
    pub(super) digest: u64,
    /// Where it is on disk.
    pub(super) place: Place,
    /// The list that it was last in.
    pub(super) epoch: u32,
}

/// Tells what was read of an object from what was read of it at another time.
pub(super) fn digest(json: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(json);
    hasher.finish()
}

/// The objects of one resource, by `namespace/name` or `name`.
#[derive(Debug, Default)]
pub(super) struct Entries {
    objects: HashMap<Box<str>, Entry>,
    /// Those that could not be read, and the list that they were last in.
    rejected: HashMap<Box<str>, u32>,
    epoch: u32,
    /// Whether the list that is being read holds an object of which not even the name could be read.
    has_nameless: bool,
}

impl Entries {
    /// The objects that an earlier agent knew.
    pub(super) fn remembered(objects: HashMap<Box<str>, Entry>) -> Self {
        Self { objects, ..Self::default() }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether it is there, or was but cannot be read.
    pub(super) fn has(&self, key: &str) -> bool {
        self.objects.contains_key(key) || self.rejected.contains_key(key)
    }

    /// All of them.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Entry)> {
        self.objects.iter_mut().map(|(key, entry)| (&**key, entry))
    }

    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.has_nameless = false;
    }

    /// The list is complete: what was not in it is gone. If it held an object without a name, that may be any of those.
    pub(super) fn end(&mut self) -> Gone {
        if self.has_nameless {
            return Gone::default();
        }
        let epoch = self.epoch;
        let objects = self.objects.extract_if(|_, entry| entry.epoch != epoch).map(|(key, _)| key).collect();
        let rejected = self.rejected.extract_if(|_, last| *last != epoch).map(|(key, _)| key).collect();
        self.objects.shrink_to(self.objects.len() * 2);
        Gone { objects, rejected }
    }

    /// Whether `key` is there as it was; it is in the list that is being read.
    pub(super) fn is_as_it_was(&mut self, key: &str, digest: u64) -> bool {
        match self.objects.get_mut(key) {
            Some(entry) => {
                entry.epoch = self.epoch;
                entry.digest == digest && !self.rejected.contains_key(key)
            }
            None => false,
        }
    }

    /// Puts `key` there; whether it had been rejected.
    pub(super) fn put(&mut self, key: &str, digest: u64, place: Place) -> bool {
        let entry = Entry { digest, place, epoch: self.epoch };
        match self.objects.get_mut(key) {
            Some(known) => *known = entry,
            None => {
                self.objects.insert(key.into(), entry);
            }
        }
        self.rejected.remove(key).is_some()
    }

    /// Notes that `key` cannot be read as it is now; whether it stays as it was, if it was anything.
    pub(super) fn reject(&mut self, key: &str) -> bool {
        self.rejected.insert(key.into(), self.epoch);
        match self.objects.get_mut(key) {
            Some(entry) => {
                entry.epoch = self.epoch;
                true
            }
            None => false,
        }
    }

    /// Notes that there is an object which cannot be told from others.
    pub(super) fn reject_nameless(&mut self) {
        self.has_nameless = true;
    }

    /// Takes `key` away: whether it was there, and whether it had been rejected.
    pub(super) fn remove(&mut self, key: &str) -> (bool, bool) {
        (self.objects.remove(key).is_some(), self.rejected.remove(key).is_some())
    }
}

/// What a list did not hold any more.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// Objects.
    pub(super) objects: Vec<Box<str>>,
    /// Objects that could not be read.
    pub(super) rejected: Vec<Box<str>>,
}
