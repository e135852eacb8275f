//! What a tunnel does by the clock. One timer serves for everything: it fires at the next PING, or before when something
//! is due earlier.

use std::task::Context;

use tokio::time::Instant;

use super::{ANSWER_TIMEOUT, DIAL_TIMEOUT, IDLE_RELEASE, PING_EVERY, PING_TIMEOUT, Role, Tunnel, TunnelError};

/// What begins to wait between two PINGs is due after the second: so the timer need not be set when it begins.
const _: () = assert!(DIAL_TIMEOUT.as_nanos() >= PING_EVERY.as_nanos());
const _: () = assert!(ANSWER_TIMEOUT.as_nanos() >= PING_EVERY.as_nanos());

impl Tunnel {
    /// Does what is due.
    pub(super) fn tick(&mut self, cx: &mut Context<'_>) -> Result<bool, TunnelError> {
        if self.timer.as_mut().poll(cx).is_pending() {
            return Ok(false);
        }
        let now = Instant::now();
        if now >= self.next_ping {
            self.next_ping = now + PING_EVERY;
            self.ping(now)?;
        }
        if self.leave_at.is_some_and(|at| at <= now) {
            self.leave_at = None;
            self.leave();
        }
        let due = [self.mux.expire(now), self.end_last_call(now), self.leave_at];
        let next = due.into_iter().flatten().fold(self.next_ping, Instant::min);
        self.timer.as_mut().reset(next);
        Ok(true)
    }

    /// Asks the peer whether it is alive, and releases what has been idle.
    fn ping(&mut self, now: Instant) -> Result<(), TunnelError> {
        if now.saturating_duration_since(self.heard) >= PING_TIMEOUT + PING_EVERY {
            return Err(TunnelError::Silent);
        }
        self.wire.shrink();
        // However short what it carried since the last time was.
        if std::mem::take(&mut self.mux.used) || !self.mux.is_empty() {
            self.busy = now;
        } else if matches!(self.mux.role, Role::Client(_)) && now - self.busy >= IDLE_RELEASE {
            self.leave();
        }
        self.mux.h2.ping(*b"culvert\0");
        Ok(())
    }
}
