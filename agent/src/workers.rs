//! The threads that carry traffic: one single-threaded runtime each.
//!
//! A connection lives on one worker from accept to close, so that serving it never wakes another thread. A pod has a
//! home worker; a busy pod's tunnels spread to the others.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// The number of the worker that this runs on; 0 outside of them.
pub fn current() -> usize {
    CURRENT.get()
}

/// The worker threads. Clones share them; they end with the process, or when the last clone is dropped.
#[derive(Clone)]
pub struct Workers(Arc<Inner>);

struct Inner {
    handles: Vec<Handle>,
    next: AtomicUsize,
    _running: Arc<[oneshot::Sender<()>]>,
}

impl Workers {
    /// Starts `count` workers, at least one.
    ///
    /// # Errors
    /// The process is out of threads or descriptors.
    pub fn start(count: usize) -> io::Result<Self> {
        let mut handles = Vec::new();
        let mut running = Vec::new();
        for index in 0..count.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            handles.push(runtime.handle().clone());
            let (keep, stopped) = oneshot::channel::<()>();
            running.push(keep);
            std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                CURRENT.set(index);
                // Resolves with an error when the sender goes, which is the only way it resolves.
                let _ = runtime.block_on(stopped);
            })?;
        }
        Ok(Self(Arc::new(Inner { handles, next: AtomicUsize::new(0), _running: running.into() })))
    }

    /// One worker: the runtime that calls. For tests, whose clock it then shares.
    #[cfg(test)]
    pub(crate) fn here() -> Self {
        Self(Arc::new(Inner { handles: vec![Handle::current()], next: AtomicUsize::new(0), _running: Arc::new([]) }))
    }

    /// Worker `index` alone: what is handed to it stays on that thread.
    #[must_use]
    pub fn only(&self, index: usize) -> Self {
        let handles = vec![self.get(index).clone()];
        Self(Arc::new(Inner { handles, next: AtomicUsize::new(0), _running: self.0._running.clone() }))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.handles.len()
    }

    /// The next worker in turn: a home for a pod.
    pub fn assign(&self) -> usize {
        self.0.next.fetch_add(1, Ordering::Relaxed) % self.count()
    }

    /// Worker `index`, counted round.
    pub fn get(&self, index: usize) -> &Handle {
        &self.0.handles[index % self.count()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_worker_knows_its_number_and_one_alone_is_still_itself() {
        let workers = Workers::start(3).unwrap();
        for index in 0..3 {
            assert_eq!(workers.get(index).spawn(async { current() }).await.unwrap(), index);
            let alone = workers.only(index);
            assert_eq!((alone.count(), alone.get(7).spawn(async { current() }).await.unwrap()), (1, index));
        }
    }
}
