//! One of something for each worker.

use crate::workers;

/// A value for each worker, which only that worker touches as long as it is asked for here.
#[derive(Debug)]
pub(super) struct PerWorker<T>(Box<[T]>);

impl<T> PerWorker<T> {
    /// What `make` gives for each of `count` workers.
    pub(super) fn new(count: usize, make: impl FnMut(usize) -> T) -> Self {
        Self((0..count.max(1)).map(make).collect())
    }

    /// The number of the worker that calls, and its value.
    pub(super) fn here(&self) -> (usize, &T) {
        let at = workers::current() % self.0.len();
        (at, &self.0[at])
    }

    /// That of worker `at`.
    pub(super) fn of(&self, at: usize) -> &T {
        &self.0[at % self.0.len()]
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }
}
