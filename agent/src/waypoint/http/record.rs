//! What is known of a request once it is over, in one place: metrics and the access log follow from it.
//!
//! A [`Record`] begins with the head of a request and ends with the last byte of its answer. It travels with the
//! request, then with the answer's body, and whatever becomes of those, ends once.

mod messages;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use culvert_core::route::decide::Target;
use culvert_core::route::http::HttpRule;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use self::messages::Messages;
use super::connection::Connection;
use super::exchange::Taken;
use super::head::{self, REQUEST_ID};
use super::reply::LocalReply;
use super::tries::{Tried, grpc_status};
use super::upgrade::{self, Ends};
use crate::telemetry::request_line::{RequestHead, RequestLine, UpstreamName};
use crate::telemetry::requests::{RequestLabels, RequestSizes};
use crate::telemetry::{Flags, SecurityPolicy};
use crate::waypoint::body::{Body, BodyError, End, Observer};

/// What is known of a request.
#[derive(Debug)]
pub(super) struct Record {
    connection: Arc<Connection>,
    started: Instant,
    grpc: bool,
    /// 0 as long as there is no answer.
    code: u16,
    pub(super) flags: Flags,
    /// Why there was this answer, as access logs have it.
    details: Cow<'static, str>,
    grpc_status: Option<u16>,
    /// The rule that decided.
    pub(super) rule: Option<Arc<HttpRule>>,
    /// Where it was to go.
    pub(super) target: Option<Target>,
    /// Where it went at last.
    taken: Option<Taken>,
    attempts: u32,
    /// `None` if the request had no body.
    request: Option<Arc<Passed>>,
    response_bytes: u64,
    response_messages: Messages,
    finished: bool,
    /// What its line in the access log begins with, where it is to have one.
    said: Option<Box<Said>>,
}

/// What a request said of itself.
#[derive(Debug)]
struct Said {
    head: RequestHead,
    /// Its `x-request-id`, once it has one.
    id: Option<HeaderValue>,
}

/// What has passed of a request's body.
#[derive(Debug, Default)]
struct Passed {
    bytes: AtomicU64,
    messages: AtomicU64,
}

/// Counts a request's body.
struct Passing {
    passed: Arc<Passed>,
    messages: Messages,
}

impl Record {
    /// The record of a request that has just come.
    pub(super) fn begin(connection: Arc<Connection>, grpc: bool) -> Box<Self> {
        connection.entered();
        Box::new(Self {
            connection,
            started: Instant::now(),
            grpc,
            code: 0,
            flags: Flags::NONE,
            details: Cow::Borrowed(""),
            grpc_status: None,
            rule: None,
            target: None,
            taken: None,
            attempts: 0,
            request: None,
            response_bytes: 0,
            response_messages: Messages::new(grpc),
            finished: false,
            said: None,
        })
    }

    /// What it says of itself, before anything is made of it.
    pub(super) fn note(&mut self, head: &Parts) {
        if self.connection.session.shared.telemetry.access_log().takes_requests() {
            let protocol = head::protocol(head.version);
            let head = RequestHead::new(&head.method, &head.uri, protocol, &head.headers);
            self.said = Some(Box::new(Said { head, id: None }));
        }
    }

    /// The id by which other logs know it.
    pub(super) fn note_id(&mut self, headers: &HeaderMap) {
        if let Some(said) = &mut self.said {
            said.id = headers.get(REQUEST_ID).cloned();
        }
    }

    /// Counts what passes of the request's body.
    pub(super) fn of_request(&mut self, body: Body) -> Body {
        if hyper::body::Body::is_end_stream(&body) {
            return body;
        }
        let passed = self.request.insert(Arc::default()).clone();
        body.observed(Passing { passed, messages: Messages::new(self.grpc) })
    }

    /// It has been tried.
    pub(super) fn tried(&mut self, tried: &Tried, taken: Option<&Taken>) {
        self.attempts = tried.attempts;
        self.flags |= tried.flags;
        self.taken = taken.cloned();
    }

    /// The endpoint's answer is the request's: the record ends with it.
    pub(super) fn of_response(mut self: Box<Self>, response: Response<Body>) -> Response<Body> {
        self.code = response.status().as_u16();
        self.grpc_status = self.grpc_status.or_else(|| grpc_status(response.headers()));
        if self.details.is_empty() {
            self.details = Cow::Borrowed("via_upstream");
        }
        response.map(|body| body.observed_by(self))
    }

    /// This proxy answers itself, for what `reply` says.
    pub(super) fn replied(&mut self, reply: &LocalReply) {
        self.flags |= reply.flags;
        self.details = reply.details.clone();
    }

