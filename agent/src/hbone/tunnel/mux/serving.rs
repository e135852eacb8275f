//! From the applications to the peer, and what their sockets and ends of streams have to say.

use culvert_core::hbone::h2::ErrorCode;

use super::Mux;
use crate::hbone::outgoing::{MAX_SEGMENTS, Outgoing, Read};
use crate::hbone::record::RecordError;
use crate::hbone::tunnel::Role;
use crate::hbone::tunnel::stream::Stream;
use crate::telemetry::Outcome;

impl Mux {
    /// Serves every stream that asked for it. Without `out` (the socket is blocked) nothing is read from applications.
    pub(in crate::hbone::tunnel) fn serve(&mut self, mut out: Option<&mut Outgoing<'_>>) -> Result<bool, RecordError> {
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
    pub(in crate::hbone::tunnel) fn control(&mut self, out: &mut Outgoing<'_>) -> Result<(), RecordError> {
        let pending = self.h2.pending_output();
        if !pending.is_empty() {
            let taken = out.put(pending)?;
            pending.drain(..taken);
        }
        Ok(())
    }

    /// The socket takes bytes again: those who waited for it go on, ahead of those whose bytes they waited for. So
    /// streams take turns, and one that has much to send holds up the others by one buffer, not by its window.
    pub(in crate::hbone::tunnel) fn resume(&mut self) {
        self.serving.append(&mut self.deferred.take());
    }

    pub(super) fn queue_starved(&mut self) {
        for slot in self.starved.take() {
            if let Some(stream) = self.streams.get(slot) {
                stream.wake.queue();
            }
        }
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
                None => self.deferred.insert(slot),
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
                self.starved.insert(slot);
            } else {
                stream.stop_reading();
            }
            return Ok(());
        }
        if !self.h2.pending_output().is_empty() {
            // No room even for the control frames: after the next write.
            self.deferred.insert(slot);
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
            Ok(Read::Full) => self.deferred.insert(slot),
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
