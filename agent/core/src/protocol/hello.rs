//! The server name in a ClientHello (RFC 8446 §4.1.2, RFC 6066 §3).

use std::borrow::Cow;

/// Bytes of a ClientHello, records included, that are waited for: what Envoy's inspector reads. Post-quantum key shares
/// make them some 2 kB.
pub const MAX_HELLO: usize = 16 << 10;

/// The longest name that DNS has.
const MAX_NAME: usize = 253;
const RECORD_HEADER: usize = 5;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the first bytes of a TLS client say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// The ClientHello goes on: look again at so many bytes.
    More(usize),
    /// It is whole, and asks for this name, in lower case, or for none.
    Whole(Option<Box<str>>),
    /// It is no ClientHello, or one longer than [`MAX_HELLO`].
    Bad,
}

/// Reads the ClientHello that `bytes` begin with.
pub fn hello(bytes: &[u8]) -> Hello {
    match message(bytes) {
        Ok(body) => match server_name(&body) {
            Some(name) => Hello::Whole(name),
            None => Hello::Bad,
        },
        Err(Short::More(needed)) if needed <= MAX_HELLO => Hello::More(needed),
        Err(_) => Hello::Bad,
    }
}

enum Short {
    /// So many bytes are needed to say more. Who looks again only then looks a few times, however small the pieces and
    /// the records are.
    More(usize),
    Bad,
}

/// The body of the ClientHello, which may lie in several records.
fn message(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Short> {
    let (first, mut at) = record(bytes, 0)?;
    let mut whole = Cow::Borrowed(first);
    loop {
        // Of the message's own header as much as it takes to know its length.
        let mut missing = 4_usize.saturating_sub(whole.len());
        if let [kind, a, b, c, body @ ..] = &*whole {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if *kind != CLIENT_HELLO || length > MAX_HELLO {
                return Err(Short::Bad);
            }
            if body.len() >= length {
                return Ok(match whole {
                    Cow::Borrowed(whole) => Cow::Borrowed(&whole[4..4 + length]),
                    Cow::Owned(whole) => Cow::Owned(whole[4..4 + length].to_vec()),
                });
            }
            missing = length - body.len();
        }
        let (next, after) = record(bytes, at).map_err(|short| match short {
            Short::More(needed) => Short::More(needed.max(at + RECORD_HEADER + missing)),
            Short::Bad => Short::Bad,
        })?;
        whole.to_mut().extend_from_slice(next);
        at = after;
    }
}

/// The payload of the handshake record at `at`, and where the next one is.
fn record(bytes: &[u8], at: usize) -> Result<(&[u8], usize), Short> {
    match bytes.get(at..).unwrap_or_default() {
        [HANDSHAKE, 3, _, a, b, rest @ ..] => {
            let length = usize::from(*a) << 8 | usize::from(*b);
            // Empty ones are forbidden (RFC 8446 §5.1), and would go on for ever.
            if length == 0 || length > (1 << 14) {
                return Err(Short::Bad);
            }
            let end = at + RECORD_HEADER + length;
            rest.get(..length).map(|payload| (payload, end)).ok_or(Short::More(end))
        }
        [HANDSHAKE, 3, ..] | [HANDSHAKE] | [] => Err(Short::More(at + RECORD_HEADER)),
        _ => Err(Short::Bad),
    }
}

/// The name that a ClientHello asks for; the outer `None` where it is malformed.
fn server_name(body: &[u8]) -> Option<Option<Box<str>>> {
    // legacy_version and random.
    let rest = body.get(2 + 32..)?;
    let (_session, rest) = short(rest)?;
    let (_suites, rest) = long(rest)?;
    let (_compression, rest) = short(rest)?;
    if rest.is_empty() {
        // TLS 1.2 and older need no extensions.
        return Some(None);
    }
    let (mut extensions, _) = long(rest)?;
    while !extensions.is_empty() {
        let [a, b, rest @ ..] = extensions else { return None };
        let (content, after) = long(rest)?;
        if u16::from_be_bytes([*a, *b]) == SERVER_NAME {
            return host_name(content).map(Some);
        }
        extensions = after;
    }
    Some(None)
}

/// The host name of the extension, of which there is one (RFC 6066 §3).
fn host_name(extension: &[u8]) -> Option<Box<str>> {
    let (list, _) = long(extension)?;
    let [HOST_NAME, rest @ ..] = list else { return None };
    let (name, _) = long(rest)?;
    let is_known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > MAX_NAME || !name.iter().all(is_known) {
        return None;
    }
    Some(std::str::from_utf8(name).ok()?.to_ascii_lowercase().into())
}

/// What one byte says the length of, and what follows.
fn short(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*length))
}