    /// There was no request to be made out, and hyper or the wire has said so.
    pub(super) fn refused(&mut self, status: StatusCode, details: &'static str) {
        self.code = status.as_u16();
        self.flags |= Flags::DOWNSTREAM_PROTOCOL_ERROR;
        self.details = Cow::Borrowed(details);
        self.finish();
    }

    /// The connection turns into something else, and the request ends with that.
    pub(super) fn of_upgrade(mut self: Box<Self>, response: Response<Body>, ends: Ends) -> Response<Body> {
        self.code = response.status().as_u16();
        self.details = Cow::Borrowed("via_upstream");
        tokio::spawn(async move {
            let passed = Arc::<upgrade::Passed>::default();
            if let Err(why) = ends.pump(&passed).await {
                tracing::debug!(%why, "a connection that was no longer HTTP broke off");
                self.flags |= Flags::UPSTREAM_CONNECTION_TERMINATION;
            }
            let count = Passed { bytes: AtomicU64::new(passed.up.load(Ordering::Relaxed)), ..Passed::default() };
            self.request = Some(Arc::new(count));
            self.response_bytes = passed.down.load(Ordering::Relaxed);
            self.finish();
        });
        response
    }

    fn finish(&mut self) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let passed = |count: fn(&Passed) -> &AtomicU64| {
            self.request.as_ref().map_or(0, |passed| count(passed).load(Ordering::Relaxed))
        };
        let sizes = RequestSizes {
            duration: self.started.elapsed(),
            request_bytes: passed(|passed| &passed.bytes),
            response_bytes: self.response_bytes,
            request_messages: passed(|passed| &passed.messages),
            response_messages: self.response_messages.count(),
        };
        self.log(&sizes);
        let session = &self.connection.session;
        let labels = RequestLabels {
            source: session.client.clone(),
            source_identity: session.principal.clone(),
            destination: self.taken.as_ref().map(|taken| taken.workload.clone()),
            service: self.target.take().map(|target| target.service).or_else(|| session.target.service().cloned()),
            security: SecurityPolicy::MutualTls,
            grpc: self.grpc,
            code: self.code,
            grpc_status: self.grpc_status,
            flags: self.flags,
        };
        self.connection.count(&labels, &sizes);
    }

    /// Writes its line.
    fn log(&mut self, sizes: &RequestSizes) {
        let Some(said) = self.said.take() else { return };
        let session = &self.connection.session;
        let name = |target: &Target| UpstreamName {
            host: target.service.key.hostname.clone(),
            port: target.port,
            subset: target.subset.clone(),
        };
        session.shared.telemetry.access_log().request(Box::new(RequestLine {
            head: said.head,
            request_id: said.id,
            code: self.code,
            flags: self.flags,
            details: self.details.clone(),
            bytes_received: sizes.request_bytes,
            bytes_sent: sizes.response_bytes,
            duration: sizes.duration,
            upstream_service_time: self.taken.as_ref().map(|taken| taken.time),
            upstream_host: self.taken.as_ref().and_then(Taken::address),
            upstream: self.target.as_ref().map(name),
            downstream_local: session.destination,
            downstream_remote: session.client_address,
            route: self.rule.as_ref().map(|rule| (*rule.name).into()),
        }));
    }
}

impl Observer for Record {
    fn data(&mut self, bytes: &Bytes) {
        self.response_bytes += bytes.len() as u64;
        self.response_messages.see(bytes);
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.grpc_status = grpc_status(trailers).or(self.grpc_status);
    }

    fn end(mut self: Box<Self>, end: End<'_>) {
        match end {
            End::Complete => {}
            End::Dropped => self.client_left(),
            End::Failed(BodyError::Cut(_)) => {
                self.flags |= Flags::UPSTREAM_TIMEOUT;
                self.details = Cow::Borrowed("upstream_response_timeout");
            }
            End::Failed(_) => {
                self.flags |= Flags::UPSTREAM_CONNECTION_TERMINATION;
                self.details = Cow::Borrowed("upstream_reset_after_response_started{connection_termination}");
            }
        }
        self.finish();
    }
}

impl Record {
    fn client_left(&mut self) {
        self.flags |= Flags::DOWNSTREAM_TERMINATION;
        self.details = Cow::Borrowed("downstream_remote_disconnect");
    }
}

impl Drop for Record {
    /// Before there was an answer: hyper gives a request up when its client is gone.
    fn drop(&mut self) {
        if !self.finished {
            self.client_left();
            self.finish();
        }
    }
}

impl Observer for Passing {
    fn data(&mut self, bytes: &Bytes) {
        self.passed.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.messages.see(bytes);
        self.passed.messages.store(self.messages.count(), Ordering::Relaxed);
    }

    fn end(self: Box<Self>, _: End<'_>) {}
}
