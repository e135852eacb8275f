//! Where one message of an HTTP/1 connection ends and the next begins, followed beside hyper for what hyper keeps to
//! itself: that a head said its length in two ways, and since when a head has been coming.
//!
//! hyper reads a request that has both `Content-Length` and `Transfer-Encoding` as RFC 9112, 6.3 allows, and its
//! service sees one of them. Envoy refuses it, since whoever is behind the proxy might read it the other way; so do we.
//! Nothing here decides what a message is: at worst a request is refused.

use smallvec::SmallVec;

/// The most of a line that is looked at: more than any name of interest and a length need.
const LINE: usize = 64;

/// Follows the messages that a client sends.
#[derive(Debug, Default)]
pub(super) struct Framing {
    at: At,
    /// What has come of the line that is coming, up to [`LINE`] bytes.
    line: SmallVec<[u8; LINE]>,
    /// How long that line is so far.
    line_length: usize,
    /// Lines of the head so far.
    lines: u32,
    length: Option<u64>,
    chunked: bool,
    ambiguous: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum At {
    #[default]
    Head,
    /// So many bytes before the next head.
    Body(u64),
    /// A chunk's size.
    Size(u64),
    /// What is behind a chunk's size on its line.
    Extension(u64),
    /// So many bytes before the next chunk's size.
    Chunk(u64),
    Trailers,
}

impl Framing {
    /// Whether a head has begun and not ended.
    pub(super) fn is_in_head(&self) -> bool {
        matches!(self.at, At::Head) && (self.lines > 0 || self.line_length > 0)
    }

    /// Whether a head said its length in two ways, or in one that cannot be followed.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.ambiguous
    }

