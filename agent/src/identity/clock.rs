//! Wall time that tests can stop.

use std::fmt::Debug;
use std::time::SystemTime;

/// Wall time, as certificates are judged by it.
pub trait Clock: Debug + Send + Sync {
    /// The time of day.
    fn now(&self) -> SystemTime;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A clock that advances with tokio's: it stands still, and can be moved, where tokio's time is paused.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    start: SystemTime,
    origin: tokio::time::Instant,
}

impl TokioClock {
    /// A clock that shows `start` now.
    pub fn starting_at(start: SystemTime) -> Self {
        Self { start, origin: tokio::time::Instant::now() }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        self.start + self.origin.elapsed()
    }
}
