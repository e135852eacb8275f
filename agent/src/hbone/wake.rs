//! Which of a tunnel's streams want attention.
//!
//! A tunnel polls only the sockets that something happened to, rather than all of them each time: each stream's waker
//! notes the stream in a list and wakes the tunnel's task.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};

/// The list of streams to attend to, shared with their wakers.
#[derive(Default)]
pub(super) struct ReadyList(Mutex<Ready>);

#[derive(Default)]
struct Ready {
    streams: Vec<usize>,
    task: Option<Waker>,
}

impl ReadyList {
    /// A waker for the stream in slot `stream`.
    pub(super) fn waker(self: &Arc<Self>, stream: usize) -> Arc<StreamWaker> {
        Arc::new(StreamWaker { stream, queued: AtomicBool::new(false), list: self.clone() })
    }

    /// Notes which task to wake. Called on every poll, before [`ReadyList::take`].
    pub(super) fn register(&self, task: &Waker) {
        let mut ready = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            ready.task = Some(task.clone());
        }
    }

    /// Moves the waiting streams to `into`.
    pub(super) fn take(&self, into: &mut Vec<usize>) {
        let mut ready = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut ready.streams);
    }
}

/// The waker of one stream.
pub(super) struct StreamWaker {
    stream: usize,
    queued: AtomicBool,
    list: Arc<ReadyList>,
}

impl StreamWaker {
    /// Says that the stream has been taken off the list and is being attended to.
    pub(super) fn attended(&self) {
        self.queued.store(false, Ordering::Release);
    }

    /// Puts the stream on the list without waking the task: for use by the task itself.
    pub(super) fn queue(&self) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.list.0.lock().unwrap_or_else(PoisonError::into_inner).streams.push(self.stream);
        }
    }
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let task = {
            let mut ready = self.list.0.lock().unwrap_or_else(PoisonError::into_inner);
            ready.streams.push(self.stream);
            ready.task.clone()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}
