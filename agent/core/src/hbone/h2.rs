//! A sans-I/O HTTP/2 connection (RFC 9113) made for CONNECT tunnels, both roles.
//!
//! It exists for speed: the caller runs it inline with its sockets, hands it decrypted bytes in whatever pieces
//! they arrive, gets DATA back as borrowed slices, and writes DATA as a nine-byte header plus its own bytes. There is
//! no lock, no task and no allocation on the DATA path, and no clock: what floods are measured against is the work
//! the connection does and the caller's own keepalive [`ping`](Connection::ping).
//!
//! | module | what it is for |
//! |---|---|
//! | [`connection`](Connection) | the state of a connection and what the caller may do with it |
//! | `receive` | bytes from the peer into [`Event`]s, whatever the split |
//! | `frames` | the control frames, one rule of RFC 9113 §6 each |
//! | `headers` | header blocks: HEADERS and CONTINUATION into [`Request`] and [`Response`] |
//! | `streams` | the open streams and their windows |
//! | `budget` | what a peer may cost without getting anything done |
//! | `frame` | the nine-byte frame header, and writing control frames |
//! | [`hpack`] | RFC 7541 |

mod budget;
mod connection;
mod frame;
mod frames;
mod headers;
pub mod hpack;
mod message;
mod receive;
mod streams;

pub use connection::Connection;
pub use message::{BadTarget, Headers, Method, Request, Response};

use std::fmt;

/// What this end tells its peer at the start, and holds the peer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How many streams the peer may have open at a time. Only sent by a server.
    pub max_concurrent_streams: u32,
    /// How many bytes of DATA a peer may send on one stream before they are released.
    pub initial_window_size: u32,
    /// The same for all streams of the connection together.
    pub connection_window_size: u32,
    /// The largest frame payload accepted, 16 384 to 16 777 215 bytes.
    pub max_frame_size: u32,
    /// The largest header list accepted, in RFC 9113 §6.5.2 units: names, values and 32 bytes a field.
    pub max_header_list_size: u32,
}

impl Settings {
    /// What a ztunnel announces as HBONE server.
    pub const SERVER: Self = Self {
        max_concurrent_streams: 200,
        initial_window_size: 4 << 20,
        connection_window_size: 16 << 20,
        max_frame_size: 1 << 20,
        max_header_list_size: 64 << 10,
    };

    /// What a ztunnel announces as HBONE client.
    pub const CLIENT: Self = Self { max_concurrent_streams: 0, max_header_list_size: 16 << 10, ..Self::SERVER };
}

/// The number of a stream: odd, from 1, never reused within a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(u32);

impl StreamId {
    /// The number itself.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something that happened on the connection, for the caller to act on.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'b> {
    /// The peer's SETTINGS were applied and acknowledged. Stream limits and the send windows of all streams may have
    /// changed.
    PeerSettings,
    /// Server: a new stream. Answer with [`Connection::respond`] or [`Connection::reset`].
    Request {
        /// The new stream.
        stream: StreamId,
        /// What is asked for, not yet known to be a CONNECT: see [`Request::target`].
        request: Request,
        /// The peer will send no DATA.
        end_stream: bool,
    },
    /// Client: the final response (never 1xx).
    Response {
        /// The stream it answers.
        stream: StreamId,
        /// Status and headers.
        response: Response,
        /// The peer will send no DATA.
        end_stream: bool,
    },
    /// A piece of DATA. The bytes count against both windows until [`Connection::release`] and
    /// [`Connection::release_connection`].
    Data {
        /// The stream it belongs to.
        stream: StreamId,
        /// The bytes, borrowed from the input; empty only together with `end_stream`.
        payload: &'b [u8],
        /// The peer's half of the stream ends with this piece.
        end_stream: bool,
    },
    /// The peer ended its half of the stream with trailers.
    Trailers {
        /// The stream that ended.
        stream: StreamId,
    },
    /// The stream is gone in both directions: reset by the peer, reset by us because the peer broke a rule on it, or
    /// (`REFUSED_STREAM`) not covered by the peer's GOAWAY.
    Reset {
        /// The stream that is gone.
        stream: StreamId,
        /// Why; see [`ErrorCode::is_end`].
        code: ErrorCode,
    },
    /// The peer accepts no more streams. Open streams up to `last_stream` go on; a [`Event::Reset`] follows for each
    /// stream above it.
    GoAway {
        /// The last stream that the peer may have acted on.
        last_stream: u32,
        /// Why it goes.
        code: ErrorCode,
    },
    /// A send window grew: look at [`Connection::writable`] again.
    WindowOpen {
        /// The stream, or `None` for the connection's window, which may unblock any stream.
        stream: Option<StreamId>,
    },
    /// The answer to a [`Connection::ping`].
    Pong {
        /// What was sent with the ping.
        payload: [u8; 8],
    },
}

