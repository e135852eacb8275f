//! One spelling for each path, before anything looks at it: MeshConfig's `pathNormalization`.
//!
//! A policy for `/admin` has to see `/admin` however a client writes it: `/a/../admin`, `/%61dmin`, `\admin`. What comes
//! out is what is matched, authorized and forwarded.

use std::borrow::Cow;

use serde::Serialize;

/// How far paths are normalized; each does what the one before it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PathNormalization {
    /// Not at all.
    None,
    /// Dot segments are resolved, backslashes are slashes, and what needs no percent-encoding has none (RFC 3986, 6.2.2;
    /// Envoy's `normalize_path`).
    #[default]
    Base,
    /// Several slashes in a row are one.
    MergeSlashes,
    /// Slashes and backslashes that are percent-encoded are slashes, before anything else.
    DecodeAndMergeSlashes,
}

/// Why a path is refused, with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Neither a path nor `*`.
    #[error("the path does not start with /")]
    Relative,
    /// It has a fragment, which no request has.
    #[error("the path has a #")]
    Fragment,
    /// It has a zero byte, at which some servers end a path.
    #[error("the path has a zero byte")]
    Zero,
}

/// Normalizes the path of a request; its query, after `?`, stays as it is.
///
/// Normalizing twice is normalizing once.
///
/// # Errors
/// When no server should have to understand it.
pub fn normalize(mode: PathNormalization, path_and_query: &str) -> Result<Cow<'_, str>, BadPath> {
    let length = path_and_query.find('?').unwrap_or(path_and_query.len());
    let (path, query) = path_and_query.split_at(length);
    if path_and_query.contains('#') {
        return Err(BadPath::Fragment);
    }
    if path == "*" || mode == PathNormalization::None {
        return Ok(Cow::Borrowed(path_and_query));
    }
    if !path.starts_with(['/', '\\']) {
        return Err(BadPath::Relative);
    }
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path_and_query));
    }
    let decoded = decode(path, mode == PathNormalization::DecodeAndMergeSlashes)?;
    let mut out = resolve(&decoded);
    // After dot segments, as in Envoy: `/a//../b` is `/a/b`, not `/b`.
    if mode >= PathNormalization::MergeSlashes {
        out = merge(&out);
    }
    out.push_str(query);
    Ok(Cow::Owned(out))
}

/// Whether there is nothing that any mode would change.
fn is_plain(path: &[u8]) -> bool {
    let mut last = b' ';
    path.iter().all(|byte| {
        let plain = !matches!((last, byte), (b'/', b'/' | b'.') | (_, b'%' | b'\\' | 0));
        last = *byte;
        plain
    })
}

/// Undoes percent-encoding that nothing needs (RFC 3986, 2.3).
fn decode(path: &str, slashes: bool) -> Result<String, BadPath> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(character) = rest.chars().next() {
        let encoded = rest.as_bytes().get(1..3).filter(|_| character == '%');
        let byte = encoded.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        // `from_str_radix` takes a sign.
        let byte = byte.filter(|_| encoded.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)));
        match byte {
            Some(0) => return Err(BadPath::Zero),
            Some(b @ (b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~')) => out.push(char::from(b)),
            Some(b'/' | b'\\') if slashes => out.push('/'),
            Some(_) => out.push_str(&rest[..3]),
            None => {
                match character {
                    '\0' => return Err(BadPath::Zero),
                    '\\' => out.push('/'),
                    // With what comes after it decoded, it might start an encoding that nobody has looked at.
                    '%' => out.push_str("%25"),
                    other => out.push(other),
                }
                rest = &rest[character.len_utf8()..];
                continue;
            }
        }
        rest = &rest[3..];
    }
    Ok(out)
}

/// Resolves dot segments (RFC 3986, 5.2.4).
fn resolve(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        match part {
            "." | ".." => {
                if part == ".." {
                    segments.pop();
                }
                if parts.peek().is_none() {
                    segments.push("");
                }
            }
            part => segments.push(part),
        }
    }
    format!("/{}", segments.join("/"))
}

