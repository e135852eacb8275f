//! How a tunnel ends well: nothing that the peer has asked for is lost, and it hears the last word.
//!
//! ```text
//! server                                     client
//! GOAWAY 2^31-1, PING                        what it asks for until it hears of it is served
//! the PING's answer, or LAST_CALL            opens nothing more
//! GOAWAY with the last stream served
//! the last stream ends
//! close_notify, FIN                          close_notify, FIN
//! ```

use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use culvert_core::hbone::h2::ErrorCode;
use tokio::time::Instant;

use super::{Role, Tunnel};

/// How long a peer has to answer the PING that goes with the first GOAWAY: many round trips of any network, and little
/// of the time that a pod has to leave.
const LAST_CALL: Duration = Duration::from_secs(1);
/// What that PING says.
pub(super) const LAST_CALL_PING: [u8; 8] = *b"lastcall";
/// How long a peer has to close its direction after we have closed ours.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that a peer may still send in that time: the connection's window, and what goes around it.
const LINGER_BYTES: usize = 17 << 20;

/// What a tunnel that has said everything still waits for.
pub(super) struct Lingering {
    /// Bytes that the peer may still send.
    left: usize,
}

impl Tunnel {
    /// Lets finish what is open, and takes nothing that the peer asks for once it has heard of it (RFC 9113 §6.8).
    pub(super) fn leave(&mut self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        let h2 = &mut self.mux.h2;
        match self.mux.role {
            // What is on its way from a server is not asked for.
            Role::Client(_) => h2.go_away(ErrorCode::NO_ERROR),
            Role::Server(_) if self.last_call.is_none() => {
                h2.announce_shutdown();
                h2.ping(LAST_CALL_PING);
                let end = Instant::now() + LAST_CALL;
                self.last_call = Some(end);
                let due = self.timer.deadline().min(end);
                self.timer.as_mut().reset(due);
            }
            Role::Server(_) => {}
        }
    }

    /// The peer has had its time to hear of the first GOAWAY. Returns when it will have, if that is to come.
    pub(super) fn end_last_call(&mut self, now: Instant) -> Option<Instant> {
        let end = self.last_call?;
        if end <= now {
            // Without effect if the PING was answered.
            self.mux.h2.go_away(ErrorCode::NO_ERROR);
            return None;
        }
        Some(end)
    }

    /// Whether there is nothing left to carry or to say.
    pub(super) fn is_over(&mut self) -> bool {
        if !self.mux.is_empty() {
            return false;
        }
        let said = self.mux.h2.pending_output().is_empty() && !self.wire.is_blocked();
        self.wire.ended || (said && self.mux.h2.may_close())
    }

    /// Says the last word.
    pub(super) fn close(&mut self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        // Whoever wants a stream now is sent elsewhere; the peer has heard that, or does not listen any more.
        self.mux.h2.go_away(ErrorCode::NO_ERROR);
        self.wire.close_notify();
        self.timer.as_mut().reset(Instant::now() + LINGER);
        self.lingering = Some(Lingering { left: LINGER_BYTES });
    }

    /// Waits until the peer has closed too, for a while. The kernel answers what reaches a closed socket, or lies in it
    /// unread, by a reset; and that takes away from the peer what it has not read yet.
    pub(super) fn linger(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<()> {
        let Some(lingering) = &mut self.lingering else { return Poll::Ready(()) };
        if self.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        self.wire.poll_end(cx, buffer, &mut lingering.left)
    }
}