/// The same for two bytes.
fn long(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_length(bytes: &[u8], digits: usize) -> Vec<u8> {
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&length[4 - digits..], bytes].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &with_length(content, 2)].concat()
    }

    fn name(name: &[u8]) -> Vec<u8> {
        extension(0, &with_length(&[&[0][..], &with_length(name, 2)].concat(), 2))
    }

    /// A ClientHello with these extensions, without the record around it.
    fn client_hello(extensions: &[Vec<u8>]) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &[7; 32],
            &with_length(&[1; 32], 1),
            &with_length(&[0x13, 0x01], 2),
            &with_length(&[0], 1),
            &with_length(&extensions.concat(), 2),
        ];
        [&[1][..], &with_length(&body.concat(), 3)].concat()
    }

    /// In records of `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &with_length(part, 2)].concat()).collect()
    }

    fn asks_for(name: &str) -> Hello {
        Hello::Whole(Some(name.into()))
    }

    #[test]
    fn the_server_name_is_found_wherever_it_is() {
        let others = || (extension(10, &[0, 2, 0, 29]), extension(51, &[9; 1200]));
        let (groups, share) = others();
        let message = client_hello(&[groups, share, name(b"Api.Example.COM"), extension(43, &[2, 3, 4])]);
        for size in [message.len(), 1, 5, 100] {
            let bytes = records(&message, size);
            assert_eq!(hello(&bytes), asks_for("api.example.com"), "records of {size}");
            // Whoever waits for as many bytes as it is told to finds the same, and soon.
            let (mut needed, mut looks) = (0, 0);
            while let Hello::More(more) = hello(&bytes[..needed]) {
                assert!(more > needed && more <= bytes.len(), "records of {size}: {more} after {needed}");
                (needed, looks) = (more, looks + 1);
            }
            assert_eq!(hello(&bytes[..needed]), asks_for("api.example.com"), "records of {size}");
            assert!(looks < 50, "records of {size}: looked {looks} times");
        }
        let more = [records(&message, 200), b"early data".to_vec()].concat();
        assert_eq!(hello(&more), asks_for("api.example.com"));
        let (groups, share) = others();
        assert_eq!(hello(&records(&client_hello(&[groups, share]), 2000)), Hello::Whole(None));
    }

    #[test]
    fn a_name_that_is_no_host_name_makes_the_hello_a_bad_one() {
        for bad in [&b""[..], b"a b", b"a\0b", "b\u{fc}cher".as_bytes(), &[b'a'; 254]] {
            assert_eq!(hello(&records(&client_hello(&[name(bad)]), 2000)), Hello::Bad, "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_hello_or_too_long_is_bad() {
        let whole = client_hello(&[name(b"a.example")]);
        let mut server = whole.clone();
        server[0] = 2;
        let mut lying = whole.clone();
        lying[1..4].copy_from_slice(&[0xff; 3]);
        for (what, bytes) in [
            ("another message", records(&server, 100)),
            ("a length that is too long", records(&lying, 100)),
            ("an alert", vec![21, 3, 3, 0, 2, 2, 40]),
            ("an empty record", vec![22, 3, 1, 0, 0]),
            ("a record that is too long", vec![22, 3, 1, 0x40, 1]),
            ("another protocol", b"GET / HTTP/1.1\r\n".to_vec()),
            ("a hello that ends too early", records(&[1, 0, 0, 2, 3, 3], 100)),
            ("an extension that goes on too far", records(&client_hello(&[vec![0, 0, 0, 9, 1]]), 100)),
        ] {
            assert_eq!(hello(&bytes), Hello::Bad, "{what}");
        }
        let long = records(&client_hello(&vec![extension(21, &[0; 4090]); 4]), 1 << 14);
        assert_eq!(hello(&long[..9]), Hello::Bad, "nobody waits for what is not read anyway");
    }
}
