//! Tries at endpoints of a cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_core::route::retry::RetryPolicy;
use culvert_core::traffic::policy::Overflow;
use culvert_core::workload::Workload;
use http::header::UPGRADE;
use http::request::Parts;
use http::{Request, Response, Version};
use hyper::body::Body as _;
use smallvec::SmallVec;

use crate::telemetry::Flags;
use crate::waypoint::body::Body;
use crate::waypoint::http::deadline::Ended;
use crate::waypoint::http::failure::Failure;
use crate::waypoint::http::replay::Replay;
use crate::waypoint::http::reply::is_grpc;
use crate::waypoint::http::tries::{NoRetry, Tried, Tries};
use crate::waypoint::upstream::{Cluster, EndpointId, Lease, Refused, Reporter, Selection};

/// Tries of one request.
pub(super) struct Attempts<'a> {
    cluster: &'a Cluster,
    policy: &'a RetryPolicy,
    /// The first choice.
    selection: Selection<'a>,
    /// The client's HTTP.
    version: Version,
    /// When the time of a try begins.
    ended: Ended,
    /// `None` while an endpoint has it, and once it has been sent for the last time.
    head: Option<Parts>,
    grpc: bool,
    body: Content,
    /// Endpoints that were tried.
    tried: SmallVec<[EndpointId; 2]>,
    /// The place that the next try has.
    next: Option<Result<Lease, Refused>>,
    number: u32,
    last: Option<Last>,
}

/// A request's body.
enum Content {
    Nothing,
    /// For one try.
    Once(Option<Body>),
    Again(Replay),
}

/// The try that was made last.
struct Last {
    workload: Arc<Workload>,
    port: u16,
    began: Instant,
    time: Option<Duration>,
    reporter: Reporter,
}

/// The endpoint that has answered, or was to.
#[derive(Clone, Debug)]
pub(in crate::waypoint::http) struct Taken {
    pub(in crate::waypoint::http) workload: Arc<Workload>,
    pub(in crate::waypoint::http) port: u16,
    /// How long it took.
    pub(in crate::waypoint::http) time: Duration,
}

impl Taken {
    /// Its address, if it has one.
    pub(in crate::waypoint::http) fn address(&self) -> Option<SocketAddr> {
        self.workload.addresses.first().map(|ip| SocketAddr::new(*ip, self.port))
    }
}

impl<'a> Attempts<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        policy: &'a RetryPolicy,
        selection: Selection<'a>,
        ended: Ended,
        head: Parts,
        body: Body,
    ) -> Self {
        let body = match policy.attempts {
            _ if body.is_end_stream() => Content::Nothing,
            0 => Content::Once(Some(body)),
            _ => Content::Again(Replay::new(body)),
        };
        Self {
            cluster,
            policy,
            selection,
            version: head.version,
            ended,
            grpc: is_grpc(&head.headers),
            head: Some(head),
            body,
            tried: SmallVec::new(),
            next: None,
            number: 0,
            last: None,
        }
    }

    /// The time of the whole request is up.
    pub(super) fn timed_out(&self) -> Tried {
        if let Some(last) = &self.last {
            last.reporter.timed_out();
        }
        Tried { outcome: Err(Failure::timeout()), attempts: self.number, flags: Flags::NONE }
    }

    /// Where the last try went.
    pub(super) fn taken(self) -> Option<Taken> {
        let last = self.last?;
        let time = last.time.unwrap_or_else(|| last.began.elapsed());
        Some(Taken { workload: last.workload, port: last.port, time })
    }

    fn select(&self, is_retry: bool) -> Result<Lease, Refused> {
        let tried = if self.policy.avoid_previous_hosts { &*self.tried } else { &[] };
        self.cluster.select(Selection { tried, is_retry, ..self.selection }, self.version)
    }

    /// The request for the next try, over HTTP/2 or not. It is copied only where one that was sent may be tried again.
    fn request(&mut self, http2: bool) -> Option<Request<Body>> {
        let may_be_last = self.number > self.policy.attempts || !self.policy.on.reaches_sent(http2, self.grpc);
        let head = if may_be_last { self.head.take() } else { self.head.clone() }?;
        let body = match &mut self.body {
            Content::Nothing => Body::empty(),
            Content::Once(body) => body.take()?,
            Content::Again(replay) => replay.turn(),
        };
        Some(Request::from_parts(head, body))
    }
}

/// What comes of `work`, unless `end` comes first.
async fn within<T>(work: impl Future<Output = T>, end: impl Future<Output = ()>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = end => None,
    }
}

impl Tries for Attempts<'_> {
    async fn once(&mut self, number: u32) -> Result<Response<Body>, Failure> {
        self.number = number;
        let lease = match self.next.take() {
            Some(chosen) => chosen,
            None => self.select(false),
        }?;
        if lease.is_http2() && self.head.as_ref().is_some_and(|head| head.headers.contains_key(UPGRADE)) {
            return Err(Failure::not_over_http2());
        }
        let mut request = self.request(lease.is_http2());
        self.tried.push(lease.id());
        let (candidate, reporter) = (lease.endpoint(), lease.reporter());
        let (workload, port) = (candidate.workload.clone(), candidate.port);
        self.last = Some(Last { workload, port, began: Instant::now(), time: None, reporter });
        let sent = lease.send_from(&mut request);
        let outcome = match self.policy.per_try_timeout {
            None => sent.await,
            Some(time) => match Box::pin(within(sent, self.ended.and(time))).await {
                Some(outcome) => outcome,
                None => {
                    self.last.iter().for_each(|last| last.reporter.timed_out());
                    return Err(Failure::try_timeout());
                }
            },
        };
        if let Some(last) = &mut self.last {
            last.time = Some(last.began.elapsed());
        }
        if let Some(unsent) = request {
            self.head = Some(unsent.into_parts().0);
        }
        Ok(outcome?)
    }

    fn admit(&mut self) -> Result<(), NoRetry> {
        let is_whole = match &self.body {
            Content::Nothing => true,
            Content::Once(body) => body.is_some(),
            Content::Again(replay) => replay.is_whole(),
        };
        if self.head.is_none() || !is_whole {
            return Err(NoRetry::Lost);
        }
        let chosen = self.select(true);
        if let Err(Refused::Overflow(Overflow::Retries)) = chosen {
            return Err(NoRetry::Overflow);
        }
        self.next = Some(chosen);
        Ok(())
    }
}
