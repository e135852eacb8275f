//! The state of a connection and what the caller may do with it.

use super::budget::Budget;
use super::frame::{self, FrameHeader, flag, kind, setting};
use super::headers::Block;
use super::hpack::{self, Decoder, Encoder};
use super::receive::Reading;
use super::streams::{ReceiveWindow, Stream, Streams};
use super::{ConnectionError, ErrorCode, Event, Method, OpenError, Request, Settings, StreamClosed, StreamId};

use smallvec::SmallVec;

/// The window of a connection, and of each stream before SETTINGS say otherwise (RFC 9113 §6.9.2).
const DEFAULT_WINDOW: u32 = 65_535;

/// Output capacity kept from one keepalive to the next.
const IDLE_OUTPUT: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// What the peer announced, or the protocol's defaults.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerSettings {
    pub(super) max_concurrent_streams: u32,
    pub(super) initial_window_size: u32,
    pub(super) max_frame_size: u32,
    pub(super) max_header_list_size: u32,
}

/// One HTTP/2 connection, client or server, without its socket.
///
/// The caller's loop: feed [`receive`](Self::receive) and act on its events, then write
/// [`pending_output`](Self::pending_output), then DATA as far as [`writable`](Self::writable) goes.
#[derive(Debug)]
pub struct Connection {
    pub(super) role: Role,
    pub(super) settings: Settings,
    pub(super) peer: PeerSettings,
    /// Frames to be written before anything else.
    pub(super) output: Vec<u8>,
    pub(super) streams: Streams,
    /// What we may send on all streams together.
    pub(super) send_window: i32,
    pub(super) receive_window: ReceiveWindow,
    /// The highest stream number used so far, by the client of this connection.
    pub(super) last_stream: u32,
    /// We said GOAWAY: later streams are refused.
    pub(super) refusing: bool,
    /// We said GOAWAY, or that we will.
    pub(super) shutting_down: bool,
    /// The last stream that the peer's GOAWAY covers.
    pub(super) peer_last_stream: Option<u32>,
    pub(super) decoder: Decoder,
    pub(super) encoder: Encoder,
    pub(super) reading: Reading,
    /// A header block that CONTINUATION has to complete.
    pub(super) block: Option<Box<Block>>,
    pub(super) budget: Budget,
    pub(super) failed: Option<ConnectionError>,
}

impl Connection {
    /// The client's end. Its preface and SETTINGS are in [`pending_output`](Self::pending_output) at once.
    pub fn client(settings: Settings) -> Self {
        let mut connection = Self::new(Role::Client, settings);
        connection.output.extend_from_slice(frame::PREFACE);
        connection.announce(&[(setting::ENABLE_PUSH, 0)]);
        connection
    }

    /// The server's end. Its SETTINGS are in [`pending_output`](Self::pending_output) at once.
    pub fn server(settings: Settings) -> Self {
        let mut connection = Self::new(Role::Server, settings);
        connection.announce(&[(setting::MAX_CONCURRENT_STREAMS, settings.max_concurrent_streams)]);
        connection
    }

