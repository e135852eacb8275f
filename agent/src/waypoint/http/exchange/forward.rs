//! To an endpoint, and back.

mod affinity;
mod attempts;
mod changes;
mod session;

use std::sync::Arc;
use std::time::Duration;

use culvert_core::route::decide::{Forward, RouteDecision};
use culvert_core::route::request::Origin;
use culvert_core::route::retry::RetryPolicy;
use culvert_core::workload::Workload;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use hyper::body::Body as _;
use hyper::upgrade::OnUpgrade;

use self::affinity::Affinity;
use self::attempts::Attempts;
pub(in crate::waypoint::http) use self::attempts::Taken;
use self::changes::Changes;
use super::{Answer, Decided, Exchange};
use crate::waypoint::body::Body;
use crate::waypoint::http::connection::Connection;
use crate::waypoint::http::deadline::{self, Deadline, Ended, Timed};
use crate::waypoint::http::failure::Failure;
use crate::waypoint::http::head::strip_answer;
use crate::waypoint::http::mirror::{self, Copied};
use crate::waypoint::http::reply::LocalReply;
use crate::waypoint::http::tries;
use crate::waypoint::http::upgrade::{self, Ends};
use crate::waypoint::upstream::{Cluster, Selection};

/// How long the endpoint took to answer, in milliseconds.
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
/// How long the endpoint has, in milliseconds.
const EXPECTED_TIME: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

impl Exchange<'_> {
    /// A request for a workload itself, of which there are no routes.
    pub(super) async fn forward_to(
        self,
        workload: &Arc<Workload>,
        port: u16,
        decided: Box<Decided>,
    ) -> Result<Answer, Box<LocalReply>> {
        let upstreams = &self.connection.session.shared.upstreams;
        let cluster = upstreams.workload(&decided.snapshot, workload, port);
        let policy = RetryPolicy::default();
        let sending = Sending { cluster: &cluster, policy: &policy, time: None, affinity: Affinity::default() };
        self.send(sending, None, decided).await
    }

    /// A request whose route leads to a service.
    pub(super) async fn forward(
        self,
        origin: &Origin<'_>,
        decision: &RouteDecision,
        forward: &Forward,
        mut decided: Box<Decided>,
    ) -> Result<Answer, Box<LocalReply>> {
        let session = &self.connection.session;
        let cluster = session.shared.upstreams.cluster(&decided.snapshot, &forward.target);
        self.record.target = Some(forward.target.clone());
        let changes = Changes::begin(decision, forward, session, &mut decided)?;
        let affinity = Affinity::of(&cluster, decision, origin, &decided.admitted.view(&decided.head));
        self.copy(decision, forward, &mut decided);
        let policy = decision.retries();
        let sending = Sending { cluster: &cluster, policy: &policy, time: decision.timeout(), affinity };
        self.send(sending, Some(changes), decided).await
    }

    /// Has copies sent to whom the route mirrors requests.
    fn copy(&self, decision: &RouteDecision, forward: &Forward, decided: &mut Decided) {
        for target in &forward.mirrors {
            let mut copy = Request::new(());
            copy.method_mut().clone_from(&decided.head.method);
            copy.uri_mut().clone_from(&decided.head.uri);
            copy.headers_mut().clone_from(&decided.head.headers);
            *copy.version_mut() = decided.head.version;
            let to = Copied { target, time: decision.timeout() };
            let body = std::mem::take(&mut decided.body);
            decided.body = mirror::copy(&self.connection.session, &decided.snapshot, to, copy, body);
        }
    }

    async fn send(
        self,
        sending: Sending<'_>,
        changes: Option<Changes<'_>>,
        decided: Box<Decided>,
    ) -> Result<Answer, Box<LocalReply>> {
        let Decided { mut head, body, upgrade, .. } = *decided;
        let Sending { cluster, policy, time, mut affinity } = sending;
        let time = deadline::allowed(time, &head.headers);
        if let Some(least) = policy.per_try_timeout.into_iter().chain(time).min() {
            let millis = u64::try_from(least.as_millis()).unwrap_or(u64::MAX);
            head.headers.insert(EXPECTED_TIME, HeaderValue::from(millis));
        }
        if upgrade.is_some() {
            upgrade::ask(&mut head.headers);
        }
        let is_timed = time.is_some() || policy.per_try_timeout.is_some();
        let (body, ended) = if is_timed { Ended::of(body) } else { (body, Ended::AT_ONCE) };
        let mut deadline = time.map(|time| -> Deadline { Box::pin(ended.and(time)) });
        let session = &self.connection.session;
        let (client, principal) = (session.client_address, session.principal.as_ref());
        let first = Selection::first(client, session.destination, principal);
        let first = Selection { hash: affinity.hash, session: affinity.endpoint(), ..first };
        let mut attempts = Attempts::new(cluster, policy, first, ended, head, body);
        let tried = match &mut deadline {
            None => tries::run(&mut attempts, policy).await,
            // Boxed, so that what has all the time there is does not carry the room for it.
            Some(deadline) => {
                let within = async {
                    tokio::select! {
                        biased;
                        tried = tries::run(&mut attempts, policy) => tried,
                        () = deadline => attempts.timed_out(),
                    }
                };
                Box::pin(within).await
            }
        };
        let taken = attempts.taken();
        self.record.tried(&tried, taken.as_ref());
        let response = tried.outcome.and_then(|response| is_asked_for(response, upgrade.is_some()));
        let mut response = response.map_err(|failure| {
            tracing::debug!(service = cluster.name(), attempts = tried.attempts, why = failure.why(), "no answer");
            let mut reply = failure.reply(tried.attempts);
            self.record.flags |= failure.flags();
            changes.iter().for_each(|changes| changes.of_failure(&mut reply));
            Box::new(reply)
        })?;
        let headers = response.headers_mut();
        strip_answer(headers);
        if let Some(taken) = &taken {
            let millis = u64::try_from(taken.time.as_millis()).unwrap_or(u64::MAX);
            headers.insert(SERVICE_TIME, HeaderValue::from(millis));
            affinity.of_answer(headers, taken);
        }
        if let Some(changes) = &changes {
            changes.of_answer(headers, taken.as_ref().and_then(Taken::address));
        }
        Ok(finish(self.connection, response, upgrade, deadline))
    }
}

/// What is needed to send a request, whoever it is for.
struct Sending<'s> {
    cluster: &'s Cluster,
    policy: &'s RetryPolicy,
    /// How long the route lets it take.
    time: Option<Duration>,
    affinity: Affinity,
}

/// An endpoint that speaks another protocol though nobody asked for it is none to rely on.
fn is_asked_for(response: Response<Body>, upgrade: bool) -> Result<Response<Body>, Failure> {
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS if !upgrade => Err(Failure::not_asked_for()),
        _ => Ok(response),
    }
}

/// The answer as the client gets it.
fn finish(
    connection: &Connection,
    mut response: Response<Body>,
    upgrade: Option<OnUpgrade>,
    deadline: Option<Deadline>,
) -> Answer {
    if let Some(client) = upgrade
        && response.status() == StatusCode::SWITCHING_PROTOCOLS
    {
        connection.watch.upgraded();
        let upstream = hyper::upgrade::on(&mut response);
        upgrade::ask(response.headers_mut());
        return Answer::Upgraded(response.map(|_| Body::empty()), Ends { client, upstream });
    }
    response.extensions_mut().clear();
    Answer::Http(match deadline {
        Some(deadline) if !response.body().is_end_stream() => {
            response.map(|body| Body::wrap(Timed::new(body, deadline)))
        }
        _ => response,
    })
}
