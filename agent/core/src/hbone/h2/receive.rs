//! Bytes from the peer into frames and DATA, whatever the split.

use super::budget::Budget;
use super::connection::{Connection, Role};
use super::frame::{FrameHeader, HEADER_LEN, PREFACE, flag, kind};
use super::{ConnectionError, ErrorCode, Event, StreamId};

/// Where in the peer's bytes we are.
#[derive(Debug)]
pub(super) enum Reading {
    /// In the client's preface, after so many bytes.
    Preface(u8),
    /// In a frame header, after `have` bytes. `first`: the peer's first frame, which must be SETTINGS.
    Header { have: u8, first: bool, bytes: [u8; HEADER_LEN] },
    /// In a frame that is needed whole.
    Payload { header: FrameHeader, bytes: Vec<u8> },
    /// In a DATA frame, before its padding length.
    PadLength { stream: u32, len: u32, end_stream: bool },
    /// In the DATA of a DATA frame.
    Data { stream: u32, left: u32, padding: u8, end_stream: bool },
    /// In bytes that mean nothing.
    Skip(u32),
}

impl Reading {
    pub(super) fn start(role: Role) -> Self {
        match role {
            Role::Client => Self::Header { have: 0, first: true, bytes: [0; HEADER_LEN] },
            Role::Server => Self::Preface(0),
        }
    }

    pub(super) fn heap_size(&self) -> usize {
        match self {
            Self::Payload { bytes, .. } => bytes.capacity(),
            _ => 0,
        }
    }

    const NEXT: Self = Self::Header { have: 0, first: false, bytes: [0; HEADER_LEN] };

    /// Past `len` bytes of no interest.
    fn skip(len: u32) -> Self {
        if len == 0 { Self::NEXT } else { Self::Skip(len) }
    }
}

/// A rule broken on one stream only, to be answered by RST_STREAM.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamError {
    pub(super) stream: u32,
    pub(super) code: ErrorCode,
}

/// Either kind of error.
#[derive(Clone, Copy, Debug)]
pub(super) enum Broken {
    Stream(StreamError),
    Connection(ConnectionError),
}

impl From<ConnectionError> for Broken {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(error)
    }
}

pub(super) fn connection_error<T, E: From<ConnectionError>>(code: ErrorCode, reason: &'static str) -> Result<T, E> {
    Err(ConnectionError { code, reason }.into())
}

pub(super) fn stream_error<T>(stream: u32, code: ErrorCode) -> Result<T, Broken> {
    Err(Broken::Stream(StreamError { stream, code }))
}

