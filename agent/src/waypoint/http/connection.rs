//! One connection of a client, as its requests see it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::wire::Watch;
use crate::telemetry::requests::{RequestLabels, RequestSeries, RequestSizes};
use crate::waypoint::session::Session;

/// One connection of a client.
pub(super) struct Connection {
    pub(super) session: Session,
    /// What is known of its bytes, of HTTP/1.
    pub(super) watch: Arc<Watch>,
    /// Requests under way.
    active: AtomicUsize,
    /// When the last one ended.
    last: Mutex<Instant>,
    /// Where the last one was counted: the next is often counted there too.
    counted: Mutex<Option<Arc<RequestSeries>>>,
}

impl Connection {
    pub(super) fn new(session: Session, watch: Arc<Watch>) -> Arc<Self> {
        let last = Mutex::new(Instant::now());
        Arc::new(Self { session, watch, active: AtomicUsize::new(0), last, counted: Mutex::default() })
    }

    /// Since when it has had no request; `None` while it has.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let active = self.active.load(Ordering::Relaxed);
        (active == 0).then(|| *self.last.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A request has come.
    pub(super) fn entered(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is over: counts it.
    pub(super) fn count(&self, labels: &RequestLabels, sizes: &RequestSizes) {
        if self.active.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let series = match &mut *counted {
            Some(series) if series.is_of(labels) => series,
            other => other.insert(self.session.shared.telemetry.requests().series(labels)),
        };
        series.add(sizes);
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("active", &self.active).finish_non_exhaustive()
    }
}
