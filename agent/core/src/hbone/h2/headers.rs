//! Header blocks: HEADERS and CONTINUATION (RFC 9113 §6.2, §6.10) into requests, responses and trailers (§8).

use super::budget::Budget;
use super::connection::{Connection, Role};
use super::frame::{FrameHeader, flag};
use super::receive::{Broken, connection_error, stream_error};
use super::{ConnectionError, ErrorCode, Event, Headers, Method, Request, Response, StreamId};

/// How many CONTINUATION frames one block may take (CVE-2024-27316): ours would take four.
const MAX_CONTINUATIONS: u8 = 32;

/// The longest `:authority` kept; a longer one names no destination anyway.
const MAX_AUTHORITY: usize = 512;

/// The longest foreign method kept.
const MAX_METHOD: usize = 32;

/// A header block that is not complete.
#[derive(Debug)]
pub(super) struct Block {
    stream: u32,
    end_stream: bool,
    continuations: u8,
    bytes: Vec<u8>,
}

impl Block {
    pub(super) fn heap_size(&self) -> usize {
        size_of::<Self>() + self.bytes.capacity()
    }
}

type Outcome = Result<Option<Event<'static>>, Broken>;

impl Connection {
    /// Refuses an endless block as soon as a frame header announces it.
    pub(super) fn check_block_size(&self, header: FrameHeader) -> Result<(), ConnectionError> {
        let have = self.block.as_ref().map_or(0, |block| block.bytes.len());
        // Encoding may add to the size of the list, but hardly ever does.
        let limit = self.settings.max_header_list_size as usize + 1024;
        if have + header.len as usize > limit {
            return connection_error(ErrorCode::ENHANCE_YOUR_CALM, "a header block is larger than our SETTINGS allow");
        }
        Ok(())
    }

    pub(super) fn headers_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Outcome {
        if header.stream == 0 || header.stream.is_multiple_of(2) {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "HEADERS on a stream that no client opens");
        }
        let Some(fragment) = fragment(header, payload) else {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "HEADERS padding is longer than its frame");
        };
        let end_stream = header.has(flag::END_STREAM);
        if header.has(flag::END_HEADERS) {
            return self.block(header.stream, end_stream, fragment);
        }
        let bytes = fragment.to_vec();
        self.block = Some(Box::new(Block { stream: header.stream, end_stream, continuations: 0, bytes }));
        Ok(None)
    }

    pub(super) fn continuation_frame(&mut self, header: FrameHeader, payload: &[u8]) -> Outcome {
        let Some(mut block) = self.block.take().filter(|block| block.stream == header.stream) else {
            return connection_error(ErrorCode::PROTOCOL_ERROR, "CONTINUATION without a header block to continue");
        };
        block.continuations += 1;
        if block.continuations > MAX_CONTINUATIONS {
            return connection_error(ErrorCode::ENHANCE_YOUR_CALM, "a header block in too many pieces");
        }
        block.bytes.extend_from_slice(payload);
        if header.has(flag::END_HEADERS) {
            return self.block(block.stream, block.end_stream, &block.bytes);
        }
        self.block = Some(block);
        Ok(None)
    }

    /// One whole block. It is decoded whatever becomes of its stream, as all blocks share one compression state.
    fn block(&mut self, id: u32, end_stream: bool, block: &[u8]) -> Outcome {
        let expected = match self.streams.get(id) {
            Some(stream) if stream.remote_closed => Expected::Nothing(Some(ErrorCode::STREAM_CLOSED)),
            Some(stream) if self.role == Role::Client && !stream.answered => Expected::Response,
            Some(_) => Expected::Trailers,
            None if id <= self.last_stream => Expected::Nothing(None),
            None if self.role == Role::Server => Expected::Request,
            None => return connection_error(ErrorCode::PROTOCOL_ERROR, "a response to a request that was never made"),
        };
        let mut list = List::new(self.settings.max_header_list_size);
        if self.decoder.decode(block, |name, value| list.field(name, value)).is_err() {
            return connection_error(ErrorCode::COMPRESSION_ERROR, "a header block does not decode");
        }
        if let Expected::Request = expected {
            return self.request(id, end_stream, list);
        }
        let bad = match (expected, list.fault()) {
            (Expected::Nothing(code), _) => match code {
                Some(code) => return stream_error(id, code),
                // Trailers that were under way when we reset the stream; or a number used twice, which we do not act on.
                None => {
                    self.budget.spend(Budget::STREAM)?;
                    return Ok(None);
                }
            },
            (_, fault) => fault,
        };
        if let Some(code) = bad {
            return stream_error(id, code);
        }
        match expected {
            Expected::Response => self.response(id, end_stream, list),
            _ if !end_stream || list.has_pseudo => stream_error(id, ErrorCode::PROTOCOL_ERROR),
            _ => {
                self.close_remote(id);
                Ok(Some(Event::Trailers { stream: StreamId(id) }))
            }
        }
    }

    fn request(&mut self, id: u32, end_stream: bool, list: List) -> Outcome {
        self.last_stream = id;
        // Each will be answered, if only by a refusal.
        self.check_unwritten()?;
        if self.refusing || self.streams.len() >= self.settings.max_concurrent_streams as usize {
            self.budget.spend(Budget::STREAM)?;
            self.reply_reset(id, ErrorCode::REFUSED_STREAM)?;
            return Ok(None);
        }
        let fault = list.fault().or(list.status.map(|_| ErrorCode::PROTOCOL_ERROR));
        if let Some(code) = fault {
            return stream_error(id, code);
        }
        let Some(method) = list.method else { return stream_error(id, ErrorCode::PROTOCOL_ERROR) };
        let request = Request {
            method,
            authority: list.authority,
            has_scheme_or_path: list.has_scheme_or_path,
            headers: list.headers,
        };
        self.add_stream(id, end_stream);
        Ok(Some(Event::Request { stream: StreamId(id), request, end_stream }))
    }

    fn response(&mut self, id: u32, end_stream: bool, list: List) -> Outcome {
        let is_request = list.method.is_some() || list.authority.is_some() || list.has_scheme_or_path;
        let status = match list.status {
            Some(status) if !is_request => status,
            _ => return stream_error(id, ErrorCode::PROTOCOL_ERROR),
        };
        if status < 200 {
            if end_stream {
                return stream_error(id, ErrorCode::PROTOCOL_ERROR);
            }
            self.budget.spend(Budget::FRAME)?;
            return Ok(None);
        }
        if let Some(stream) = self.streams.find(id) {
            stream.answered = true;
        }
        if end_stream {
            self.close_remote(id);
        }
        let response = Response { status, headers: list.headers };
        Ok(Some(Event::Response { stream: StreamId(id), response, end_stream }))
    }
}

