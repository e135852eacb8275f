//! The HTTP/2 connection and the applications it is multiplexed from.

mod delivery;
mod opening;
mod serving;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use culvert_core::hbone::h2::{Connection, ErrorCode, Event, OpenError, StreamId};
use slab::Slab;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::leaving::LAST_CALL_PING;
use super::slots::SlotSet;
use super::stream::{Asked, Phase, Stream};
use super::{Open, Role, Shared, TunnelError};
use crate::hbone::app::App;
use crate::hbone::wake::ReadyList;
use crate::proxy::live::Flow;
use crate::telemetry::{Outcome, ResponseFlags};

/// Why a stream was not opened, or not waited for.
const GIVEN_UP: &str = "given up before the peer answered";

/// DATA for one stream, gathered over several records so that the application gets it in one write.
#[derive(Default)]
pub(super) struct Batch {
    slot: usize,
    ranges: SmallVec<[Range<usize>; 20]>,
}

/// The HTTP/2 connection and its streams.
pub(super) struct Mux {
    pub(super) h2: Connection,
    pub(super) role: Role,
    shared: Arc<Shared>,
    streams: Slab<Stream>,
    /// Slots by stream number, ascending.
    slots: Vec<(StreamId, usize)>,
    pub(super) ready: Arc<ReadyList>,
    serving: Vec<usize>,
    /// Streams that wait for the peer to read before their application is read on.
    deferred: SlotSet,
    /// Streams that found a send window shut.
    starved: SlotSet,
    /// Bytes of DATA that applications have not taken, over all streams.
    buffered: usize,
    /// Bytes whose return to the connection's window waits for `buffered` to shrink.
    withheld: usize,
    /// Bytes are withheld: applications in this process say at once what they have read.
    pressed: bool,
    /// A stream has been opened since this was last looked at.
    pub(super) used: bool,
    stream_limit: usize,
}

impl Mux {
    pub(super) fn new(h2: Connection, role: Role, shared: Arc<Shared>, stream_limit: usize) -> Self {
        Self {
            h2,
            role,
            shared,
            streams: Slab::new(),
            slots: Vec::new(),
            ready: Arc::default(),
            serving: Vec::new(),
            deferred: SlotSet::default(),
            starved: SlotSet::default(),
            buffered: 0,
            withheld: 0,
            pressed: false,
            used: false,
            stream_limit,
        }
    }

    /// Whether no application connection is carried.
    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Opens a stream for an application connection.
    pub(super) fn open(&mut self, mut open: Box<Open>) {
        if open.app.is_abandoned() {
            self.shared.streams.fetch_sub(1, Ordering::Relaxed);
            open.refuse(Outcome::error(GIVEN_UP));
            return;
        }
        match self.h2.open_stream(&open.request) {
            Ok(id) => match open.app.attach() {
                Ok(app) => {
                    let asked = Asked { since: Instant::now(), request: open.request, attempts: open.attempts };
                    self.insert(id, app, open.flow, Phase::Opening(Box::new(asked)));
                }
                Err(error) => {
                    self.h2.reset(id, ErrorCode::CANCEL);
                    self.shared.streams.fetch_sub(1, Ordering::Relaxed);
                    open.flow.close(Outcome::error(format!("the application's socket cannot be used: {error}")));
                }
            },
            Err(OpenError::HeadersTooLarge { size, limit }) => {
                self.shared.streams.fetch_sub(1, Ordering::Relaxed);
                open.refuse(Outcome::failed(
                    ResponseFlags::ConnectFailure,
                    format!("the CONNECT takes {size} bytes of headers and the peer accepts {limit}"),
                ));
            }
            Err(error) => {
                self.shared.streams.fetch_sub(1, Ordering::Relaxed);
                match &self.role {
                    Role::Client(pool) => {
                        open.attempts += 1;
                        pool.redial(open);
                    }
                    Role::Server(_) => open.refuse(Outcome::error(error.to_string())),
                }
            }
        }
    }

