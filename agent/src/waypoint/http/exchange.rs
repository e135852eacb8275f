//! What becomes of a request, from its head to the head of its answer, in the order in which Istio arranges Envoy's
//! filters at waypoints.
//!
//! 1. Its head is brought into form, or refused ([`super::head`]).
//! 2. Its route is found: by what it says, not by what providers make of it.
//! 3. The gate: providers, token, policies.
//! 4. What goes wrong on purpose, CORS, redirects, answers of the route's own ([`replies`]).
//! 5. An endpoint, or several in turn ([`forward`]).

mod forward;
mod replies;

use std::convert::Infallible;
use std::sync::Arc;

use culvert_core::mesh::Snapshot;
use culvert_core::route::decide::{Action, RouteDecision, route};
use culvert_core::route::request::Origin;
use culvert_core::waypoint::SessionTarget;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

pub(super) use self::forward::Taken;
use super::connection::Connection;
use super::head::{self, Admitted};
use super::record::Record;
use super::reply::{Asked, LocalReply, is_grpc};
use super::upgrade::Ends;
use crate::telemetry::Flags;
use crate::waypoint::body::Body;
use crate::waypoint::gate::{Allowed, SessionFacts, Verdict};
use crate::waypoint::session::Session;

/// An answer that an endpoint gave.
pub(super) enum Answer {
    /// All of it.
    Http(Response<Body>),
    /// That the connection turns into something else.
    Upgraded(Response<Body>, Ends),
}

/// The answer to a request, whoever gives it.
pub(super) async fn answer(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (head, incoming) = request.into_parts();
    let asked = asked(&head);
    let mut record = Record::begin(connection.clone(), asked.grpc);
    record.note(&head);
    let body = record.of_request(Body::from(incoming));
    let exchange = Exchange { connection: &connection, record: &mut record };
    Ok(match exchange.run(head, body).await {
        Ok(Answer::Http(response)) => record.of_response(response),
        Ok(Answer::Upgraded(response, ends)) => record.of_upgrade(response, ends),
        Err(reply) => {
            record.replied(&reply);
            record.of_response(reply.into_response(asked))
        }
    })
}

fn asked(head: &Parts) -> Asked {
    Asked { grpc: is_grpc(&head.headers), head: head.method == Method::HEAD, http1: head.version != Version::HTTP_2 }
}

/// A request under way.
struct Exchange<'e> {
    connection: &'e Arc<Connection>,
    record: &'e mut Record,
}

/// A request that has been judged. Boxed: it is handed on from step to step.
struct Decided {
    snapshot: Arc<Snapshot>,
    head: Parts,
    admitted: Admitted,
    body: Body,
    /// The client's end, if it wants another protocol.
    upgrade: Option<OnUpgrade>,
}

