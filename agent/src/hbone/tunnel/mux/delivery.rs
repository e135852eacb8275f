//! From the peer to the applications: who is given what, and what is kept of it until they take it.

use culvert_core::hbone::h2::{ErrorCode, StreamId};

use super::{Batch, Mux};
use crate::hbone::app::{App, write_ranges};
use crate::hbone::tunnel::Role;
use crate::telemetry::Outcome;

/// Bytes that applications may leave unread, over all streams, before the connection's window is held back too. A
/// single stalled reader (one stream's window) never holds up the others.
const BUFFER_LIMIT: usize = 16 << 20;

impl Mux {
    pub(super) fn data(&mut self, id: StreamId, payload: &[u8], end_stream: bool, buffer: &[u8], batch: &mut Batch) {
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

    /// Hands gathered DATA to its application.
    pub(in crate::hbone::tunnel) fn deliver(&mut self, buffer: &[u8], batch: &mut Batch) {
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

    /// Bytes of DATA that applications have not taken.
    pub(in crate::hbone::tunnel) fn buffered(&self) -> usize {
        self.buffered
    }

    /// Resets the stream whose application leaves most unread; `false` if none leaves any.
    pub(in crate::hbone::tunnel) fn shed(&mut self) -> bool {
        let unread = self.streams.iter().filter(|(_, stream)| stream.pending() > 0);
        let Some((slot, _)) = unread.max_by_key(|(_, stream)| stream.pending()) else { return false };
        let Some(stream) = self.remove(slot) else { return false };
        self.h2.reset(stream.id, ErrorCode::ENHANCE_YOUR_CALM);
        stream.app.forget_unread();
        stream.abort(Outcome::error(
            "the application does not read, and the pod's tunnels hold more unread bytes than they may",
        ));
        true
    }

    /// Counts bytes that no application will make us keep any longer.
    pub(super) fn unbuffer(&mut self, bytes: usize) {
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
}