    /// Takes bytes from the peer: how many were consumed, and what they mean, if anything.
    ///
    /// Call it with the rest of the input until it returns no event; by then all input is consumed. Incomplete frames
    /// are kept inside, bounded, and DATA is delivered in the pieces it comes in, so the caller needs no buffer that
    /// outlives the call. An event may come with 0 bytes consumed.
    ///
    /// # Errors
    /// The peer broke a rule that the connection cannot survive; every later call returns the same error.
    pub fn receive<'b>(&mut self, input: &'b [u8]) -> Result<(usize, Option<Event<'b>>), ConnectionError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.read(input).inspect_err(|error| {
            let last_stream = self.peers_last_stream();
            frame::put_go_away(&mut self.output, last_stream, error.code);
            (self.refusing, self.shutting_down) = (true, true);
            self.failed = Some(*error);
        })
    }

    /// Client: opens a stream for `request`.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was sent and the connection is unharmed.
    pub fn open_stream(&mut self, request: &Request) -> Result<StreamId, OpenError> {
        if self.role == Role::Server {
            return Err(OpenError::NotAClient);
        }
        if self.is_draining() {
            return Err(OpenError::Draining);
        }
        if self.streams.len() >= self.peer.max_concurrent_streams as usize {
            return Err(OpenError::TooManyStreams(self.peer.max_concurrent_streams));
        }
        let id = match self.last_stream {
            0 => 1,
            last if last < 0x7fff_ffff => last + 2,
            _ => return Err(OpenError::IdsExhausted),
        };
        let method = match &request.method {
            Method::Connect => "CONNECT",
            Method::Other(method) => method,
        };
        let pseudo = [(":method", Some(method)), (":authority", request.authority.as_deref())];
        let pseudo = pseudo.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let headers = request.headers.iter().filter_map(|(name, value)| Some((name, std::str::from_utf8(value).ok()?)));
        let fields: SmallVec<[_; 8]> = pseudo.chain(headers).collect();

        let size = fields.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
        if size > self.peer.max_header_list_size as usize {
            return Err(OpenError::HeadersTooLarge { size, limit: self.peer.max_header_list_size });
        }
        self.put_headers(id, fields.into_iter(), false);
        self.last_stream = id;
        self.add_stream(id, false);
        self.budget.earn(Budget::STREAM);
        Ok(StreamId(id))
    }

    /// Server: answers the request on `stream`. Names must be lower case. With `end_stream` nothing more is sent; if
    /// the client has not ended its half, [`reset`](Self::reset) with `NO_ERROR` tells it not to bother.
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
        let open = self.streams.find(stream.0).filter(|s| !s.answered && !s.local_closed);
        open.filter(|_| self.role == Role::Server).ok_or(StreamClosed(stream))?.answered = true;
        let mut digits = itoa::Buffer::new();
        let fields = [(":status", digits.format(status))];
        self.put_headers(stream.0, fields.into_iter().chain(headers.iter().copied()), end_stream);
        self.budget.earn(Budget::STREAM);
        if end_stream {
            self.close_local(stream.0);
        }
        Ok(())
    }

    /// How many bytes of DATA may be sent on `stream` in one frame now: the least of the stream's window, the
    /// connection's window and the peer's maximum frame size; 0 when the stream is gone or our half is closed.
    pub fn writable(&self, stream: StreamId) -> usize {
        let Some(stream) = self.streams.get(stream.0).filter(|s| !s.local_closed && self.may_send_data(s)) else {
            return 0;
        };
        let window = stream.send_window.min(self.send_window);
        usize::try_from(window).unwrap_or(0).min(self.peer.max_frame_size as usize)
    }

    /// Whether DATA (or the end) may still be sent on `stream`, be it that a window has to open first.
    pub fn is_sendable(&self, stream: StreamId) -> bool {
        self.streams.get(stream.0).is_some_and(|s| !s.local_closed)
    }

    /// Accounts for `len` bytes of DATA on `stream` and returns the frame header to write before them. The frame must
    /// be written after what is in [`pending_output`](Self::pending_output) now, and whole before any other.
    ///
    /// `None`, and nothing is accounted, if `len` is more than [`writable`](Self::writable), our half of the stream is
    /// closed, or a server has not yet answered.
    pub fn data_header(&mut self, stream: StreamId, len: usize, end_stream: bool) -> Option<[u8; 9]> {
        if len > self.writable(stream) {
            return None;
        }
        let role = self.role;
        let open = self.streams.find(stream.0).filter(|s| !s.local_closed && (role == Role::Client || s.answered))?;
        // Fits, as a window does.
        open.send_window -= len as i32;
        self.send_window -= len as i32;
        self.budget.earn_sent(len);
        if end_stream {
            self.close_local(stream.0);
        }
        let flags = if end_stream { flag::END_STREAM } else { 0 };
        Some(FrameHeader { len: len as u32, kind: kind::DATA, flags, stream: stream.0 }.encode())
    }

    /// The application took `n` bytes of `stream`'s DATA: the peer may send as many again. The WINDOW_UPDATE is sent
    /// once half a window is due. Nothing happens if the stream is gone.
    pub fn release(&mut self, stream: StreamId, n: usize) {
        let Some(open) = self.streams.find(stream.0).filter(|s| !s.remote_closed) else { return };
        if let Some(increment) = open.receive.release(n, self.settings.initial_window_size) {
            frame::put_window_update(&mut self.output, stream.0, increment);
        }
    }

    /// The same for the connection's window, to be called for every byte of [`Event::Data`], also when its stream is
    /// gone since.
    pub fn release_connection(&mut self, n: usize) {
        if let Some(increment) = self.receive_window.release(n, self.settings.connection_window_size) {
            frame::put_window_update(&mut self.output, 0, increment);
        }
    }

    /// Ends `stream` in both directions at once. Nothing happens if it is gone.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        if self.streams.remove(stream.0).is_some() {
            frame::put_reset(&mut self.output, stream.0, code);
        }
    }

    /// Says that the connection will close, while streams that are under way may still arrive: GOAWAY with the highest
    /// stream number (RFC 9113 §6.8). Follow it by [`go_away`](Self::go_away) a round trip later.
    pub fn announce_shutdown(&mut self) {
        if !self.shutting_down {
            self.shutting_down = true;
            let last_stream = if self.role == Role::Server { 0x7fff_ffff } else { 0 };
            frame::put_go_away(&mut self.output, last_stream, ErrorCode::NO_ERROR);
        }
    }

    /// Says GOAWAY: streams that were accepted go on, later ones are refused. Only the first call counts.
    pub fn go_away(&mut self, code: ErrorCode) {
        if !self.refusing {
            (self.refusing, self.shutting_down) = (true, true);
            let last_stream = self.peers_last_stream();
            frame::put_go_away(&mut self.output, last_stream, code);
        }
    }

    /// Sends a PING. Also restores the allowance for frames that make no progress and gives back memory that a burst
    /// took, so it is to be called at an interval (10 s, as ztunnel does).
    pub fn ping(&mut self, payload: [u8; 8]) {
        self.budget = Budget::default();
        self.streams.shrink();
        if self.output.is_empty() {
            self.output.shrink_to(IDLE_OUTPUT);
        }
        frame::put_ping(&mut self.output, 0, payload);
    }

    /// Frames to be written, in order, before any DATA whose header is taken later. The caller empties it.
    pub fn pending_output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// How many streams are open, half-closed ones included.
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// How many streams the peer allows at a time; `u32::MAX` until it says.
    pub fn peer_max_concurrent(&self) -> u32 {
        self.peer.max_concurrent_streams
    }

    /// Whether either end has said GOAWAY, or the connection failed: no new streams.
    pub fn is_draining(&self) -> bool {
        self.shutting_down || self.peer_last_stream.is_some()
    }

    /// Whether no stream will come any more: once those that are open have ended, the connection can be closed. That is
    /// so from [`go_away`](Self::go_away) on, or the peer's GOAWAY.
    pub fn may_close(&self) -> bool {
        self.refusing || self.peer_last_stream.is_some()
    }

    /// Bytes of memory the connection takes, the struct itself included.
    pub fn memory(&self) -> usize {
        size_of::<Self>()
            + self.output.capacity()
            + self.streams.heap_size()
            + self.decoder.heap_size()
            + self.reading.heap_size()
            + self.block.as_ref().map_or(0, |block| block.heap_size())
    }
}

