//! Why a request got no answer from an endpoint, and what its client is told, in Envoy's words: people search for them.

use std::borrow::Cow;

use culvert_core::route::retry::Attempt;
use http::{HeaderName, HeaderValue, StatusCode};

use super::reply::LocalReply;
use crate::telemetry::Flags;
use crate::waypoint::upstream::{Refused, SendError};

/// `x-envoy-overloaded`.
const OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// As retries see it; `None` if it is not tried again.
    pub(super) attempt: Option<Attempt>,
    flags: Flags,
    told: Told,
    /// What happened, for the log.
    why: Cow<'static, str>,
}

/// What the client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    NoEndpoint,
    /// Of a try that came to nothing: Envoy's name of how.
    Reset(&'static str),
    /// The time was up: of all tries, or of the last.
    Timeout(&'static str),
}

impl Failure {
    /// The time for all tries was up.
    pub(super) fn timeout() -> Self {
        Self::late("upstream_response_timeout", None)
    }

    /// The time for one try was up.
    pub(super) fn try_timeout() -> Self {
        Self::late("upstream_per_try_timeout", Some(Attempt::Timeout))
    }

    fn late(details: &'static str, attempt: Option<Attempt>) -> Self {
        Self { attempt, flags: Flags::UPSTREAM_TIMEOUT, told: Told::Timeout(details), why: "".into() }
    }

    /// Whatever it was, as retries see it.
    #[cfg(test)]
    pub(super) fn after(attempt: Attempt) -> Self {
        Self { attempt: Some(attempt), ..Self::overflow("") }
    }

    /// A limit was reached.
    pub(super) fn overflow(why: impl Into<Cow<'static, str>>) -> Self {
        Self { attempt: None, flags: Flags::UPSTREAM_OVERFLOW, told: Told::Reset(TOO_MUCH), why: why.into() }
    }

    /// The endpoint switched to another protocol, and nobody had asked it to.
    pub(super) fn not_asked_for() -> Self {
        let why = "the endpoint answered 101 to what was no upgrade".into();
        Self { attempt: None, flags: Flags::UPSTREAM_PROTOCOL_ERROR, told: Told::Reset(PROTOCOL), why }
    }

    /// The client asks for a WebSocket, and the endpoint speaks HTTP/2: that would take an extended CONNECT (RFC 8441).
    pub(super) fn not_over_http2() -> Self {
        let why = "a WebSocket to a port that speaks HTTP/2: declare another port for it, by appProtocol http".into();
        Self { attempt: None, flags: Flags::UPSTREAM_PROTOCOL_ERROR, told: Told::Reset(PROTOCOL), why }
    }

    /// As access logs flag it.
    pub(super) fn flags(&self) -> Flags {
        self.flags
    }

    /// What happened, in one line.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// What the client is told, after so many tries.
    pub(super) fn reply(&self, attempts: u32) -> LocalReply {
        let reply = match self.told {
            Told::NoEndpoint => {
                LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "no_healthy_upstream").body("no healthy upstream")
            }
            Told::Timeout(details) => {
                LocalReply::new(StatusCode::GATEWAY_TIMEOUT, details).body("upstream request timeout")
            }
            Told::Reset(reason) => {
                let status = if reason == PROTOCOL { StatusCode::BAD_GATEWAY } else { StatusCode::SERVICE_UNAVAILABLE };
                let retried = if attempts > 1 { "retried and the latest " } else { "" };
                let details = format!("upstream_reset_before_response_started{{{}}}", reason.replace(' ', "_"));
                LocalReply::new(status, details).body(format!(
                    "upstream connect error or disconnect/reset before headers. {retried}reset reason: {reason}"
                ))
            }
        };
        let reply = reply.flag(self.flags);
        if self.told == Told::Reset(TOO_MUCH) {
            return reply.header(OVERLOADED, HeaderValue::from_static("true"));
        }
        reply
    }
}

const TOO_MUCH: &str = "overflow";
const PROTOCOL: &str = "protocol error";

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        let why = refused.to_string().into();
        match refused {
            Refused::NoEndpoint(_) => {
                Self { attempt: None, flags: Flags::NO_HEALTHY_UPSTREAM, told: Told::NoEndpoint, why }
            }
            Refused::Overflow(_) => Self::overflow(why),
        }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        let reason = match &error {
            SendError::Connect(failure) if failure.timed_out => "connection timeout",
            SendError::Connect(_) => "remote connection failure",
            SendError::Overflow(_) => TOO_MUCH,
            SendError::RefusedStream => "remote refused stream reset",
            SendError::StreamReset(_) => "remote reset",
            SendError::Reset { .. } => "connection termination",
            SendError::Protocol(_) => PROTOCOL,
            SendError::RequestBody(_) => "local reset",
        };
        Self {
            attempt: error.attempt(),
            flags: Flags::parse(error.flag()),
            told: Told::Reset(reason),
            why: error.to_string().into(),
        }
    }
}
