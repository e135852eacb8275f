//! What a peer may cost without getting anything done.
//!
//! Frames that make no progress (PING, SETTINGS, empty DATA, requests reset before they are answered, and so on) are
//! paid from an allowance. Progress earns some of it back, and the caller's keepalive restores it, so that a slow
//! but honest peer never runs out in a connection's long life and a flood always does, soon.

use super::{ConnectionError, ErrorCode};

/// The allowance left.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget(u16);

impl Budget {
    const FULL: u16 = 2000;

    /// A frame that asks for little or nothing.
    pub(super) const FRAME: u16 = 1;
    /// A stream reset before it was answered (CVE-2023-44487), or refused; earned back by a stream that is answered.
    pub(super) const STREAM: u16 = 4;
    /// A broken rule that we answer by a reset (CVE-2025-8671).
    pub(super) const STREAM_ERROR: u16 = 10;
    /// A DATA frame sent: a peer may send two WINDOW_UPDATE and a PING for each.
    const DATA_SENT: usize = 3;
    /// And two WINDOW_UPDATE for as many bytes of it (Go's HTTP/2 sends them for every 4 KiB that it reads).
    const DATA_PER_UPDATE: usize = 2048;

    /// Pays for something the peer did.
    pub(super) fn spend(&mut self, cost: u16) -> Result<(), ConnectionError> {
        self.0 = self.0.checked_sub(cost).ok_or(ConnectionError {
            code: ErrorCode::ENHANCE_YOUR_CALM,
            reason: "the peer floods the connection with frames that make no progress",
        })?;
        Ok(())
    }

    /// Gives some back for progress.
    pub(super) fn earn(&mut self, worth: u16) {
        self.0 = self.0.saturating_add(worth).min(Self::FULL);
    }

    /// Gives some back for a DATA frame of `len` bytes that we sent.
    pub(super) fn earn_sent(&mut self, len: usize) {
        self.earn(u16::try_from(Self::DATA_SENT + 2 * (len / Self::DATA_PER_UPDATE)).unwrap_or(Self::FULL));
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self(Self::FULL)
    }
}