    /// Follows `bytes`, the next that have come.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.ambiguous {
            bytes = match self.at {
                At::Head => self.line_of(bytes, Self::head_line),
                At::Trailers => self.line_of(bytes, Self::trailer_line),
                At::Body(left) => self.skip(bytes, left, At::Head, At::Body),
                At::Chunk(left) => self.skip(bytes, left, At::Size(0), At::Chunk),
                At::Size(size) => self.size(bytes, size),
                At::Extension(size) => self.extension(bytes, size),
            };
        }
    }

    fn skip<'b>(&mut self, bytes: &'b [u8], left: u64, then: At, more: fn(u64) -> At) -> &'b [u8] {
        let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.at = match left - now as u64 {
            0 => then,
            left => more(left),
        };
        &bytes[now..]
    }

    /// Takes what there is of a line; `whole` is told of it, without its end, once all of it has come.
    fn line_of<'b>(&mut self, bytes: &'b [u8], whole: fn(&mut Self, &[u8])) -> &'b [u8] {
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let line = &bytes[..end.unwrap_or(bytes.len())];
        if self.line_length > 0 || end.is_none() {
            let room = LINE - self.line.len();
            self.line.extend_from_slice(&line[..line.len().min(room)]);
            self.line_length += line.len();
        }
        let Some(end) = end else { return &[] };
        if self.line_length > 0 {
            let line = std::mem::take(&mut self.line);
            self.line_length = 0;
            whole(self, line.strip_suffix(b"\r").unwrap_or(&line));
        } else {
            whole(self, line.strip_suffix(b"\r").unwrap_or(line));
        }
        &bytes[end + 1..]
    }

    fn head_line(&mut self, line: &[u8]) {
        match (line.is_empty(), self.lines) {
            // Empty lines before a request are passed over (RFC 9112, 2.2).
            (true, 0) => {}
            (true, _) => self.end_head(),
            (false, 0) => self.lines = 1,
            (false, _) => {
                self.lines = self.lines.saturating_add(1);
                self.header(line);
            }
        }
    }

    fn header(&mut self, line: &[u8]) {
        // Few lines begin like this, and no more is looked at of the others.
        if !matches!(line[0], b'c' | b'C' | b't' | b'T') {
            return;
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            // Of a line that was cut, the last digits may be missing.
            let length = length.filter(|_| line.len() < LINE);
            self.ambiguous |= length.is_none() || self.length.is_some_and(|other| Some(other) != length);
            self.length = length;
        }
        self.ambiguous |= self.chunked && self.length.is_some();
    }

    fn end_head(&mut self) {
        self.at = match (self.chunked, self.length) {
            (true, _) => At::Size(0),
            (false, None | Some(0)) => At::Head,
            (false, Some(length)) => At::Body(length),
        };
        (self.lines, self.length, self.chunked) = (0, None, false);
    }

    fn trailer_line(&mut self, line: &[u8]) {
        if line.is_empty() {
            self.at = At::Head;
        }
    }

    fn size<'b>(&mut self, bytes: &'b [u8], size: u64) -> &'b [u8] {
        let Some(digit) = char::from(bytes[0]).to_digit(16) else {
            self.at = At::Extension(size);
            return bytes;
        };
        match size.checked_mul(16).and_then(|size| size.checked_add(u64::from(digit))) {
            Some(size) => self.at = At::Size(size),
            None => self.ambiguous = true,
        }
        &bytes[1..]
    }

    fn extension<'b>(&mut self, bytes: &'b [u8], size: u64) -> &'b [u8] {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return &[] };
        self.at = match size {
            0 => At::Trailers,
            // With the line break behind it.
            size => At::Chunk(size.saturating_add(2)),
        };
        &bytes[end + 1..]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn follow(text: &str) -> Framing {
        let mut framing = Framing::default();
        framing.follow(text.as_bytes());
        framing
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    const POST: &str = "POST / HTTP/1.1\r\nContent-Length: 5\r\nhost: a\r\n\r\nGET /";
    const CHUNKED: &str = "POST / HTTP/1.1\r\nTRANSFER-ENCODING: chunked\r\n\r\n5;x=y\r\nc: 1\n\r\n1A\r\n012345678901234567890123\r\n\r\n0\r\na: b\r\n\r\n";
    const BOTH: &str = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n";

    #[test]
    fn a_head_that_says_its_length_in_two_ways_is_ambiguous_wherever_it_comes() {
        for before in ["", "\r\n", GET, POST, CHUNKED, &format!("{POST}{CHUNKED}{GET}{GET}")] {
            assert!(!follow(before).is_ambiguous(), "{before:?}");
            assert!(follow(&format!("{before}{BOTH}")).is_ambiguous(), "{before:?}");
        }
    }

    #[test]
    fn lengths_that_cannot_be_followed_are_ambiguous() {
        for lines in [
            "content-length: 5\r\ncontent-length: 6",
            "content-length: -1",
            "content-length: 5, 5",
            "content-length: 0x5",
            "content-length: 99999999999999999999",
            "content-length:                                                                      5",
            "content-length: 5\r\ntransfer-encoding: chunked",
        ] {
            assert!(follow(&format!("POST / HTTP/1.1\r\n{lines}\r\n\r\n")).is_ambiguous(), "{lines:?}");
        }
        assert!(follow("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n11111111111111111\r\n").is_ambiguous());
        assert!(!follow("POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n").is_ambiguous());
    }

    #[test]
    fn a_body_that_looks_like_a_head_is_none() {
        let body = "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n";
        let sized = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let chunked =
            format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        for text in [sized, chunked] {
            assert!(!follow(&text).is_ambiguous());
            assert!(!follow(&text).is_in_head());
            assert!(follow(&format!("{text}G")).is_in_head());
        }
    }

    #[test]
    fn a_head_is_coming_from_its_first_byte_to_its_last() {
        assert!(!follow("").is_in_head() && !follow("\r\n").is_in_head());
        assert!(follow("G").is_in_head() && follow(&GET[..GET.len() - 1]).is_in_head());
        assert!(!follow(GET).is_in_head());
    }

    proptest! {
        /// However the bytes are cut up, what is found is the same.
        #[test]
        fn it_does_not_matter_how_bytes_arrive(
            messages in proptest::collection::vec(proptest::sample::select(vec![GET, POST, CHUNKED, BOTH]), 0..5),
            cuts in proptest::collection::vec(1_usize..40, 1..200),
        ) {
            let text = messages.concat();
            let whole = follow(&text);
            let mut pieces = Framing::default();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break }
                let (piece, after) = rest.split_at(rest.len().min(*cut));
                pieces.follow(piece);
                rest = after;
            }
            prop_assert_eq!(whole.is_ambiguous(), pieces.is_ambiguous());
            prop_assert_eq!(whole.is_ambiguous(), messages.contains(&BOTH));
            prop_assert!(whole.is_ambiguous() || whole.is_in_head() == pieces.is_in_head());
        }

        #[test]
        fn nothing_that_arrives_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            Framing::default().follow(&bytes);
        }
    }
}
