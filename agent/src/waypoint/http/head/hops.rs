//! Headers that are about one connection only, and not about what is behind it (RFC 9110, 7.6.1).

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode, Version};
use smallvec::SmallVec;

use super::bad;
use crate::waypoint::http::reply::LocalReply;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// The most headers that `Connection` may name, Envoy's.
const MAX_NAMED: usize = 10;

/// What a connection is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::waypoint::http) enum Upgrade {
    /// A WebSocket (RFC 6455).
    WebSocket,
}

/// Takes what is between two hops out of a request; what is left of it is what the connection is to become.
pub(super) fn strip(head: &mut Parts) -> Result<Option<Upgrade>, Box<LocalReply>> {
    let mut upgrade = None;
    if head.headers.contains_key(UPGRADE) && head.version == Version::HTTP_11 {
        upgrade = wanted(&head.headers)?;
    }
    remove_named(&mut head.headers)?;
    remove(&mut head.headers);
    // The client is told to go on as soon as the body is read.
    head.headers.remove(EXPECT);
    head.headers.remove(HTTP2_SETTINGS);
    Ok(upgrade)
}

/// Takes what is between two hops out of an answer.
pub(in crate::waypoint::http) fn strip_answer(headers: &mut HeaderMap) {
    // What it names is not for the client; an upstream that names what it may not is left with it.
    let _ = remove_named(headers);
    remove(headers);
}

fn remove(headers: &mut HeaderMap) {
    for name in [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE] {
        headers.remove(name);
    }
    if headers.contains_key(TE) {
        let trailers =
            headers.get_all(TE).iter().any(|value| names(value).any(|name| name.eq_ignore_ascii_case("trailers")));
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// What `Upgrade` asks for, if it is asked for at all.
fn wanted(headers: &HeaderMap) -> Result<Option<Upgrade>, Box<LocalReply>> {
    let named = |value: &HeaderValue| names(value).any(|name| name.eq_ignore_ascii_case("upgrade"));
    if !headers.get_all(CONNECTION).iter().any(named) {
        return Ok(None);
    }
    let mut wanted = headers.get_all(UPGRADE).iter().flat_map(names);
    match (wanted.next(), wanted.next()) {
        (Some(protocol), None) if protocol.eq_ignore_ascii_case("websocket") => Ok(Some(Upgrade::WebSocket)),
        // A client that offers this is served as well without (RFC 7540, 3.2); RFC 9113 has it no longer.
        (Some(protocol), None) if protocol.eq_ignore_ascii_case("h2c") => Ok(None),
        _ => Err(LocalReply::new(StatusCode::FORBIDDEN, "upgrade_failed").into()),
    }
}

/// Takes out what `Connection` names. It may not name what a request is understood by, nor what a proxy before this
/// one has written: else a client could have that taken away.
fn remove_named(headers: &mut HeaderMap) -> Result<(), Box<LocalReply>> {
    if !headers.contains_key(CONNECTION) {
        return Ok(());
    }
    let mut named: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for value in headers.get_all(CONNECTION) {
        for name in names(value) {
            if ["close", "keep-alive", "upgrade", "te"].iter().any(|known| name.eq_ignore_ascii_case(known)) {
                continue;
            }
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("http1.connection_header_rejected"))?;
            let kept =
                [HOST, CONTENT_LENGTH, PROXY_AUTHENTICATE].contains(&name) || name.as_str().starts_with("x-forwarded-");
            if kept || named.len() == MAX_NAMED {
                return Err(bad("http1.connection_header_rejected"));
            }
            named.push(name);
        }
    }
    for name in named {
        headers.remove(name);
    }
    Ok(())
}

/// The names of a list.
fn names(value: &HeaderValue) -> impl Iterator<Item = &str> {
    let text = value.to_str().unwrap_or_default();
    text.split(',').map(str::trim).filter(|name| !name.is_empty())
}
