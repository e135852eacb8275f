//! An answer on its way back: holds the request's place, and its connection, until the end.

use culvert_core::traffic::outliers::Outcome;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};

use super::http1;
use super::http2;
use super::place::Place;
use crate::waypoint::body::{Body, End, Observer};

/// What an answer comes over.
pub(super) enum Over {
    Http1(http1::Conn),
    Http2(#[allow(dead_code, reason = "held until the end, which gives it back")] http2::Ticket),
}

/// What is held until an answer has ended.
struct Exchange {
    over: Over,
    place: Place,
    /// The status that outlier detection has yet to be told of: that of gRPC comes with the trailers.
    untold: Option<u16>,
}

/// Tells of the head of an answer, and holds what it came over until its body ends. `is_connect` for the answer to a
/// CONNECT, which turns the connection into something else as 101 does.
pub(super) fn begin(response: Response<Incoming>, place: Place, over: Over, is_connect: bool) -> Response<Body> {
    let (head, body) = response.into_parts();
    let outcome = outcome(head.status, &head.headers);
    if let Some(status) = outcome {
        place.endpoint().report(Outcome::Status(status));
    }
    let is_turned = head.status == StatusCode::SWITCHING_PROTOCOLS || (is_connect && head.status.is_success());
    if is_turned && let Over::Http1(conn) = over {
        conn.kept.keep(place);
        return Response::from_parts(head, Body::from(body));
    }
    let untold = outcome.is_none().then_some(head.status.as_u16());
    let exchange = Exchange { over, place, untold };
    if body.is_end_stream() {
        exchange.finish();
        return Response::from_parts(head, Body::empty());
    }
    Response::from_parts(head, Body::from(body).observed(exchange))
}

impl Exchange {
    /// Everything has come: the connection may carry the next request.
    fn finish(mut self) {
        self.tell(None);
        let Self { over, place, .. } = self;
        if let Over::Http1(conn) = over {
            http1::give(place.endpoint(), conn);
        }
    }

    /// Tells of an answer whose status was to come, with the status of gRPC if it has.
    fn tell(&mut self, grpc: Option<u16>) {
        if let Some(status) = self.untold.take() {
            self.place.endpoint().report(Outcome::Status(grpc.unwrap_or(status)));
        }
    }
}

impl Observer for Exchange {
    fn trailers(&mut self, trailers: &HeaderMap) {
        let grpc = trailers.get("grpc-status").map(http_status);
        self.tell(grpc);
    }

    fn end(mut self: Box<Self>, end: End<'_>) {
        match end {
            End::Complete => self.finish(),
            // It was cut off at the other end.
            End::Failed(_) => {
                self.untold = None;
                self.place.endpoint().report(Outcome::LocalFailure);
            }
            End::Dropped => {}
        }
    }
}

/// What the head says of how the request went; `None` if that is still to come.
fn outcome(status: StatusCode, headers: &HeaderMap) -> Option<u16> {
    let is_grpc = || {
        let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
    };
    match headers.get("grpc-status") {
        Some(grpc) => Some(http_status(grpc)),
        None if status == StatusCode::OK && is_grpc() => None,
        None => Some(status.as_u16()),
    }
}

/// A status of gRPC as one of HTTP (`google/rpc/code.proto`); what is none is an error of the server.
fn http_status(grpc: &HeaderValue) -> u16 {
    match grpc.as_bytes() {
        b"0" => 200,
        b"1" => 499,
        b"3" | b"9" | b"11" => 400,
        b"4" => 504,
        b"5" => 404,
        b"6" | b"10" => 409,
        b"7" => 403,
        b"8" => 429,
        b"12" => 501,
        b"14" => 503,
        b"16" => 401,
        _ => 500,
    }
}
