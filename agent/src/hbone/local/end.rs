//! The tunnel's end of a local stream.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Read as _};
use std::ops::Range;
use std::sync::Arc;

use super::opening::{ConnectError, Decision, Opening};
use super::pipe::{Over, Pipe, wake};
use crate::hbone::wake::StreamWaker;
use crate::telemetry::Outcome;

/// Room of a piece that is not the first. The first holds just what has come, as most messages are short; after it, a
/// peer that sends byte by byte must not make us keep a piece for each.
const MIN_PIECE: usize = 16 << 10;

/// The tunnel's end of a stream whose other end is read and written in this process. Dropping it resets that end,
/// unless the peer has ended the stream.
pub struct End(pub(super) Arc<Pipe>);

impl End {
    /// A tunnel carries the stream from now on: `tunnel` is woken when the other end has done something.
    pub(in crate::hbone) fn attach(&self, tunnel: Arc<StreamWaker>) {
        let before = self.0.lock().tunnel.replace(tunnel);
        drop(before);
    }

    /// The tunnel could not carry it.
    pub(in crate::hbone) fn detach(&self) {
        let before = self.0.lock().tunnel.take();
        drop(before);
        self.0.press(false);
    }

    /// Whether the other end is gone.
    pub(in crate::hbone) fn is_dropped(&self) -> bool {
        self.0.lock().dropped
    }

    /// What the other end makes of the stream, once.
    pub(in crate::hbone) fn decision(&self) -> Option<Decision> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut state.opening, Opening::Open) {
            Opening::Decided(decision) => Some(decision),
            other => {
                state.opening = other;
                None
            }
        }
    }

    /// The peer has answered with 200.
    pub(in crate::hbone) fn opened(&self) {
        self.set_opening(Opening::Open);
    }

    /// The peer has answered with something else.
    pub(in crate::hbone) fn refused(&self, refusal: ConnectError) {
        self.set_opening(Opening::Failed(refusal));
    }

    fn set_opening(&self, opening: Opening) {
        let reader = {
            let mut state = self.0.lock();
            state.opening = opening;
            state.reader.take()
        };
        wake([reader]);
    }

    /// Gives the other end the `ranges` of `buffer`; returns how many bytes it holds now, and how many nobody is left
    /// to read.
    pub(in crate::hbone) fn give(&self, buffer: &[u8], ranges: &[Range<usize>]) -> (usize, usize) {
        let total = ranges.iter().map(Range::len).sum();
        let mut left: usize = total;
        let reader = {
            let mut state = self.0.lock();
            if state.dropped {
                return (0, total);
            }
            for bytes in ranges.iter().filter_map(|range| buffer.get(range.clone())) {
                let fits = state.incoming.back_mut().map_or(0, |piece| {
                    let fits = bytes.len().min(piece.capacity() - piece.len());
                    piece.extend_from_slice(&bytes[..fits]);
                    fits
                });
                left -= fits;
                if fits < bytes.len() {
                    let mut piece =
                        Vec::with_capacity(if state.incoming.is_empty() { left } else { left.max(MIN_PIECE) });
                    piece.extend_from_slice(&bytes[fits..]);
                    state.incoming.push_back(piece);
                    left -= bytes.len() - fits;
                }
            }
            state.reader.take()
        };
        wake([reader]);
        (total, 0)
    }

    /// How much the other end has read since the last call.
    ///
    /// # Errors
    /// It is gone without having ended its half.
    pub(in crate::hbone) fn claim(&self) -> io::Result<usize> {
        {
            let state = self.0.lock();
            if state.dropped && !state.shut {
                return Err(io::Error::new(io::ErrorKind::BrokenPipe, "it was dropped before its end"));
            }
        }
        Ok(self.0.take_read())
    }

    /// The same, and whether to tell from now on as soon as something is read.
    pub(in crate::hbone) fn press(&self, pressed: bool) -> usize {
        self.0.press(pressed);
        self.0.take_read()
    }

    /// The peer has ended its half: so the other end finds, behind what it has not read yet.
    pub(in crate::hbone) fn finish(&self) {
        let reader = {
            let mut state = self.0.lock();
            if !matches!(state.over, Over::No) {
                return;
            }
            state.over = Over::End;
            state.reader.take()
        };
        wake([reader]);
    }

    /// The peer takes nothing more.
    pub(in crate::hbone) fn deafen(&self) {
        let writer = {
            let mut state = self.0.lock();
            state.deaf = true;
            state.outgoing = VecDeque::new();
            state.writer.take()
        };
        wake([writer]);
    }

    /// Takes back what the other end has not read.
    pub(in crate::hbone) fn forget_unread(&self) {
        let unread = std::mem::take(&mut self.0.lock().incoming);
        drop(unread);
    }

    /// Takes what the other end has written: 0 at its end, [`io::ErrorKind::WouldBlock`] for nothing yet.
    pub(in crate::hbone) fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let (total, writer) = {
            let mut state = self.0.lock();
            if state.outgoing.is_empty() {
                return if state.shut { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
            }
            let mut total = 0;
            for slice in slices {
                let mut filled = 0;
                // A ring is read in two pieces at the most.
                while filled < slice.len() && !state.outgoing.is_empty() {
                    filled += state.outgoing.read(&mut slice[filled..])?;
                }
                total += filled;
            }
            if state.outgoing.is_empty() {
                state.outgoing = VecDeque::new();
            }
            (total, state.writer.take())
        };
        wake([writer]);
        Ok(total)
    }

    /// Whether [`End::read`] would find something, be it the end. If not, the tunnel is woken when it would.
    pub(in crate::hbone) fn has_output(&self) -> bool {
        let state = self.0.lock();
        !state.outgoing.is_empty() || state.shut
    }

    /// Ends both directions. What has come can still be read.
    pub(in crate::hbone) fn abort(&self, outcome: &Outcome) {
        let why = outcome.error.clone().unwrap_or("the tunnel is gone".into());
        let wakers = {
            let mut state = self.0.lock();
            if matches!(state.opening, Opening::Waiting) {
                state.opening = Opening::Failed(ConnectError::Failed { flags: outcome.flags, why: why.clone() });
            }
            if matches!(state.over, Over::No) {
                state.over = Over::Reset(why);
            }
            state.deaf = true;
            state.outgoing = VecDeque::new();
            [state.reader.take(), state.writer.take()]
        };
        wake(wakers);
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.abort(&Outcome::default());
        self.detach();
    }
}