impl Connection {
    /// [`receive`](Self::receive), on a connection that has not failed.
    pub(super) fn read<'b>(&mut self, input: &'b [u8]) -> Result<(usize, Option<Event<'b>>), ConnectionError> {
        if let Some(event) = self.next_refused() {
            return Ok((0, Some(event)));
        }
        let mut rest = input;
        while !rest.is_empty() {
            let event = self.step(&mut rest)?;
            if event.is_some() {
                return Ok((input.len() - rest.len(), event));
            }
        }
        Ok((input.len(), None))
    }

    /// Consumes at least one byte of `rest`.
    fn step<'b>(&mut self, rest: &mut &'b [u8]) -> Result<Option<Event<'b>>, ConnectionError> {
        match &mut self.reading {
            Reading::Preface(have) => {
                let expected = PREFACE.get(usize::from(*have)..).unwrap_or_default();
                let got = take(rest, expected.len());
                if !expected.starts_with(got) {
                    return connection_error(ErrorCode::PROTOCOL_ERROR, "the peer does not speak HTTP/2");
                }
                *have += got.len() as u8;
                if usize::from(*have) == PREFACE.len() {
                    self.reading = Reading::start(Role::Client);
                }
                Ok(None)
            }
            Reading::Header { have, first, bytes } => {
                let first = *first;
                let start = usize::from(*have);
                let got = take(rest, HEADER_LEN - start);
                bytes[start..start + got.len()].copy_from_slice(got);
                *have += got.len() as u8;
                if usize::from(*have) < HEADER_LEN {
                    return Ok(None);
                }
                let header = FrameHeader::parse(*bytes);
                if first && (header.kind != kind::SETTINGS || header.has(flag::ACK)) {
                    return connection_error(ErrorCode::PROTOCOL_ERROR, "the peer's first frame is not SETTINGS");
                }
                self.reading = Reading::NEXT;
                let event = self.frame_header(header, rest);
                self.survive(event)
            }
            Reading::Payload { header, bytes } => {
                let header = *header;
                bytes.extend_from_slice(take(rest, header.len as usize - bytes.len()));
                if bytes.len() < header.len as usize {
                    return Ok(None);
                }
                let payload = std::mem::take(bytes);
                self.reading = Reading::NEXT;
                let event = self.frame(header, &payload);
                self.survive(event)
            }
            Reading::PadLength { stream, len, end_stream } => {
                let (stream, len, end_stream) = (*stream, *len, *end_stream);
                let padding = take(rest, 1).first().copied().unwrap_or_default();
                let Some(left) = (len - 1).checked_sub(u32::from(padding)) else {
                    return connection_error(ErrorCode::PROTOCOL_ERROR, "DATA padding is longer than its frame");
                };
                self.release(StreamId(stream), usize::from(padding) + 1);
                self.release_connection(usize::from(padding) + 1);
                if left > 0 {
                    self.reading = Reading::Data { stream, left, padding, end_stream };
                    return Ok(None);
                }
                self.reading = Reading::skip(u32::from(padding));
                self.empty_data(stream, end_stream)
            }
            Reading::Data { stream, left, padding, end_stream } => {
                let (stream, end_stream) = (*stream, *end_stream);
                let payload = take(rest, *left as usize);
                *left -= payload.len() as u32;
                let last = *left == 0;
                if last {
                    self.reading = Reading::skip(u32::from(*padding));
                }
                Ok(self.data(stream, payload, last && end_stream))
            }
            Reading::Skip(left) => {
                let got = take(rest, *left as usize).len() as u32;
                self.reading = Reading::skip(*left - got);
                Ok(None)
            }
        }
    }

    /// Decides how a frame is read, and reads it at once if it is all there.
    fn frame_header<'b>(&mut self, header: FrameHeader, rest: &mut &'b [u8]) -> Result<Option<Event<'b>>, Broken> {
        if header.len > self.settings.max_frame_size {
            return connection_error(ErrorCode::FRAME_SIZE_ERROR, "a frame is larger than our SETTINGS allow");
        }
        if self.block.is_some() && header.kind != kind::CONTINUATION {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "a header block is interrupted by another frame");
        }
        match header.kind {
            kind::DATA => return self.data_frame(header),
            kind::HEADERS | kind::CONTINUATION => self.check_block_size(header)?,
            kind::RST_STREAM | kind::SETTINGS | kind::PING | kind::GOAWAY | kind::WINDOW_UPDATE => {
                check_control_size(header)?;
            }
            kind::PUSH_PROMISE => {
                return connection_error(ErrorCode::PROTOCOL_ERROR, "the peer pushes, which nobody allowed");
            }
            // PRIORITY is obsolete, and unknown frames are to be ignored (RFC 9113 §5.3.2 and §5.5).
            _ => {
                self.budget.spend(Budget::FRAME)?;
                self.reading = Reading::skip(header.len);
                return Ok(None);
            }
        }
        match rest.split_at_checked(header.len as usize) {
            Some((payload, after)) => {
                *rest = after;
                self.frame(header, payload)
            }
            None => {
                // Grows as bytes come, not by what the header claims.
                self.reading = Reading::Payload { header, bytes: Vec::new() };
                Ok(None)
            }
        }
    }

    /// One whole frame.
    fn frame(&mut self, header: FrameHeader, payload: &[u8]) -> Result<Option<Event<'static>>, Broken> {
        match header.kind {
            kind::HEADERS => self.headers_frame(header, payload),
            kind::CONTINUATION => self.continuation_frame(header, payload),
            kind::RST_STREAM => self.reset_frame(header, payload),
            kind::SETTINGS => self.settings_frame(header, payload),
            kind::PING => self.ping_frame(header, payload),
            kind::GOAWAY => self.go_away_frame(header, payload),
            kind::WINDOW_UPDATE => self.window_update_frame(header, payload),
            _ => Ok(None),
        }
    }

    /// Accounts for a DATA frame (RFC 9113 §6.1) before any of it is looked at; its bytes follow.
    fn data_frame<'b>(&mut self, header: FrameHeader) -> Result<Option<Event<'b>>, Broken> {
        let FrameHeader { len, stream, .. } = header;
        if stream == 0 || self.is_idle(stream) {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "DATA on a stream that was never opened");
        }
        if !self.receive_window.take(len) {
            return connection_error(ErrorCode::FLOW_CONTROL_ERROR, "DATA beyond the connection's window");
        }
        if header.has(flag::PADDED) && len == 0 {
            return connection_error(ErrorCode::FRAME_SIZE_ERROR, "padded DATA without a padding length");
        }
        let role = self.role;
        let fault = match self.streams.find(stream) {
            // Already under way when we reset the stream.
            None => None,
            Some(open) if open.remote_closed => Some(ErrorCode::STREAM_CLOSED),
            Some(open) if role == Role::Client && !open.answered => Some(ErrorCode::PROTOCOL_ERROR),
            Some(open) => match open.receive.take(len) {
                true => return Ok(self.open_data_frame(header)?),
                false => Some(ErrorCode::FLOW_CONTROL_ERROR),
            },
        };
        self.release_connection(len as usize);
        self.reading = Reading::skip(len);
        if let Some(code) = fault {
            return stream_error(stream, code);
        }
        if len == 0 {
            self.budget.spend(Budget::FRAME)?;
        }
        Ok(None)
    }

    /// A DATA frame that is within its stream's rules.
    fn open_data_frame<'b>(&mut self, header: FrameHeader) -> Result<Option<Event<'b>>, ConnectionError> {
        let FrameHeader { len, stream, .. } = header;
        let end_stream = header.has(flag::END_STREAM);
        if len == 0 {
            return self.empty_data(stream, end_stream);
        }
        self.reading = match header.has(flag::PADDED) {
            true => Reading::PadLength { stream, len, end_stream },
            false => Reading::Data { stream, left: len, padding: 0, end_stream },
        };
        Ok(None)
    }

    /// A piece of DATA. The stream may have been reset since the frame began.
    fn data<'b>(&mut self, stream: u32, payload: &'b [u8], end_stream: bool) -> Option<Event<'b>> {
        if self.streams.get(stream).is_none() {
            self.release_connection(payload.len());
            return None;
        }
        self.budget.earn(Budget::FRAME);
        if end_stream {
            self.close_remote(stream);
        }
        Some(Event::Data { stream: StreamId(stream), payload, end_stream })
    }

    /// A DATA frame that holds nothing, of which there is no need unless it ends the stream.
    fn empty_data<'b>(&mut self, stream: u32, end_stream: bool) -> Result<Option<Event<'b>>, ConnectionError> {
        if !end_stream {
            self.budget.spend(Budget::FRAME)?;
            return Ok(None);
        }
        if self.streams.get(stream).is_none() {
            return Ok(None);
        }
        self.close_remote(stream);
        Ok(Some(Event::Data { stream: StreamId(stream), payload: &[], end_stream }))
    }

    /// Turns a stream error into a reset, of which the caller hears if it knows the stream.
    fn survive<'b>(
        &mut self,
        outcome: Result<Option<Event<'b>>, Broken>,
    ) -> Result<Option<Event<'b>>, ConnectionError> {
        match outcome {
            Ok(event) => Ok(event),
            Err(Broken::Connection(error)) => Err(error),
            Err(Broken::Stream(StreamError { stream, code })) => {
                self.budget.spend(Budget::STREAM_ERROR)?;
                self.reply_reset(stream, code)?;
                let known = self.streams.remove(stream);
                Ok(known.map(|_| Event::Reset { stream: StreamId(stream), code }))
            }
        }
    }

    /// Whether `stream` has not been opened yet. No stream of a server's is ever opened, as it must not push.
    pub(super) fn is_idle(&self, stream: u32) -> bool {
        stream.is_multiple_of(2) || stream > self.last_stream
    }
}