/// Makes one slash of several in a row.
fn merge(path: &str) -> String {
    let mut last = ' ';
    path.chars()
        .filter(|character| {
            let again = *character == '/' && last == '/';
            last = *character;
            !again
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
    use super::*;

    #[test]
    fn each_mode_does_what_istio_says() {
        for (path, none, base, merged, decoded) in [
            ("/a/b", "/a/b", "/a/b", "/a/b", "/a/b"),
            ("/a/../b", "/a/../b", "/b", "/b", "/b"),
            ("/a/./b/.", "/a/./b/.", "/a/b/", "/a/b/", "/a/b/"),
            ("/a/b/..", "/a/b/..", "/a/", "/a/", "/a/"),
            ("/../../a", "/../../a", "/a", "/a", "/a"),
            ("/..", "/..", "/", "/", "/"),
            ("/%61dmin", "/%61dmin", "/admin", "/admin", "/admin"),
            ("/a/%2e%2E/b", "/a/%2e%2E/b", "/b", "/b", "/b"),
            ("/a\\..\\b", "/a\\..\\b", "/b", "/b", "/b"),
            ("/a//b", "/a//b", "/a//b", "/a/b", "/a/b"),
            ("//a///", "//a///", "//a///", "/a/", "/a/"),
            ("/a%2Fb", "/a%2Fb", "/a%2Fb", "/a%2Fb", "/a/b"),
            ("/a%5cb", "/a%5cb", "/a%5cb", "/a%5cb", "/a/b"),
            ("/a%2f..%2fb", "/a%2f..%2fb", "/a%2f..%2fb", "/a%2f..%2fb", "/b"),
            ("/%252e%252e/a", "/%252e%252e/a", "/%252e%252e/a", "/%252e%252e/a", "/%252e%252e/a"),
            ("/a?x=/../b", "/a?x=/../b", "/a?x=/../b", "/a?x=/../b", "/a?x=/../b"),
            ("/a/..?x", "/a/..?x", "/?x", "/?x", "/?x"),
            ("/%zz%4", "/%zz%4", "/%25zz%254", "/%25zz%254", "/%25zz%254"),
            ("/%+1", "/%+1", "/%25+1", "/%25+1", "/%25+1"),
            ("/%%36%31", "/%%36%31", "/%2561", "/%2561", "/%2561"),
            ("/a//../b", "/a//../b", "/a/b", "/a/b", "/a/b"),
            ("/...", "/...", "/...", "/...", "/..."),
            ("/é%C3%A9", "/é%C3%A9", "/é%C3%A9", "/é%C3%A9", "/é%C3%A9"),
            ("*", "*", "*", "*", "*"),
        ] {
            let modes = [None, Base, MergeSlashes, DecodeAndMergeSlashes];
            let found = modes.map(|mode| normalize(mode, path).unwrap().into_owned());
            assert_eq!(found, [none, base, merged, decoded], "{path}");
        }
    }

    #[test]
    fn what_no_server_should_see_is_refused() {
        for (path, error) in [
            ("/a%00", BadPath::Zero),
            ("/a\0", BadPath::Zero),
            ("/a#b", BadPath::Fragment),
            ("/a?b#c", BadPath::Fragment),
            ("a", BadPath::Relative),
            ("", BadPath::Relative),
        ] {
            assert_eq!(normalize(Base, path), Err(error), "{path:?}");
        }
    }

    proptest! {
        /// Normalizing twice is normalizing once, and no dot segment is left.
        #[test]
        fn nothing_is_left_to_normalize(path in "[/\\\\](\\.{1,3}|/|\\\\|%2e|%2F|%5c|%25|[a-c]|%6[1-3]|%){0,12}") {
            for mode in [Base, MergeSlashes, DecodeAndMergeSlashes] {
                let once = normalize(mode, &path).unwrap().into_owned();
                prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."), "{} {}", path, once);
                prop_assert!(once.starts_with('/') && !once.contains('\\'));
                prop_assert!(mode == Base || !once.contains("//"), "{} {}", path, once);
                prop_assert_eq!(normalize(mode, &once).unwrap(), &*once);
            }
        }
    }
}
