//! Why a request, or a connection, did not come to an endpoint, or came to nothing there; as access logs flag it, and
//! as retries see it.

use std::borrow::Cow;
use std::error::Error as _;
use std::sync::Arc;

use culvert_core::route::retry::Attempt;
use culvert_core::traffic::policy::Overflow;

/// Nothing was sent, nor will be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No endpoint may be chosen.
    #[error("no healthy upstream: {0}")]
    NoEndpoint(Cow<'static, str>),
    /// A limit of the DestinationRule's connectionPool is reached.
    #[error("overflow: {0}")]
    Overflow(#[from] Overflow),
}

impl Refused {
    /// The response flag of access logs.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::NoEndpoint(_) => "UH",
            Self::Overflow(_) => "UO",
        }
    }
}

/// Why an endpoint gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// There is no connection to it.
    #[error("connection failure: {0}")]
    Connect(#[from] ConnectFailure),
    /// A limit was reached while the request waited for a connection.
    #[error("overflow: {0}")]
    Overflow(#[from] Overflow),
    /// It refused the stream before it looked at it.
    #[error("the endpoint refused the stream: it is going away, or takes no more at a time")]
    RefusedStream,
    /// It reset the stream.
    #[error("the endpoint reset the stream: {0}")]
    StreamReset(h2::Reason),
    /// The connection broke off before an answer.
    #[error("the connection to the endpoint ended before its answer: {why}")]
    Reset {
        /// Whether any of the request may have been sent.
        request_sent: bool,
        /// What happened.
        why: Arc<str>,
    },
    /// It answered with what is no HTTP.
    #[error("the endpoint's answer is no HTTP: {0}")]
    Protocol(Arc<str>),
    /// The body of the request broke off: whoever sends it is gone.
    #[error("the body of the request broke off: {0}")]
    RequestBody(Arc<str>),
}

/// Why no connection was made. The message says what to check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct ConnectFailure {
    /// What happened.
    pub why: Arc<str>,
    /// Whether it was time that ran out.
    pub timed_out: bool,
}

impl ConnectFailure {
    pub(super) fn new(why: impl Into<Arc<str>>) -> Self {
        Self { why: why.into(), timed_out: false }
    }

    pub(super) fn timed_out(why: impl Into<Arc<str>>) -> Self {
        Self { why: why.into(), timed_out: true }
    }
}

impl SendError {
    /// The response flag of access logs (Envoy's).
    pub fn flag(&self) -> &'static str {
        match self {
            Self::Connect(_) => "UF",
            Self::Overflow(_) => "UO",
            Self::RefusedStream | Self::StreamReset(_) => "UR",
            Self::Reset { .. } => "UC",
            Self::Protocol(_) => "UPE",
            Self::RequestBody(_) => "DC",
        }
    }

    /// The status that the client is answered with.
    pub fn status(&self) -> u16 {
        match self {
            Self::Protocol(_) => 502,
            _ => 503,
        }
    }

    /// How the try ended; `None` if it is never repeated.
    pub fn attempt(&self) -> Option<Attempt> {
        match self {
            Self::Connect(_) => Some(Attempt::ConnectFailure),
            Self::RefusedStream => Some(Attempt::RefusedStream),
            Self::Reset { request_sent, .. } => Some(Attempt::Reset { request_sent: *request_sent }),
            Self::StreamReset(_) | Self::Protocol(_) => Some(Attempt::Reset { request_sent: true }),
            Self::Overflow(_) | Self::RequestBody(_) => None,
        }
    }

    /// Whether it is the endpoint that failed in answering; that a connection failed has been counted when it did.
    pub(super) fn is_answers(&self) -> bool {
        !matches!(self, Self::Connect(_) | Self::Overflow(_) | Self::RequestBody(_))
    }
}

/// What hyper's error of a request means. `sent` is whether any of it may have reached the endpoint.
pub(super) fn of_hyper(error: &hyper::Error, sent: bool) -> SendError {
    let text = || Arc::from(described(error));
    if let Some(error) = find::<h2::Error>(error) {
        match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => return SendError::RefusedStream,
            // With a GOAWAY that does not cover the stream, h2 says so as well.
            Some(_) if error.is_go_away() && error.is_remote() => return SendError::RefusedStream,
            Some(h2::Reason::PROTOCOL_ERROR) if !error.is_remote() => return SendError::Protocol(text()),
            Some(reason) if error.is_reset() && error.is_remote() => return SendError::StreamReset(reason),
            _ => {}
        }
    }
    match error {
        error if error.is_parse() => SendError::Protocol(text()),
        error if error.is_user() => SendError::RequestBody(text()),
        _ => SendError::Reset { request_sent: sent, why: text() },
    }
}

fn find<E: std::error::Error + 'static>(error: &hyper::Error) -> Option<&E> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

/// An error with what is behind it: hyper's own words leave out what the system said.
fn described(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
