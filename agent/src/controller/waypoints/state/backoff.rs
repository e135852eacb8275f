//! Waiting after what failed, and after what somebody else keeps changing.

use std::time::Duration;

use tokio::time::Instant;

/// The first wait; it doubles.
const MIN_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(5 * 60);
/// What was written and stayed for this long is not fought over.
const PEACE: Duration = Duration::from_secs(60);
/// The longest sleep where nothing is due.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// How long to wait.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    tried: Option<Instant>,
    not_before: Option<Instant>,
}

impl Backoff {
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// When it is, if it is not.
    pub(super) fn not_before(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|at| *at > now)
    }

    /// It was tried.
    pub(super) fn tried(&mut self, succeeded: bool, now: Instant) {
        if succeeded {
            // Another of the same Gateway's objects may have failed just now: that wait stays.
            if self.tried.is_some_and(|tried| now.saturating_duration_since(tried) >= PEACE) {
                self.failures = 0;
            }
        } else {
            self.fail(now);
        }
        self.tried = Some(now);
    }

    /// Somebody else has changed what was written: the sooner after that, the longer it waits.
    pub(super) fn disturbed(&mut self) {
        if let Some(tried) = self.tried {
            self.fail(tried);
        }
    }

    fn fail(&mut self, now: Instant) {
        let wait = MIN_WAIT.saturating_mul(1 << self.failures.min(16)).min(MAX_WAIT);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + wait);
    }
}