    /// Acts on one event; DATA is gathered in `batch`, as ranges of the buffer that starts at `base`.
    pub(super) fn event(&mut self, event: Event<'_>, buffer: &[u8], batch: &mut Batch) {
        match event {
            Event::Data { stream, payload, end_stream } => self.data(stream, payload, end_stream, buffer, batch),
            Event::Request { stream, request, end_stream } => self.request(stream, request, end_stream),
            Event::Response { stream, response, end_stream } => self.response(stream, &response, end_stream),
            Event::Trailers { stream } => {
                self.deliver(buffer, batch);
                self.peer_ended(stream);
            }
            Event::Reset { stream, code } => {
                self.deliver(buffer, batch);
                self.peer_reset(stream, code);
            }
            Event::WindowOpen { stream: Some(stream) } => {
                if let Some(slot) = self.slot(stream) {
                    self.streams[slot].wake.queue();
                }
            }
            Event::WindowOpen { stream: None } => self.queue_starved(),
            Event::PeerSettings => {
                let limit = usize::try_from(self.h2.peer_max_concurrent()).unwrap_or(usize::MAX);
                self.shared.limit.store(limit.min(self.stream_limit), Ordering::Relaxed);
                self.queue_starved();
            }
            Event::GoAway { .. } => self.shared.draining.store(true, Ordering::Relaxed),
            // The peer has heard that nothing new is taken: what it sent before has come (RFC 9113 §6.8).
            Event::Pong { payload: LAST_CALL_PING } if self.h2.is_draining() => self.h2.go_away(ErrorCode::NO_ERROR),
            Event::Pong { .. } => {}
        }
    }

    /// Ends the streams that are `meant` because the tunnel has ended.
    pub(super) fn fail(&mut self, meant: impl Fn(&Stream) -> bool, why: &str, flags: ResponseFlags) {
        let meant = self.streams.iter().filter(|(_, stream)| meant(stream)).map(|(slot, _)| slot);
        for slot in meant.collect::<Vec<_>>() {
            if let Some(stream) = self.remove(slot) {
                stream.abort(Outcome::failed(flags, why.to_owned()));
            }
        }
    }

    fn insert(&mut self, id: StreamId, app: App, flow: Flow, phase: Phase) {
        self.used = true;
        let entry = self.streams.vacant_entry();
        let slot = entry.key();
        let stream = entry.insert(Stream::new(id, app, flow, phase, slot, &self.ready));
        stream.press(self.pressed);
        stream.wake.queue();
        // Numbers only grow, so pushing keeps the order.
        self.slots.push((id, slot));
    }

    fn slot(&self, id: StreamId) -> Option<usize> {
        let index = self.slots.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.slots[index].1)
    }

    fn remove(&mut self, slot: usize) -> Option<Stream> {
        let stream = self.streams.try_remove(slot)?;
        if let Ok(index) = self.slots.binary_search_by_key(&stream.id, |(id, _)| *id) {
            self.slots.remove(index);
        }
        self.shared.streams.fetch_sub(1, Ordering::Relaxed);
        self.unbuffer(stream.pending());
        Some(stream)
    }

    fn peer_ended(&mut self, id: StreamId) {
        if let Some(slot) = self.slot(id) {
            let stream = &mut self.streams[slot];
            stream.ending = true;
            stream.wake.queue();
        }
    }

    fn peer_reset(&mut self, id: StreamId, code: ErrorCode) {
        let Some(slot) = self.slot(id) else { return };
        let stream = &mut self.streams[slot];
        if stream.is_open() && code.is_end() {
            // Reads as the end: what the application has not taken yet is still its own.
            stream.stop_reading();
            stream.ending = true;
            stream.wake.queue();
            return;
        }
        let Some(stream) = self.remove(slot) else { return };
        let again = code == ErrorCode::REFUSED_STREAM;
        match (stream.phase, &self.role) {
            (Phase::Opening(asked), Role::Client(pool)) if again => {
                let Asked { request, attempts, .. } = *asked;
                match stream.app.detach() {
                    Ok(app) => {
                        pool.redial(Box::new(Open { app, request, flow: stream.flow, attempts: attempts + 1 }));
                    }
                    Err(error) => stream.flow.close(Outcome::error(error.to_string())),
                }
            }
            _ => {
                let outcome = Outcome::error(format!("reset by the peer ({code})"));
                stream.app.abort(&outcome);
                stream.flow.close(outcome);
            }
        }
    }

    fn app_failed(&mut self, slot: usize, error: &std::io::Error) {
        let Some(stream) = self.remove(slot) else { return };
        // A TCP error is a stream error of this type (RFC 9113 §8.5).
        self.h2.reset(stream.id, ErrorCode::CONNECT_ERROR);
        stream.abort(Outcome::error(format!("the application's connection failed: {error}")));
    }
}

/// Why a tunnel ended, as its streams report it.
pub(super) fn flags_of(error: &TunnelError) -> ResponseFlags {
    match error {
        TunnelError::Alert(_) => ResponseFlags::TlsFailure,
        TunnelError::Distrusted(why) => why.response_flags(),
        TunnelError::Http2(_) => ResponseFlags::Http2HandshakeFailure,
        _ => ResponseFlags::ConnectFailure,
    }
}