impl Connection {
    fn new(role: Role, settings: Settings) -> Self {
        Self {
            role,
            settings,
            peer: PeerSettings {
                max_concurrent_streams: u32::MAX,
                initial_window_size: DEFAULT_WINDOW,
                max_frame_size: 16_384,
                max_header_list_size: u32::MAX,
            },
            output: Vec::with_capacity(128),
            streams: Streams::default(),
            send_window: DEFAULT_WINDOW as i32,
            receive_window: ReceiveWindow::new(settings.connection_window_size.max(DEFAULT_WINDOW)),
            last_stream: 0,
            refusing: false,
            shutting_down: false,
            peer_last_stream: None,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            reading: Reading::start(role),
            block: None,
            budget: Budget::default(),
            failed: None,
        }
    }

    /// Writes our SETTINGS, and opens the connection's window, which SETTINGS cannot.
    fn announce(&mut self, role_settings: &[(u16, u32)]) {
        let all = [
            (setting::INITIAL_WINDOW_SIZE, self.settings.initial_window_size),
            (setting::MAX_FRAME_SIZE, self.settings.max_frame_size),
            (setting::MAX_HEADER_LIST_SIZE, self.settings.max_header_list_size),
        ];
        frame::put_settings(&mut self.output, &[role_settings, &all].concat());
        let more = self.settings.connection_window_size.saturating_sub(DEFAULT_WINDOW);
        if more > 0 {
            frame::put_window_update(&mut self.output, 0, more);
        }
    }

    fn put_headers<'a>(&mut self, id: u32, fields: impl Iterator<Item = (&'a str, &'a str)>, end_stream: bool) {
        let mut block = Vec::with_capacity(512);
        self.encoder.start_block(&mut block);
        fields.for_each(|(name, value)| hpack::field(&mut block, name, value));
        frame::put_headers(&mut self.output, id, end_stream, self.peer.max_frame_size, &block);
    }

    pub(super) fn add_stream(&mut self, id: u32, remote_closed: bool) {
        self.streams.push(Stream {
            id,
            // Below 2^31, as SETTINGS are checked.
            send_window: self.peer.initial_window_size as i32,
            receive: ReceiveWindow::new(self.settings.initial_window_size),
            local_closed: false,
            remote_closed,
            answered: false,
        });
    }

    fn close_local(&mut self, id: u32) {
        if let Some(stream) = self.streams.find(id) {
            stream.local_closed = true;
            if stream.remote_closed {
                self.streams.remove(id);
            }
        }
    }

    pub(super) fn close_remote(&mut self, id: u32) {
        if let Some(stream) = self.streams.find(id) {
            stream.remote_closed = true;
            if stream.local_closed {
                self.streams.remove(id);
            }
        }
    }

    /// The last stream of the peer's that we looked at, for GOAWAY: a server opens none.
    fn peers_last_stream(&self) -> u32 {
        if self.role == Role::Server { self.last_stream } else { 0 }
    }

    /// A server's DATA comes after its response.
    fn may_send_data(&self, stream: &Stream) -> bool {
        self.role == Role::Client || stream.answered
    }
}
