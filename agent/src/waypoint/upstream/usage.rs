//! What is under way to a cluster, and the limits that it is kept within (Envoy's circuit breakers).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use culvert_core::traffic::policy::{ConnectionPool, Overflow, RetryBudget, Usage};

/// Counts of what is under way, over all workers, and of what was not let through. A place is taken by adding to a
/// count and given back by who took it, so that no limit is exceeded however many ask at once.
#[derive(Debug, Default)]
pub(super) struct Counts {
    connections: AtomicU32,
    pending: AtomicU32,
    requests: AtomicU32,
    retries: AtomicU32,
    pub(super) totals: Totals,
}

/// What has been so far.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) connections: AtomicU64,
    pub(super) connect_failures: AtomicU64,
    pub(super) connect_timeouts: AtomicU64,
    pub(super) requests: AtomicU64,
    pub(super) retries: AtomicU64,
    pub(super) connection_overflows: AtomicU64,
    pub(super) pending_overflows: AtomicU64,
    pub(super) request_overflows: AtomicU64,
    pub(super) retry_overflows: AtomicU64,
}

impl Totals {
    fn overflowed(&self, overflow: Overflow) {
        let total = match overflow {
            Overflow::Connections => &self.connection_overflows,
            Overflow::Pending => &self.pending_overflows,
            Overflow::Requests => &self.request_overflows,
            Overflow::Retries => &self.retry_overflows,
        };
        add(total);
    }
}

/// One more.
pub(super) fn add(total: &AtomicU64) {
    total.fetch_add(1, Ordering::Relaxed);
}

impl Counts {
    /// What is under way now.
    pub(super) fn usage(&self) -> Usage {
        Usage {
            connections: self.connections.load(Ordering::Relaxed),
            pending: self.pending.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
        }
    }

    /// Takes the place of a connection.
    pub(super) fn take_connection(&self, pool: &ConnectionPool) -> Result<(), Overflow> {
        let connections = self.connections.fetch_add(1, Ordering::Relaxed);
        let admitted = pool.admit_connection(&Usage { connections, ..Usage::default() });
        self.settle(admitted, &self.connections, &self.totals.connections)
    }

    /// Takes the place of a connection that there has to be, or nothing would ever go through.
    pub(super) fn take_first_connection(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        add(&self.totals.connections);
    }

    pub(super) fn end_connection(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes the place of a request that has its connection.
    pub(super) fn take_request(&self, pool: &ConnectionPool) -> Result<(), Overflow> {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed);
        let admitted = pool.admit_request(&Usage { requests, ..Usage::default() }, false);
        self.settle(admitted, &self.requests, &self.totals.requests)
    }

    pub(super) fn end_request(&self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes the place of a request that waits for a connection.
    pub(super) fn take_pending(&self, pool: &ConnectionPool) -> Result<(), Overflow> {
        let pending = self.pending.fetch_add(1, Ordering::Relaxed);
        let admitted = pool.admit_request(&Usage { pending, ..self.usage() }, true);
        if let Err(overflow) = admitted {
            self.pending.fetch_sub(1, Ordering::Relaxed);
            self.totals.overflowed(overflow);
        }
        admitted
    }

    pub(super) fn end_pending(&self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
    }

    /// Takes the place of a retry.
    pub(super) fn take_retry(&self, pool: &ConnectionPool, budget: Option<&RetryBudget>) -> Result<(), Overflow> {
        let retries = self.retries.fetch_add(1, Ordering::Relaxed);
        let admitted = pool.admit_retry(&Usage { retries, ..self.usage() }, budget);
        self.settle(admitted, &self.retries, &self.totals.retries)
    }

    pub(super) fn end_retry(&self) {
        self.retries.fetch_sub(1, Ordering::Relaxed);
    }

    /// Gives a place back that there was none of.
    fn settle(&self, admitted: Result<(), Overflow>, count: &AtomicU32, total: &AtomicU64) -> Result<(), Overflow> {
        match admitted {
            Ok(()) => add(total),
            Err(overflow) => {
                count.fetch_sub(1, Ordering::Relaxed);
                self.totals.overflowed(overflow);
            }
        }
        admitted
    }
}
