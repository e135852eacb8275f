//! The answers that a route gives itself, in Envoy's words where they can be seen.

use culvert_core::route::decide::{RouteDecision, Unroutable};
use culvert_core::route::fault::Abort;
use culvert_core::route::http::DirectResponse;
use http::header::LOCATION;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::telemetry::Flags;
use crate::waypoint::http::reply::LocalReply;

/// The status, or 500 where there is no such number.
fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

pub(super) fn redirect(code: u16, location: &str) -> LocalReply {
    match HeaderValue::from_str(location) {
        Ok(location) => LocalReply::new(status(code), "direct_response").header(LOCATION, location),
        // It is made of what was checked, and of the request's own path.
        Err(_) => LocalReply::new(StatusCode::BAD_REQUEST, "direct_response"),
    }
}

pub(super) fn direct(response: &DirectResponse) -> LocalReply {
    LocalReply::new(status(response.status), "direct_response").body(response.body.clone())
}

pub(super) fn preflight(headers: &HeaderMap) -> LocalReply {
    let mut reply = LocalReply::new(StatusCode::OK, "cors_preflight");
    reply.headers.clone_from(headers);
    reply
}

pub(super) fn abort(abort: Abort) -> LocalReply {
    let reply = |code| {
        LocalReply::new(status(code), "fault_filter_abort").flag(Flags::FAULT_INJECTED).body("fault filter abort")
    };
    match abort {
        Abort::Http(code) => reply(code),
        Abort::Grpc(code) => LocalReply { grpc_status: Some(code), ..reply(200) },
    }
}

pub(super) fn unroutable(why: &Unroutable) -> LocalReply {
    tracing::debug!(%why, "no route for a request");
    let details = match why {
        Unroutable::NoRule(_) => "route_not_found",
        Unroutable::NoService { .. } | Unroutable::NoPort { .. } | Unroutable::NoSubset { .. } => "cluster_not_found",
        Unroutable::Invalid { .. } => "route_invalid",
    };
    LocalReply::new(status(why.status()), details).flag(Flags::parse(why.flag()))
}

/// Of a service every request has a route, be it to itself.
pub(super) fn no_route() -> LocalReply {
    LocalReply::new(StatusCode::NOT_FOUND, "route_not_found").flag(Flags::NO_ROUTE)
}

/// What web pages may read of an answer, though it is an error.
pub(super) fn add_cors(decision: &RouteDecision, reply: &mut LocalReply) {
    for (name, value) in decision.cors.iter().flatten() {
        reply.headers.insert(name, value.clone());
    }
}
