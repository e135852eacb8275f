//! The state of a connection and what the caller may do with it.

use super::{ConnectionError, ErrorCode, Event, OpenError, Request, Settings, StreamClosed, StreamId};

/// One HTTP/2 connection, client or server, without its socket.
///
/// The caller's loop: feed [`receive`](Self::receive) until it returns `(0, None)`, act on the events, then write
/// [`pending_output`](Self::pending_output), then DATA as far as [`writable`](Self::writable) goes.
#[derive(Debug)]
pub struct Connection {
    output: Vec<u8>,
    settings: Settings,
}

impl Connection {
    /// The client's end. Its preface and SETTINGS are in [`pending_output`](Self::pending_output) at once.
    pub fn client(settings: Settings) -> Self {
        Self { output: Vec::new(), settings }
    }

    /// The server's end. Its SETTINGS are in [`pending_output`](Self::pending_output) at once.
    pub fn server(settings: Settings) -> Self {
        Self { output: Vec::new(), settings }
    }

    /// Takes bytes from the peer: how many were consumed, and what they mean, if anything.
    ///
    /// Call it with the rest of the input until it returns `(0, None)`; by then all input is consumed (incomplete
    /// frames are kept inside, bounded; DATA is never kept but delivered in the pieces it comes in), so the caller
    /// needs no buffer that outlives the call. Events may come with 0 bytes consumed.
    ///
    /// # Errors
    /// The peer broke a rule that the connection cannot survive; every later call returns the same error.
    pub fn receive<'b>(&mut self, input: &'b [u8]) -> Result<(usize, Option<Event<'b>>), ConnectionError> {
        let _ = input;
        Ok((0, None))
    }

    /// Client: opens a stream for `request`.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was sent and the connection is unharmed.
    pub fn open_stream(&mut self, request: &Request) -> Result<StreamId, OpenError> {
        let _ = request;
        Err(OpenError::Draining)
    }

    /// Server: answers the request on `stream`. Names must be lower case. With `end_stream` nothing more is sent.
    ///
    /// # Errors
    /// The stream is gone or was answered before.
    pub fn respond(
        &mut self,
        stream: StreamId,
        status: u16,
        headers: &[(&str, &str)],
        end_stream: bool,
    ) -> Result<(), StreamClosed> {
        let _ = (status, headers, end_stream);
        Err(StreamClosed(stream))
    }

    /// How many bytes of DATA may be sent on `stream` in one frame now: the least of the stream's window, the
    /// connection's window and the peer's maximum frame size; 0 when the stream is gone or our half is closed.
    pub fn writable(&self, stream: StreamId) -> usize {
        let _ = stream;
        0
    }

    /// Whether DATA (or the end) may still be sent on `stream`, be it that a window has to open first.
    pub fn is_sendable(&self, stream: StreamId) -> bool {
        let _ = stream;
        false
    }

    /// Accounts for `len` bytes of DATA on `stream` and returns the frame header to write before them. The frame must
    /// be written after what is in [`pending_output`](Self::pending_output) now, and whole before any other.
    ///
    /// `None`, and nothing is accounted, if `len` is more than [`writable`](Self::writable) or our half of the stream
    /// is closed.
    pub fn data_header(&mut self, stream: StreamId, len: usize, end_stream: bool) -> Option<[u8; 9]> {
        let _ = (stream, len, end_stream);
        None
    }

    /// The application took `n` bytes of `stream`'s DATA: the peer may send as many again. The WINDOW_UPDATE is sent
    /// once half a window is due. Nothing happens if the stream is gone.
    pub fn release(&mut self, stream: StreamId, n: usize) {
        let _ = (stream, n);
    }

    /// The same for the connection's window, to be called for every byte of [`Event::Data`], also when its stream is
    /// gone since.
    pub fn release_connection(&mut self, n: usize) {
        let _ = n;
    }

    /// Ends `stream` in both directions at once. Nothing happens if it is gone.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        let _ = (stream, code);
    }

    /// Says that the connection will close, while streams that are under way may still arrive: GOAWAY with the highest
    /// stream number (RFC 9113 §6.8). Follow it by [`go_away`](Self::go_away) a round trip later.
    pub fn announce_shutdown(&mut self) {}

    /// Says GOAWAY: streams that were accepted go on, later ones are refused.
    pub fn go_away(&mut self, code: ErrorCode) {
        let _ = code;
    }

    /// Sends a PING. Also restores the allowance for frames that make no progress, so it is to be sent at an interval
    /// (10 s, as ztunnel does).
    pub fn ping(&mut self, payload: [u8; 8]) {
        let _ = payload;
    }

    /// Frames to be written, in order, before any DATA whose header was taken later. The caller empties it.
    pub fn pending_output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// How many streams are open, half-closed ones included.
    pub fn open_streams(&self) -> usize {
        0
    }

    /// How many streams the peer allows at a time; `u32::MAX` until it says.
    pub fn peer_max_concurrent(&self) -> u32 {
        u32::MAX
    }

    /// Whether the peer's SETTINGS have come.
    pub fn has_peer_settings(&self) -> bool {
        false
    }

    /// Whether either end has said GOAWAY: no new streams.
    pub fn is_draining(&self) -> bool {
        false
    }

    /// The settings of this end.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
