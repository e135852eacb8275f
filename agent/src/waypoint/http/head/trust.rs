//! What a client may say of itself, and what only proxies may.

use http::header::HeaderName;
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Version};
use smallvec::SmallVec;

/// `x-request-id`.
pub(in crate::waypoint::http) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// `x-forwarded-proto`.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The `x-envoy-…` headers by which a proxy is told what to do, and Envoy takes from clients (its
/// `ConnectionManagerUtility::mutateRequestHeaders`), without that prefix.
const ORDERS: [&str; 20] = [
    "attempt-count",
    "expected-rq-timeout-ms",
    "force-trace",
    "hedge-on-per-try-timeout",
    "internal",
    "ip-tags",
    "is-timeout-retry",
    "max-retries",
    "original-path",
    "original-url",
    "peer-metadata",
    "peer-metadata-id",
    "retriable-header-names",
    "retriable-status-codes",
    "retry-grpc-on",
    "retry-on",
    "upstream-alt-stat-name",
    "upstream-rq-per-try-timeout-ms",
    "upstream-rq-timeout-alt-response",
    "upstream-rq-timeout-ms",
];
/// As the client saw it: what HTTP/2 and absolute request lines say, or a proxy before this one.
pub(super) fn scheme(head: &Parts) -> &'static str {
    let said = head.uri.scheme().map(Scheme::as_str);
    let forwarded = || head.headers.get(FORWARDED_PROTO).and_then(|value| value.to_str().ok());
    // Of HTTP/1 a proxy that took TLS off says so in the header alone; of HTTP/2 Envoy believes `:scheme`.
    let said = if head.version == Version::HTTP_2 { said.or_else(forwarded) } else { forwarded().or(said) };
    match said {
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => "https",
        _ => "http",
    }
}

/// Takes out what would tell a proxy what to do.
pub(super) fn strip(head: &mut Parts) {
    let mut orders: SmallVec<[HeaderName; 2]> = SmallVec::new();
    for name in head.headers.keys() {
        let order = name.as_str().strip_prefix("x-envoy-");
        if order.is_some_and(|order| ORDERS.binary_search(&order).is_ok()) {
            orders.push(name.clone());
        }
    }
    for name in orders {
        head.headers.remove(name);
    }
}

/// Adds what every request has.
pub(super) fn complete(head: &mut Parts, scheme: &'static str) {
    head.headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static(scheme));
    if head.headers.get(REQUEST_ID).is_none_or(HeaderValue::is_empty) {
        set_request_id(&mut head.headers);
    }
}

/// Makes up an `x-request-id`: a random UUID (RFC 9562, 5.4).
fn set_request_id(headers: &mut HeaderMap) {
    let random: u128 = rand::random();
    let uuid = (random & !(0xf << 76 | 0x3 << 62)) | (0x4 << 76 | 0x2 << 62);
    let mut text = [b'-'; 36];
    let mut digits = (0..32).rev().map(|digit| (uuid >> (digit * 4)) as u8 & 0xf);
    for (at, byte) in text.iter_mut().enumerate() {
        if ![8, 13, 18, 23].contains(&at) {
            *byte = b"0123456789abcdef"[usize::from(digits.next().unwrap_or_default())];
        }
    }
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        headers.insert(REQUEST_ID, value);
    }
}