fn take<'b>(rest: &mut &'b [u8], n: usize) -> &'b [u8] {
    let (got, after) = rest.split_at(n.min(rest.len()));
    *rest = after;
    got
}

/// Frames of a fixed size must have it, before a byte of them is kept.
fn check_control_size(header: FrameHeader) -> Result<(), ConnectionError> {
    /// More settings than were ever defined.
    const MAX_SETTINGS: u32 = 64;
    /// The largest GOAWAY debug text that is read (and dropped).
    const MAX_GOAWAY: u32 = 16 << 10;
    let right = match header.kind {
        kind::RST_STREAM | kind::WINDOW_UPDATE => header.len == 4,
        kind::PING => header.len == 8,
        kind::GOAWAY => header.len >= 8,
        _ if header.has(flag::ACK) => header.len == 0,
        _ => header.len.is_multiple_of(6),
    };
    if !right {
        return connection_error(ErrorCode::FRAME_SIZE_ERROR, "a control frame has the wrong size");
    }
    match header.kind {
        kind::SETTINGS if header.len > 6 * MAX_SETTINGS => {
            connection_error(ErrorCode::ENHANCE_YOUR_CALM, "a SETTINGS frame with more settings than there are")
        }
        kind::GOAWAY if header.len > MAX_GOAWAY => {
            connection_error(ErrorCode::ENHANCE_YOUR_CALM, "a GOAWAY frame with an endless debug text")
        }
        _ => Ok(()),
    }
}
