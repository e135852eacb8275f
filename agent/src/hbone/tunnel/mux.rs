//! The HTTP/2 connection and the applications it is multiplexed from.

mod opening;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use culvert_core::hbone::h2::{Connection, ErrorCode, Event, OpenError, StreamId};
use slab::Slab;
use smallvec::SmallVec;

use super::stream::{Phase, Stream};
use super::{Open, Role, Shared, TunnelError};
use crate::hbone::app::{App, write_ranges};
use crate::hbone::outgoing::{MAX_SEGMENTS, Outgoing, Read};
use crate::hbone::record::RecordError;
use crate::hbone::wake::ReadyList;
use crate::proxy::live::Flow;
use crate::telemetry::{Outcome, ResponseFlags};

/// Bytes that applications may leave unread, over all streams, before the connection's window is held back too. A
/// single stalled reader (one stream's window) never holds up the others.
const BUFFER_LIMIT: usize = 16 << 20;

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
    deferred: Vec<usize>,
    /// Streams that found a send window shut.
    starved: Vec<usize>,
    /// Bytes of DATA that applications have not taken, over all streams.
    buffered: usize,
    /// Bytes whose return to the connection's window waits for `buffered` to shrink.
    withheld: usize,
    /// Bytes are withheld: applications in this process say at once what they have read.
    pressed: bool,
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
            deferred: Vec::new(),
            starved: Vec::new(),
            buffered: 0,
            withheld: 0,
            pressed: false,
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
                Ok(app) => self.insert(id, app, open.flow, Phase::Opening(Box::new((open.request, open.attempts)))),
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
            Err(_) => {
                self.shared.streams.fetch_sub(1, Ordering::Relaxed);
                if let Role::Client(pool) = &self.role {
                    open.attempts += 1;
                    pool.redial(open);
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
            Event::Pong { .. } => {}
        }
    }

    /// Hands gathered DATA to its application.
    pub(super) fn deliver(&mut self, buffer: &[u8], batch: &mut Batch) {
        let ranges = std::mem::take(&mut batch.ranges);
        let Some(stream) = self.streams.get_mut(batch.slot).filter(|_| !ranges.is_empty()) else { return };
        let socket = match &stream.app {
            App::Socket(socket) => socket,
            App::Local(end) => {
                let (given, lost) = end.give(buffer, &ranges);
                // What nobody is left to read is as good as read.
                self.h2.release(stream.id, lost);
                stream.hold(given);
                self.buffered += given;
                return;
            }
        };
        let mut written = 0;
        if stream.is_open() && stream.pending() == 0 {
            match write_ranges(socket, buffer, &ranges) {
                Ok(length) => written = length,
                Err(error) => {
                    self.app_failed(batch.slot, &error);
                    return;
                }
            }
        }
        self.h2.release(stream.id, written);
        for range in ranges {
            let skip = written.min(range.len());
            written -= skip;
            let rest = &buffer[range.start + skip..range.end];
            if !rest.is_empty() {
                stream.keep(rest);
                self.buffered += rest.len();
                stream.wake.queue();
            }
        }
    }

    /// Serves every stream that asked for it. Without `out` (the socket is blocked) nothing is read from applications.
    pub(super) fn serve(&mut self, mut out: Option<&mut Outgoing<'_>>) -> Result<bool, RecordError> {
        let mut serving = std::mem::take(&mut self.serving);
        self.ready.take(&mut serving);
        let progress = !serving.is_empty();
        for slot in serving.drain(..) {
            self.serve_stream(slot, out.as_deref_mut())?;
        }
        self.serving = serving;
        Ok(progress)
    }

    /// Puts control frames out, as far as there is room.
    pub(super) fn control(&mut self, out: &mut Outgoing<'_>) -> Result<(), RecordError> {
        let pending = self.h2.pending_output();
        if !pending.is_empty() {
            let taken = out.put(pending)?;
            pending.drain(..taken);
        }
        Ok(())
    }

    /// The socket takes bytes again: those who waited for it go on, ahead of those whose bytes they waited for. So
    /// streams take turns, and one that has much to send holds up the others by one buffer, not by its window.
    pub(super) fn resume(&mut self) {
        self.serving.append(&mut self.deferred);
    }

    /// Ends every stream because the tunnel has.
    pub(super) fn fail_all(&mut self, why: &str, flags: ResponseFlags) {
        for stream in self.streams.drain() {
            stream.abort(Outcome::failed(flags, why.to_owned()));
        }
        self.slots.clear();
        self.shared.streams.store(0, Ordering::Relaxed);
    }

    fn insert(&mut self, id: StreamId, app: App, flow: Flow, phase: Phase) {
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

    /// Counts bytes that no application will make us keep any longer.
    fn unbuffer(&mut self, bytes: usize) {
        self.buffered -= bytes;
        if self.withheld > 0 && self.buffered <= BUFFER_LIMIT {
            self.h2.release_connection(std::mem::take(&mut self.withheld));
            self.press(false);
        }
    }

    /// Keeps bytes back from the connection's window until applications have read enough.
    fn withhold(&mut self, bytes: usize) {
        self.withheld += bytes;
        self.press(true);
    }

    /// Applications in this process tell what they have read in large pieces, unless the connection waits for it.
    fn press(&mut self, pressed: bool) {
        if self.pressed == pressed {
            return;
        }
        self.pressed = pressed;
        let mut read = 0;
        for (_, stream) in &mut self.streams {
            let now = stream.press(pressed);
            self.h2.release(stream.id, now);
            read += now;
        }
        self.unbuffer(read);
    }

    fn queue_starved(&mut self) {
        for slot in std::mem::take(&mut self.starved) {
            if let Some(stream) = self.streams.get(slot) {
                stream.wake.queue();
            }
        }
    }

    fn data(&mut self, id: StreamId, payload: &[u8], end_stream: bool, buffer: &[u8], batch: &mut Batch) {
        if self.buffered <= BUFFER_LIMIT {
            self.h2.release_connection(payload.len());
        } else {
            self.withhold(payload.len());
        }
        let Some(slot) = self.slot(id) else { return };
        if batch.slot != slot {
            self.deliver(buffer, batch);
            batch.slot = slot;
        }
        let Some(stream) = self.streams.get(slot) else { return };
        match self.role {
            Role::Client(_) => stream.flow.response_bytes(payload.len()),
            Role::Server(_) => stream.flow.request_bytes(payload.len()),
        }
        let start = (payload.as_ptr() as usize).wrapping_sub(buffer.as_ptr() as usize);
        match batch.ranges.last_mut() {
            Some(last) if last.end == start => last.end += payload.len(),
            _ if !payload.is_empty() => batch.ranges.push(start..start + payload.len()),
            _ => {}
        }
        if end_stream {
            self.deliver(buffer, batch);
            self.peer_ended(id);
        }
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
            (Phase::Opening(opening), Role::Client(pool)) if again => {
                let (request, attempts) = *opening;
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

    fn serve_stream(&mut self, slot: usize, out: Option<&mut Outgoing<'_>>) -> Result<(), RecordError> {
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(()) };
        stream.wake.attended();
        if let Some(reason) = stream.flow.ended() {
            self.h2.reset(stream.id, ErrorCode::CONNECT_ERROR);
            if let Some(stream) = self.remove(slot) {
                stream.abort(reason.outcome());
            }
            return Ok(());
        }
        if !stream.is_open() && !self.opens(slot) {
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(()) };
        match stream.write_pending() {
            Ok(0) => {}
            Ok(written) => {
                self.h2.release(stream.id, written);
                self.unbuffer(written);
            }
            Err(error) => {
                self.app_failed(slot, &error);
                return Ok(());
            }
        }
        let Some(stream) = self.streams.get_mut(slot) else { return Ok(()) };
        stream.shut_when_drained();
        if stream.reading {
            match out {
                None => self.deferred.push(slot),
                Some(out) => self.read_app(slot, out)?,
            }
        }
        if self.streams.get(slot).is_some_and(Stream::is_done)
            && let Some(stream) = self.remove(slot)
        {
            if !stream.ending {
                // Whoever could read the rest has said all it had to, and is gone.
                self.h2.reset(stream.id, ErrorCode::NO_ERROR);
            }
            stream.close(Outcome::complete());
        }
        Ok(())
    }

    /// Reads once from the application into frames.
    fn read_app(&mut self, slot: usize, out: &mut Outgoing<'_>) -> Result<(), RecordError> {
        // What is queued goes first: the response that opens the stream may be in it.
        self.control(out)?;
        let stream = &mut self.streams[slot];
        let writable = self.h2.writable(stream.id);
        if writable == 0 {
            if self.h2.is_sendable(stream.id) {
                self.starved.push(slot);
            } else {
                stream.stop_reading();
            }
            return Ok(());
        }
        if !self.h2.pending_output().is_empty() {
            // No room even for the control frames: after the next write.
            self.deferred.push(slot);
            return Ok(());
        }
        let (h2, id) = (&mut self.h2, stream.id);
        let read = out.read_from(&stream.app, writable, writable, stream.segments, |length| {
            h2.data_header(id, length, false).unwrap_or_default()
        })?;
        match read {
            Ok(Read::Data { length, filled }) => {
                match self.role {
                    Role::Client(_) => stream.flow.request_bytes(length),
                    Role::Server(_) => stream.flow.response_bytes(length),
                }
                if filled {
                    stream.segments = (stream.segments * 4).min(MAX_SEGMENTS);
                    stream.wake.queue();
                } else {
                    stream.await_readable();
                }
            }
            Ok(Read::Blocked) => {
                stream.segments = stream.app.first_segments();
                stream.await_readable();
            }
            Ok(Read::Full) => self.deferred.push(slot),
            Ok(Read::Eof) => {
                stream.reading = false;
                if let Some(header) = self.h2.data_header(id, 0, true) {
                    // The room for it was checked above; and if not, it is the first of the next turn's output.
                    let taken = out.put(&header)?;
                    self.h2.pending_output().extend_from_slice(&header[taken..]);
                }
            }
            Err(error) => self.app_failed(slot, &error),
        }
        Ok(())
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
