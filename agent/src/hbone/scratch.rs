//! The buffers a worker lends to whichever connection it is serving.
//!
//! An idle connection holds no buffer at all. What is left over when a connection's turn ends (half a record, output
//! that the socket did not take) is copied into a buffer of its own, at most once per turn.

use std::cell::RefCell;

use super::record::{HEADER_LEN, MAX_PLAINTEXT, TRAILER_LEN};

/// Records that one turn reads or writes at the most.
const RECORDS: usize = 16;
/// Bytes of `RECORDS` full records.
pub(crate) const LEN: usize = RECORDS * (HEADER_LEN + MAX_PLAINTEXT + TRAILER_LEN);

/// A worker's buffers.
pub(crate) struct Scratch {
    /// Sealed bytes from the peer, opened where they lie.
    pub(crate) incoming: Box<[u8]>,
    /// Plaintext from applications, sealed where it lies.
    pub(crate) outgoing: Box<[u8]>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> =
        RefCell::new(Scratch { incoming: vec![0; LEN].into(), outgoing: vec![0; LEN].into() });
}

/// Lends this worker's buffers to `turn`, which must not ask for them again.
pub(crate) fn with<R>(turn: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with_borrow_mut(turn)
}
