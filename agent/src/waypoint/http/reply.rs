//! Answers that this proxy gives itself, as Envoy words them.

use std::borrow::Cow;
use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use crate::telemetry::Flags;
use crate::waypoint::body::Body;

/// An answer that this proxy gives itself.
#[derive(Clone, Debug)]
pub struct LocalReply {
    /// The status of HTTP.
    pub status: StatusCode,
    /// A text for people.
    pub body: Bytes,
    /// Why, as access logs have it.
    pub details: Cow<'static, str>,
    /// Why, in letters.
    pub flags: Flags,
    /// Headers beside those of the body.
    pub headers: HeaderMap,
    /// In place of what the status says to gRPC.
    pub grpc_status: Option<u8>,
    /// Whether the connection cannot be used any longer.
    pub close: bool,
}

/// What of a request decides how it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// It is gRPC.
    pub grpc: bool,
    /// It asks for headers only.
    pub head: bool,
    /// It came over HTTP/1.
    pub http1: bool,
}

impl LocalReply {
    /// An answer without a body, and why it is given.
    pub fn new(status: StatusCode, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            body: Bytes::new(),
            details: details.into(),
            flags: Flags::NONE,
            headers: HeaderMap::new(),
            grpc_status: None,
            close: false,
        }
    }

    /// The same, and why in letters.
    #[must_use]
    pub fn flag(mut self, flags: Flags) -> Self {
        self.flags |= flags;
        self
    }

    /// The same, with a text for people.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// The same, with a header more.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The same, and the connection cannot be used any longer.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The answer to a request that is like `asked`.
    ///
    /// Of gRPC it is 200, with the status and the text in `grpc-status` and `grpc-message` (gRPC `PROTOCOL-HTTP2.md`,
    /// "Trailers-Only").
    pub fn into_response(self, asked: Asked) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = self.headers;
        let headers = response.headers_mut();
        if self.close && asked.http1 {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if asked.grpc {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            let status = self.grpc_status.unwrap_or_else(|| grpc_status(self.status.as_u16()));
            headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status)));
            if let Some(message) = grpc_message(&self.body) {
                headers.insert(GRPC_MESSAGE, message);
            }
            return response;
        }
        *response.status_mut() = self.status;
        if !self.body.is_empty() {
            let headers = response.headers_mut();
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
            headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
            if !asked.head {
                *response.body_mut() = Body::from(self.body);
            }
        }
        response
    }
}

/// `grpc-status`.
pub const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// `grpc-message`.
pub const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether headers are those of gRPC, request or answer.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let rest = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(TYPE));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The status of gRPC that stands for one of HTTP (gRPC `http-grpc-status-mapping.md`).
pub fn grpc_status(status: u16) -> u8 {
    match status {
        200 => 0,
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// A text as `grpc-message` has it: percent-encoded but for printable ASCII.
fn grpc_message(text: &[u8]) -> Option<HeaderValue> {
    if text.is_empty() {
        return None;
    }
    let mut out = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(char::from(*byte)),
            byte => {
                // Writing to a string does not fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    HeaderValue::try_from(out).ok()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn reply() -> LocalReply {
        LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no_healthy_upstream").body("no 100% healthy\nupstream")
    }

    #[tokio::test]
    async fn a_reply_says_what_it_is_in_plain_text() {
        let response = reply().into_response(Asked { http1: true, ..Asked::default() });
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-type"], "text/plain");
        assert_eq!(response.headers()["content-length"], "24");
        assert!(!response.headers().contains_key("connection"));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "no 100% healthy\nupstream");
    }

    #[tokio::test]
    async fn to_head_a_reply_has_no_body_but_its_length() {
        let response = reply().into_response(Asked { head: true, ..Asked::default() });
        assert_eq!(response.headers()["content-length"], "24");
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    }

    #[test]
    fn to_grpc_a_reply_is_trailers_only() {
        let response = reply().into_response(Asked { grpc: true, ..Asked::default() });
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "no 100%25 healthy%0Aupstream");
        assert!(hyper::body::Body::is_end_stream(response.body()));
    }

    #[test]
    fn only_http_1_is_told_that_the_connection_ends() {
        for http1 in [true, false] {
            let response = reply().closing().into_response(Asked { http1, ..Asked::default() });
            assert_eq!(response.headers().contains_key("connection"), http1);
        }
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;a=b", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers = [(CONTENT_TYPE, HeaderValue::from_static(value))].into_iter().collect();
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
    }
}
