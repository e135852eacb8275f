//! HTTP/1, HTTP/2, TLS, or none of them.

/// The longest first line of a request that is waited for. One that is longer, and like a request up to here, counts as
/// one: then it is answered that it is too long.
pub const MAX_REQUEST_LINE: usize = 8 << 10;

/// What every HTTP/2 client sends first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest method there is.
const MAX_METHOD: usize = 32;
/// What ends the first line of an HTTP/1 request before its CRLF or LF.
const VERSIONS: [&[u8]; 2] = [b" HTTP/1.1", b" HTTP/1.0"];

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// They may yet become any of the others: look again at more.
    More,
    /// A request of HTTP/1.0 or 1.1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// A TLS handshake.
    Tls,
    /// Anything else.
    Other,
}

/// Says what `bytes` are, the first of a connection.
pub fn sniff(bytes: &[u8]) -> Sniffed {
    match bytes {
        [] | [0x16] => return Sniffed::More,
        // A handshake record of TLS 1.0 to 1.3, all of which say 3.x.
        [0x16, 0x03, ..] => return Sniffed::Tls,
        _ => {}
    }
    match is_http2(bytes) {
        Some(true) => return Sniffed::Http2,
        None => return Sniffed::More,
        Some(false) => {}
    }
    // No more is looked at than is waited for, or more bytes could make it something else.
    request_line(bytes.get(..MAX_REQUEST_LINE).unwrap_or(bytes))
}

/// Whether a client of HTTP speaks version 2; `None` if more has to come to tell.
pub fn is_http2(bytes: &[u8]) -> Option<bool> {
    match bytes.starts_with(PREFACE) {
        true => Some(true),
        false if PREFACE.starts_with(bytes) => None,
        false => Some(false),
    }
}

/// Whether this is `METHOD SP TARGET SP HTTP/1.x` and the end of a line.
fn request_line(bytes: &[u8]) -> Sniffed {
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    if method > MAX_METHOD {
        return Sniffed::Other;
    }
    let Some((separator, rest)) = bytes[method..].split_first() else { return Sniffed::More };
    if *separator != b' ' || method == 0 {
        return Sniffed::Other;
    }
    // Whatever is neither a control character nor a space may be in a target; servers judge it later.
    let is_target = |byte: u8| byte > b' ' && byte != 0x7f;
    let target = rest.iter().take_while(|byte| is_target(**byte)).count();
    if target == 0 && !rest.is_empty() {
        return Sniffed::Other;
    }
    let version = &rest[target..];
    let is_whole = |expected: &&[u8]| {
        version.strip_prefix(*expected).is_some_and(|end| end.starts_with(b"\n") || end.starts_with(b"\r\n"))
    };
    if VERSIONS.iter().any(is_whole) {
        return Sniffed::Http1;
    }
    let may_become = |expected: &&[u8]| {
        expected.starts_with(version) || version.strip_prefix(*expected).is_some_and(|end| end == b"\r")
    };
    match VERSIONS.iter().any(may_become) {
        true if bytes.len() >= MAX_REQUEST_LINE => Sniffed::Http1,
        true => Sniffed::More,
        false => Sniffed::Other,
    }
}

/// A character of a method (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_say_what_a_connection_speaks() {
        for (bytes, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Sniffed::Http1),
            (b"OPTIONS * HTTP/1.0\n", Sniffed::Http1),
            (b"PURGE http://a.example/x?y HTTP/1.1\r\nHost: a", Sniffed::Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00", Sniffed::Http2),
            (b"\x16\x03\x01\x02\x00", Sniffed::Tls),
            (b"", Sniffed::More),
            (b"\x16", Sniffed::More),
            (b"G", Sniffed::More),
            (b"PRI", Sniffed::More),
            (b"PROPFIND /", Sniffed::More),
            (b"GET / HTTP/1.1", Sniffed::More),
            (b"GET / HTTP/1.1\r", Sniffed::More),
            (b"\x16\x02", Sniffed::Other),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Sniffed::Other),
            (b"PING\r\n", Sniffed::Other),
            (b"EHLO a.example\r\n", Sniffed::Other),
            (b"*1\r\n$4\r\nPING\r\n", Sniffed::Other),
            (b"GET / HTTP/1.2\r\n", Sniffed::Other),
            (b"GET / HTTP/1.1 \r\n", Sniffed::Other),
            (b"GET  / HTTP/1.1\r\n", Sniffed::Other),
            (b" GET / HTTP/1.1\r\n", Sniffed::Other),
            (b"SSH-2.0-OpenSSH_9\r\n", Sniffed::Other),
            (b"\x00\x00\x00\x2a", Sniffed::Other),
        ] {
            assert_eq!(sniff(bytes), expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn however_the_bytes_come_in_pieces_the_answer_is_the_same() {
        for whole in [&b"GET /a HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01", b"PROXY x\r\n"]
        {
            let first = (0..=whole.len()).map(|length| sniff(&whole[..length])).find(|is| *is != Sniffed::More);
            assert_eq!(first, Some(sniff(whole)), "{whole:?}");
        }
    }

    #[test]
    fn what_is_like_a_request_for_too_long_is_one() {
        let line = |length: usize| [b"GET /".to_vec(), vec![b'a'; length - 5]].concat();
        assert_eq!(sniff(&line(MAX_REQUEST_LINE - 1)), Sniffed::More);
        assert_eq!(sniff(&line(MAX_REQUEST_LINE)), Sniffed::Http1);
        assert_eq!(sniff(&[b'A'; MAX_METHOD]), Sniffed::More);
        assert_eq!(sniff(&[b'A'; MAX_METHOD + 1]), Sniffed::Other);
    }
}
