//! The head of a request as it came, made into the one form that everything behind here relies on, or refused.
//!
//! | | afterwards |
//! |---|---|
//! | `uri` | path and query alone, normalized as the mesh options say |
//! | `Host` | there, once: `:authority`, or what the request line named, or what `Host` said |
//! | headers between two hops | gone, but for `te: trailers` |
//! | `x-envoy-…` that would tell a proxy what to do | gone |
//! | `x-request-id`, `x-forwarded-proto` | there |

mod hops;
#[cfg(test)]
mod tests;
mod trust;

use culvert_core::route::normalize::{PathNormalization, normalize};
use culvert_core::route::request::RequestHead;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Uri, Version};

use super::reply::LocalReply;
use crate::telemetry::Flags;

pub(super) use hops::{Upgrade, strip_answer};
pub(super) use trust::REQUEST_ID;

/// The most headers of a request, Envoy's default.
pub(super) const MAX_HEADERS: usize = 100;

/// What a head said beside what is left in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    /// `http` or `https`, as the client saw it.
    pub(super) scheme: &'static str,
    /// `HTTP/1.1`, as access logs have it.
    pub(super) protocol: &'static str,
    /// What the connection is to become.
    pub(super) upgrade: Option<Upgrade>,
    /// The path was not the one that is there now.
    pub(super) normalized: bool,
}

impl Admitted {
    /// The head as routes look at it.
    pub(super) fn view<'a>(&self, head: &'a Parts) -> RequestHead<'a> {
        RequestHead {
            method: &head.method,
            scheme: self.scheme,
            authority: authority(head),
            path: head.uri.path_and_query().map_or("/", PathAndQuery::as_str),
            protocol: self.protocol,
            headers: &head.headers,
        }
    }
}

/// The authority of a head that was admitted.
pub(super) fn authority(head: &Parts) -> &str {
    head.headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Brings `head` into form. `default_host` stands in for the `Host` that HTTP/1.0 need not have.
///
/// # Errors
/// The answer that Envoy would give, where no server behind here should have to make sense of it.
pub(super) fn admit(
    head: &mut Parts,
    paths: PathNormalization,
    default_host: impl FnOnce() -> HeaderValue,
) -> Result<Admitted, Box<LocalReply>> {
    if head.headers.len() > MAX_HEADERS {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        let reply = LocalReply::new(status, "request_headers_too_large");
        return Err(reply.flag(Flags::DOWNSTREAM_PROTOCOL_ERROR).into());
    }
    check_length(head)?;
    let scheme = trust::scheme(head);
    set_host(head, default_host)?;
    if head.method == Method::CONNECT {
        // As Istio sets Envoy up: the only upgrade that passes is WebSocket.
        return Err(LocalReply::new(StatusCode::FORBIDDEN, "upgrade_failed").into());
    }
    let normalized = set_path(head, paths)?;
    let upgrade = hops::strip(head)?;
    trust::strip(head);
    trust::complete(head, scheme);
    Ok(Admitted { scheme, protocol: protocol(head.version), upgrade, normalized })
}

/// For a request whose length was said in two ways, or came behind one.
pub(super) fn ambiguous() -> Box<LocalReply> {
    bad("http1.content_length_and_chunked_not_allowed")
}

pub(super) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

fn bad(details: &'static str) -> Box<LocalReply> {
    let reply = LocalReply::new(StatusCode::BAD_REQUEST, details).flag(Flags::DOWNSTREAM_PROTOCOL_ERROR);
    reply.body("Bad Request").closing().into()
}

/// A length is said once, and as a number; there is one transfer coding that may be in its place.
fn check_length(head: &Parts) -> Result<(), Box<LocalReply>> {
    let mut lengths = head.headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits = length.as_bytes();
        if lengths.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(bad("http.content_length_invalid"));
        }
        if head.headers.contains_key(TRANSFER_ENCODING) {
            return Err(bad("http1.content_length_and_chunked_not_allowed"));
        }
    }
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => {
            let reply = LocalReply::new(StatusCode::NOT_IMPLEMENTED, "http1.invalid_transfer_encoding");
            Err(reply.flag(Flags::DOWNSTREAM_PROTOCOL_ERROR).closing().into())
        }
    }
}

/// Sees to it that `Host` is the authority, whatever form the request had.
fn set_host(head: &mut Parts, default_host: impl FnOnce() -> HeaderValue) -> Result<(), Box<LocalReply>> {
    if head.headers.get_all(HOST).iter().nth(1).is_some() {
        return Err(bad("http1.multiple_host_headers"));
    }
    if let Some(authority) = head.uri.authority() {
        // What the request line, or `:authority`, says counts (RFC 9112, 3.2.2; RFC 9113, 8.3.1).
        let value = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("http.invalid_authority"))?;
        head.headers.insert(HOST, value);
        if head.uri.scheme().is_none() && head.method != Method::CONNECT {
            // Neither a path nor a URL, which http takes for an authority.
            return Err(bad("http1.codec_error"));
        }
    } else if !head.headers.contains_key(HOST) {
        if head.version != Version::HTTP_10 {
            return Err(bad("missing_host_header"));
        }
        head.headers.insert(HOST, default_host());
    }
    let host = head.headers.get(HOST).map(HeaderValue::as_bytes).unwrap_or_default();
    if host.is_empty() || !host.iter().copied().all(is_in_authority) {
        return Err(bad("http.invalid_authority"));
    }
    Ok(())
}

/// What a host and a port may be made of (RFC 3986, 3.2): no user, which nobody should be taken in by.
fn is_in_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte)
}

/// Makes the path the normalized one; whether it was another.
fn set_path(head: &mut Parts, paths: PathNormalization) -> Result<bool, Box<LocalReply>> {
    let path = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if !path.starts_with('/') {
        // `OPTIONS *` is about this proxy, of which there is nothing to say.
        return Err(LocalReply::new(StatusCode::NOT_FOUND, "absolute_path_rejected").into());
    }
    let same = match normalize(paths, path) {
        Ok(std::borrow::Cow::Borrowed(_)) => None,
        Ok(std::borrow::Cow::Owned(path)) => Some(path),
        Err(_) => return Err(bad("path_normalization_failed")),
    };
    match same {
        None if head.uri.scheme().is_none() && head.uri.authority().is_none() => Ok(false),
        None => {
            let path = head.uri.path_and_query().cloned();
            head.uri = path.map(Uri::from).unwrap_or_default();
            Ok(false)
        }
        Some(path) => {
            let path = PathAndQuery::try_from(path).map_err(|_| bad("path_normalization_failed"))?;
            head.uri = Uri::from(path);
            Ok(true)
        }
    }
}