impl Exchange<'_> {
    async fn run(self, mut head: Parts, mut body: Body) -> Result<Answer, Box<LocalReply>> {
        let session = &self.connection.session;
        let (snapshot, target) = session.look().map_err(|why| {
            tracing::debug!(client = %session.client_address, %why, "a request came too late");
            // The client's node asks again, and finds whose it is now.
            LocalReply::new(StatusCode::SERVICE_UNAVAILABLE, "waypoint_not_bound").flag(Flags::NO_CLUSTER).closing()
        })?;
        if self.connection.watch.is_ambiguous() {
            return Err(head::ambiguous());
        }
        let upgrade = head.extensions.remove::<OnUpgrade>();
        let paths = snapshot.options().path_normalization;
        let admitted = head::admit(&mut head, paths, || default_host(&target))?;
        self.record.note_id(&head.headers);
        let origin = origin(session, &target);
        let decide = |head: &Parts| {
            let origin = origin.as_ref()?;
            Some(route(&snapshot, origin, &admitted.view(head), &mut rand::rng()))
        };
        let mut decision = decide(&head);
        let allowed = self.judge(&snapshot, &target, &mut head, &mut body).await?;
        if allowed.reroute {
            decision = decide(&head);
        }
        self.record.rule = decision.as_ref().and_then(|decision| decision.rule.clone());
        let upgrade = upgrade.filter(|_| admitted.upgrade.is_some());
        let decided = Box::new(Decided { snapshot: snapshot.clone(), head, admitted, body, upgrade });
        let answer = match (&decision, &origin, &target) {
            (Some(decision), Some(origin), _) => self.act(origin, decision, decided).await,
            (_, _, SessionTarget::Workload(workload, port)) => self.forward_to(workload, *port, decided).await,
            (_, _, SessionTarget::Service(..)) => Err(replies::no_route().into()),
        };
        match (answer, allowed.response) {
            (answer, None) => answer,
            (Ok(Answer::Http(mut response)), Some(headers)) => {
                headers.apply(response.headers_mut());
                Ok(Answer::Http(response))
            }
            (Ok(Answer::Upgraded(mut response, ends)), Some(headers)) => {
                headers.apply(response.headers_mut());
                Ok(Answer::Upgraded(response, ends))
            }
            (Err(mut reply), Some(headers)) => {
                headers.apply(&mut reply.headers);
                Err(reply)
            }
        }
    }

    async fn judge(
        &self,
        snapshot: &Arc<Snapshot>,
        target: &SessionTarget,
        head: &mut Parts,
        body: &mut Body,
    ) -> Result<Allowed, Box<LocalReply>> {
        let session = &self.connection.session;
        let facts = SessionFacts {
            principal: session.principal.as_deref(),
            client_address: session.client_address,
            destination: session.destination,
            sni: None,
            own: Some(&session.shared.own.identity),
        };
        let gate = &session.shared.gate;
        match gate.check(snapshot, session.request_target(target), &facts, head, body).await {
            Verdict::Allow(allowed) => Ok(allowed),
            Verdict::Deny(reply) => Err(reply),
        }
    }

    async fn act(
        self,
        origin: &Origin<'_>,
        decision: &RouteDecision,
        decided: Box<Decided>,
    ) -> Result<Answer, Box<LocalReply>> {
        if let Some(delay) = decision.delay {
            self.record.flags |= Flags::DELAY_INJECTED;
            tokio::time::sleep(delay).await;
        }
        let reply = match &decision.action {
            Action::Forward(forward) => return self.forward(origin, decision, forward, decided).await,
            Action::Redirect { status, location } => replies::redirect(*status, location),
            Action::Respond(response) => replies::direct(response),
            Action::Preflight(headers) => replies::preflight(headers),
            Action::Abort(abort) => replies::abort(*abort),
            Action::Unroutable(why) => replies::unroutable(why),
        };
        Err(self.with_headers_of(decision, &decided, reply).into())
    }

    /// What the route does to the headers of answers of its own.
    fn with_headers_of(&self, decision: &RouteDecision, decided: &Decided, mut reply: LocalReply) -> LocalReply {
        match decision.action {
            // A preflight is answered before the route is looked at, and errors are not the route's answers.
            Action::Redirect { .. } | Action::Respond(_) => {
                let variables = culvert_core::route::template::Variables {
                    request: Some(decided.admitted.view(&decided.head)),
                    client: Some(self.connection.session.client_address),
                    upstream: None,
                };
                decision.apply_to_response(&mut reply.headers, &variables);
            }
            _ => replies::add_cors(decision, &mut reply),
        }
        reply
    }
}

/// Whose request it is, as routes look at it; `None` if it is for a workload itself, of which there are none.
fn origin<'o>(session: &'o Session, target: &'o SessionTarget) -> Option<Origin<'o>> {
    let SessionTarget::Service(service, port) = target else { return None };
    Some(Origin {
        service,
        port: *port,
        client: session.client.as_deref(),
        client_address: session.client_address,
        destination: session.destination.ip(),
        sni: None,
    })
}

/// For HTTP/1.0, which has no `Host` by right: what was dialled.
fn default_host(target: &SessionTarget) -> HeaderValue {
    let host = match target {
        SessionTarget::Service(service, _) => HeaderValue::from_str(&service.key.hostname),
        SessionTarget::Workload(workload, _) => HeaderValue::from_str(&workload.name),
    };
    host.unwrap_or(HeaderValue::from_static("unknown"))
}
