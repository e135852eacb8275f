//! One application connection in a tunnel.

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use culvert_core::hbone::h2::{Request, StreamId};
use smallvec::SmallVec;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::hbone::wake::{ReadyList, StreamWaker};
use crate::proxy::live::Flow;
use crate::telemetry::Outcome;

/// Capacity above which an emptied buffer is given back.
const KEEP_CAPACITY: usize = 64 * 1024;

/// How far a stream has come.
pub(super) enum Phase {
    /// Server: the application is being dialled.
    Dialling {
        /// Since when.
        since: Instant,
        /// Headers of the 200 to come.
        headers: SmallVec<[(&'static str, String); 1]>,
    },
    /// Client: the peer has not answered yet. Holds what it takes to try elsewhere.
    Opening(Box<(Request, u8)>),
    /// Bytes flow.
    Open,
}

/// One application connection.
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) app: TcpStream,
    pub(super) flow: Flow,
    pub(super) wake: Arc<StreamWaker>,
    pub(super) waker: Waker,
    pub(super) phase: Phase,
    /// The application may still send, and its bytes may still be sent on.
    pub(super) reading: bool,
    /// The peer will send no more: the application is told once it has taken everything.
    pub(super) ending: bool,
    /// The application was told.
    pub(super) shut: bool,
    /// Records to offer to the next read: more after a read that filled them.
    pub(super) segments: usize,
    pending: Vec<u8>,
    written: usize,
}

impl Stream {
    pub(super) fn new(
        id: StreamId,
        app: TcpStream,
        flow: Flow,
        phase: Phase,
        slot: usize,
        ready: &Arc<ReadyList>,
    ) -> Self {
        let wake = ready.waker(slot);
        let waker = Waker::from(wake.clone());
        flow.on_end(&waker);
        Self {
            id,
            app,
            flow,
            wake,
            waker,
            phase,
            reading: true,
            ending: false,
            shut: false,
            segments: 1,
            pending: Vec::new(),
            written: 0,
        }
    }

    /// Bytes that the application has not taken yet.
    pub(super) fn pending(&self) -> usize {
        self.pending.len() - self.written
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Keeps bytes until the application takes them. The stream's window bounds how many there can be.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Writes the `ranges` of `buffer` to the application as far as it takes them at once.
    pub(super) fn write_at_once(&self, buffer: &[u8], ranges: &[Range<usize>]) -> io::Result<usize> {
        let slices: SmallVec<[IoSlice<'_>; 20]> =
            ranges.iter().filter_map(|range| buffer.get(range.clone())).map(IoSlice::new).collect();
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        write_ready(&self.app, &slices, offered)
    }

    /// Writes what was kept; returns how much of it went.
    pub(super) fn write_pending(&mut self) -> io::Result<usize> {
        let mut total = 0;
        while self.pending() > 0 {
            match self.app.poll_write_ready(&mut Context::from_waker(&self.waker)) {
                Poll::Pending => break,
                Poll::Ready(ready) => ready?,
            }
            let rest = &self.pending[self.written..];
            let written = write_ready(&self.app, &[IoSlice::new(rest)], rest.len())?;
            self.written += written;
            total += written;
        }
        if self.pending() == 0 {
            self.written = 0;
            self.pending.clear();
            self.pending.shrink_to(KEEP_CAPACITY);
        }
        Ok(total)
    }

    /// Tells the application that the peer is done, once it has taken everything.
    pub(super) fn shut_when_drained(&mut self) {
        if self.ending && !self.shut && self.pending() == 0 {
            self.shut = true;
            // Fails only if the application is gone, which reading will find out.
            let _ = SockRef::from(&self.app).shutdown(Shutdown::Write);
        }
    }

    /// Asks to be woken when the application has something to read.
    pub(super) fn await_readable(&self) {
        if self.app.poll_read_ready(&mut Context::from_waker(&self.waker)).is_ready() {
            self.wake.queue();
        }
    }

    /// Both directions are done, or the peer's death leaves nothing to do.
    pub(super) fn close(self, outcome: Outcome) {
        self.flow.close(outcome);
    }

    /// Ends the connection with a reset, as its other half was.
    pub(super) fn abort(self, outcome: Outcome) {
        abort(&self.app);
        self.flow.close(outcome);
    }
}

/// Makes the close to come a reset rather than an orderly end.
pub(crate) fn abort(socket: &impl AsFd) {
    // A socket that cannot be set any more has failed already.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// `writev` that treats a short write as "no more for now", which saves the call that would find that out. 0 if the
/// socket takes nothing.
fn write_ready(app: &TcpStream, slices: &[IoSlice<'_>], offered: usize) -> io::Result<usize> {
    let socket = SockRef::from(app);
    let mut written = None;
    let outcome = app.try_io(Interest::WRITABLE, || {
        let length = match slices {
            [one] => (&*socket).write(one)?,
            many => (&*socket).write_vectored(many)?,
        };
        written = Some(length);
        if length < offered { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (written, outcome) {
        (Some(length), _) => Ok(length),
        (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Ok(0),
    }
}
