//! How long a connection may last, and be silent.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// What is longer is for ever: clocks end.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long a connection may last; by default for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// How long nothing may be sent in either direction.
    pub(crate) idle: Option<Duration>,
    /// How long it may be open.
    pub(crate) open: Option<Duration>,
}

/// Limits that apply from when the connection was made.
pub(super) struct Running {
    limits: Limits,
    opened: Instant,
    /// When something was sent last.
    heard: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Limits {
    /// `None` where there is nothing to watch.
    pub(super) fn start(self) -> Option<Box<Running>> {
        let watched = |limit: Option<Duration>| limit.filter(|limit| *limit <= LONGEST);
        let limits = Self { idle: watched(self.idle), open: watched(self.open) };
        let first = [limits.idle, limits.open].into_iter().flatten().min()?;
        let now = Instant::now();
        let timer = Box::pin(sleep_until(now + first));
        Some(Box::new(Running { limits, opened: now, heard: now, timer }))
    }
}

impl Running {
    /// Which limit is reached; `moved`: something was sent just now.
    pub(super) fn poll_reached(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<Cow<'static, str>> {
        if moved {
            self.heard = Instant::now();
        }
        // The timer is not touched whenever something is sent: it is looked at the clock when it fires.
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if let Some(open) = self.limits.open.filter(|open| self.opened + *open <= now) {
                return Poll::Ready(format!("closed after {open:?}: maxConnectionDuration is reached").into());
            }
            if let Some(idle) = self.limits.idle.filter(|idle| self.heard + *idle <= now) {
                return Poll::Ready(format!("closed after {idle:?} without a byte: idleTimeout is reached").into());
            }
            let ends =
                [self.limits.open.map(|open| self.opened + open), self.limits.idle.map(|idle| self.heard + idle)];
            match ends.into_iter().flatten().min() {
                Some(end) => self.timer.as_mut().reset(end),
                None => return Poll::Pending,
            }
        }
        Poll::Pending
    }
}