/// An HTTP/2 error code (RFC 9113 §7).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl ErrorCode {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The name that RFC 9113 gives the code, if it gives one.
            pub fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

error_codes! {
    /// Nothing is wrong.
    NO_ERROR = 0x0;
    /// The peer broke the protocol.
    PROTOCOL_ERROR = 0x1;
    /// Something failed on the sender's side.
    INTERNAL_ERROR = 0x2;
    /// More DATA than the window allows.
    FLOW_CONTROL_ERROR = 0x3;
    /// SETTINGS were not acknowledged in time.
    SETTINGS_TIMEOUT = 0x4;
    /// A frame for a stream that is half-closed.
    STREAM_CLOSED = 0x5;
    /// A frame of the wrong size.
    FRAME_SIZE_ERROR = 0x6;
    /// The stream was not looked at; it may be tried again.
    REFUSED_STREAM = 0x7;
    /// The stream is no longer needed.
    CANCEL = 0x8;
    /// The header compression state is lost.
    COMPRESSION_ERROR = 0x9;
    /// The TCP connection behind a CONNECT was reset or failed.
    CONNECT_ERROR = 0xa;
    /// The peer makes more work than it is worth.
    ENHANCE_YOUR_CALM = 0xb;
    /// The transport is not secure enough.
    INADEQUATE_SECURITY = 0xc;
    /// HTTP/1.1 is wanted.
    HTTP_1_1_REQUIRED = 0xd;
}

impl ErrorCode {
    /// Whether a reset with this code reads as the end of the stream, not as a broken connection (ztunnel and Envoy
    /// both end healthy tunnels this way).
    pub fn is_end(self) -> bool {
        matches!(self, Self::NO_ERROR | Self::CANCEL)
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {:#x}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The connection cannot go on. A GOAWAY is in [`Connection::pending_output`]: write it, then close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("HTTP/2 {code}: {reason}")]
pub struct ConnectionError {
    /// What the peer is told.
    pub code: ErrorCode,
    /// What happened, for the log.
    pub reason: &'static str,
}

/// Why a stream could not be opened. The connection itself is unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// One of both ends said GOAWAY, or the connection failed: use another connection.
    #[error("the connection is closing: open the stream on another one")]
    Draining,
    /// As many streams are open as the peer allows.
    #[error("the peer allows {0} streams at a time: wait for one to end, or use another connection")]
    TooManyStreams(u32),
    /// All 2^30 stream numbers are used up.
    #[error("the connection has used all its stream numbers: use another one")]
    IdsExhausted,
    /// The headers are larger than the peer's SETTINGS_MAX_HEADER_LIST_SIZE.
    #[error("the request's headers take {size} bytes and the peer accepts {limit}")]
    HeadersTooLarge {
        /// Their size, in RFC 9113 §6.5.2 units.
        size: usize,
        /// The peer's limit.
        limit: u32,
    },
    /// Only a client opens streams.
    #[error("a server does not open streams")]
    NotAClient,
}

/// The stream is not, or no longer, open for what was asked: it was reset, ended, or never existed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stream {0} is not open for sending")]
pub struct StreamClosed(pub StreamId);

#[cfg(test)]
mod interop;
#[cfg(test)]
mod tests;
