//! One application connection in a tunnel.

use std::io;
use std::sync::Arc;
use std::task::Waker;

use culvert_core::hbone::h2::{Request, StreamId};
use tokio::time::Instant;

use super::{ANSWER_TIMEOUT, DIAL_TIMEOUT, ResponseHeaders};
use crate::hbone::app::{self, App};
use crate::hbone::wake::{ReadyList, StreamWaker};
use crate::proxy::live::Flow;
use crate::telemetry::Outcome;

/// Capacity above which an emptied buffer is given back.
const KEEP_CAPACITY: usize = 64 * 1024;

/// How far a stream has come.
pub(super) enum Phase {
    /// Server: the application is being dialled, or has to decide whether it serves the stream.
    Dialling {
        /// Since when.
        since: Instant,
        /// Headers of the 200 to come, unless the application decides about them.
        headers: ResponseHeaders,
    },
    /// Client: the peer has not answered yet.
    Opening(Box<Asked>),
    /// Bytes flow.
    Open,
}

/// A CONNECT on its way, and what it takes to try elsewhere.
pub(super) struct Asked {
    /// Since when.
    pub(super) since: Instant,
    pub(super) request: Request,
    pub(super) attempts: u8,
}

impl Phase {
    /// When bytes have to flow at the latest.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Dialling { since, .. } => Some(*since + DIAL_TIMEOUT),
            Self::Opening(asked) => Some(asked.since + ANSWER_TIMEOUT),
            Self::Open => None,
        }
    }
}

/// One application connection.
pub(super) struct Stream {
    pub(super) id: StreamId,
    pub(super) app: App,
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
    /// Bytes given to an application in this process that it has not read yet.
    held: usize,
}

impl Stream {
    pub(super) fn new(id: StreamId, app: App, flow: Flow, phase: Phase, slot: usize, ready: &Arc<ReadyList>) -> Self {
        let wake = ready.waker(slot);
        let waker = Waker::from(wake.clone());
        flow.on_end(&waker);
        if let App::Local(end) = &app {
            end.attach(wake.clone());
        }
        let segments = app.first_segments();
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
            segments,
            pending: Vec::new(),
            written: 0,
            held: 0,
        }
    }

    /// Bytes that the application has not taken yet.
    pub(super) fn pending(&self) -> usize {
        self.pending.len() - self.written + self.held
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Keeps bytes until the application takes them. The stream's window bounds how many there can be.
    pub(super) fn keep(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// Notes bytes that an application in this process was given. The stream's window bounds how many there can be.
    pub(super) fn hold(&mut self, bytes: usize) {
        self.held += bytes;
    }

    /// Gives the application what was kept; returns how much it has taken since the last call.
    pub(super) fn write_pending(&mut self) -> io::Result<usize> {
        let socket = match &self.app {
            App::Socket(socket) => socket,
            App::Local(end) => {
                let read = end.claim()?;
                self.held -= read;
                return Ok(read);
            }
        };
        let total = app::write_all(socket, &self.waker, &self.pending[self.written..])?;
        self.written += total;
        if self.pending() == 0 {
            self.written = 0;
            self.pending.clear();
            self.pending.shrink_to(KEEP_CAPACITY);
        }
        Ok(total)
    }

    /// Has an application in this process say what it reads as it reads it, or only now and then. Returns what it has
    /// read until now.
    pub(super) fn press(&mut self, pressed: bool) -> usize {
        let App::Local(end) = &self.app else { return 0 };
        let read = end.press(pressed);
        self.held -= read;
        read
    }

    /// Tells the application that the peer is done, once it has taken everything.
    pub(super) fn shut_when_drained(&mut self) {
        if !self.ending || self.shut {
            return;
        }
        self.shut = self.pending() == 0;
        match &self.app {
            App::Socket(socket) if self.shut => app::shut(socket),
            App::Socket(_) => {}
            // It finds the end behind what it has not read yet.
            App::Local(end) => end.finish(),
        }
    }

    /// Asks to be woken when the application has something to read.
    pub(super) fn await_readable(&self) {
        if self.app.is_readable(&self.waker) {
            self.wake.queue();
        }
    }

    /// Nothing more of what the application sends is sent on.
    pub(super) fn stop_reading(&mut self) {
        self.reading = false;
        self.app.stop_reading();
    }

    /// Whether both directions are over as far as the peer is concerned: the application has but to read what has come.
    pub(super) fn is_over(&self) -> bool {
        self.is_open() && self.ending && !self.reading
    }

    /// Whether both directions are over, or nobody is left to care for the one that is not.
    pub(super) fn is_done(&self) -> bool {
        !self.reading && (self.shut || self.app.is_dropped())
    }

    /// Both directions are done, or the peer's death leaves nothing to do.
    pub(super) fn close(self, outcome: Outcome) {
        self.flow.close(outcome);
    }

    /// Ends the connection with a reset, as its other half was.
    pub(super) fn abort(self, outcome: Outcome) {
        self.app.abort(&outcome);
        self.flow.close(outcome);
    }
}