/// What a header block on a stream is.
#[derive(Clone, Copy)]
enum Expected {
    Request,
    Response,
    Trailers,
    /// Of no use; the stream is reset with the code, if there is a stream.
    Nothing(Option<ErrorCode>),
}

/// The header block fragment of a HEADERS frame, without padding and priority.
fn fragment(header: FrameHeader, payload: &[u8]) -> Option<&[u8]> {
    let (padding, rest) = match header.has(flag::PADDED) {
        true => payload.split_first().map(|(pad, rest)| (usize::from(*pad), rest))?,
        false => (0, payload),
    };
    let rest = if header.has(flag::PRIORITY) { rest.get(5..)? } else { rest };
    rest.get(..rest.len().checked_sub(padding)?)
}

/// A header list as it is decoded. Past the first fault nothing more is kept.
struct List {
    room: usize,
    fault: Option<ErrorCode>,
    has_pseudo: bool,
    method: Option<Method>,
    authority: Option<Box<str>>,
    has_scheme_or_path: bool,
    status: Option<u16>,
    headers: Headers,
    in_headers: bool,
    /// Which of `:scheme`, `:path` and `:protocol` have come.
    seen: [bool; 3],
}

impl List {
    fn new(max_size: u32) -> Self {
        Self {
            room: max_size as usize,
            fault: None,
            has_pseudo: false,
            method: None,
            authority: None,
            has_scheme_or_path: false,
            status: None,
            headers: Headers::default(),
            in_headers: false,
            seen: [false; 3],
        }
    }

    /// What the stream is to be reset with, if the list is too large or malformed (RFC 9113 §8.1.1).
    fn fault(&self) -> Option<ErrorCode> {
        self.fault
    }

    fn field(&mut self, name: &[u8], value: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        match self.room.checked_sub(name.len() + value.len() + 32) {
            Some(room) => self.room = room,
            None => self.fault = Some(ErrorCode::ENHANCE_YOUR_CALM),
        }
        let accepted = match name.first() {
            _ if !is_value(value) => None,
            Some(b':') => self.pseudo(name, value),
            _ => self.header(name, value),
        };
        if accepted.is_none() {
            self.fault.get_or_insert(ErrorCode::PROTOCOL_ERROR);
        }
    }

    /// A pseudo-header: known, once, before all headers (RFC 9113 §8.3).
    fn pseudo(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        if self.in_headers {
            return None;
        }
        self.has_pseudo = true;
        let text = std::str::from_utf8(value).ok()?;
        let cut = |max| text.get(..text.floor_char_boundary(max)).unwrap_or_default().into();
        match name {
            b":method" => {
                let method = if text == "CONNECT" { Method::Connect } else { Method::Other(cut(MAX_METHOD)) };
                self.method.replace(method).is_none()
            }
            b":authority" => self.authority.replace(cut(MAX_AUTHORITY)).is_none(),
            b":status" => {
                let plain = text.len() == 3 && text.bytes().all(|b| b.is_ascii_digit());
                let status = plain.then(|| text.parse().ok()).flatten().filter(|status| *status >= 100)?;
                self.status.replace(status).is_none()
            }
            _ => {
                let which = [&b":scheme"[..], b":path", b":protocol"].iter().position(|known| *known == name)?;
                self.has_scheme_or_path = true;
                !std::mem::replace(self.seen.get_mut(which)?, true)
            }
        }
        .then_some(())
    }

    /// A header: lower case, and not about an HTTP/1 connection (RFC 9113 §8.2).
    fn header(&mut self, name: &[u8], value: &[u8]) -> Option<()> {
        self.in_headers = true;
        let about_connection =
            matches!(name, b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade");
        if name.is_empty() || !name.iter().all(|b| is_name_byte(*b)) || about_connection {
            return None;
        }
        if name == b"te" && value != b"trailers" {
            return None;
        }
        self.headers.push(name, value);
        Some(())
    }
}

/// A token of RFC 9110 §5.6.2 without upper case.
fn is_name_byte(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b)
}

/// RFC 9113 §8.2.1: no NUL, CR or LF, no white space at the ends.
fn is_value(value: &[u8]) -> bool {
    let blank = |b: Option<&u8>| matches!(b, Some(b' ' | b'\t'));
    !value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n')) && !blank(value.first()) && !blank(value.last())
}
