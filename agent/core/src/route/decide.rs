//! The decision of a waypoint: what becomes of a request, or of a connection, that is addressed to a service.
//!
//! In the order of Envoy's filters, as Istio arranges them at waypoints: a fault first, then CORS, then the route.

use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

use super::cors::Cors;
use super::fault::Abort;
use super::headers::HeaderOps;
use super::http::{Backend, DirectResponse, HttpAction, HttpRule, ServiceRef, WeightedBackend, weighted};
use super::l4::L4Rule;
use super::request::{Origin, RequestHead};
use super::retry::RetryPolicy;
use super::template::Variables;
use crate::mesh::Snapshot;
use crate::service::Service;

/// What becomes of a request, and why.
#[derive(Clone, Debug)]
pub struct RouteDecision {
    /// The rule that decided; `None` where the service has no rules, or none matches.
    pub rule: Option<Arc<HttpRule>>,
    /// Which of its matches; `None` if it has none.
    pub matched: Option<usize>,
    /// How long to wait before anything else.
    pub delay: Option<Duration>,
    /// What becomes of the request.
    pub action: Action,
    /// The headers that its answer gets from CORS.
    pub cors: Option<HeaderMap>,
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// It goes to an endpoint of a service.
    Forward(Forward),
    /// Its client is sent to `location`.
    Redirect {
        /// The status.
        status: u16,
        /// Where to.
        location: String,
    },
    /// It is answered.
    Respond(DirectResponse),
    /// A preflight, answered with 200 and these headers.
    Preflight(HeaderMap),
    /// It fails on purpose.
    Abort(Abort),
    /// It goes nowhere.
    Unroutable(Unroutable),
}

/// Where a request goes, and as what.
#[derive(Clone, Debug)]
pub struct Forward {
    /// The service, and the part of it.
    pub target: Target,
    /// Which destination of the rule; 0 where there is only one.
    pub destination: usize,
    /// In place of its path.
    pub path: Option<String>,
    /// In place of its authority.
    pub authority: Option<HeaderValue>,
    /// Who gets a copy.
    pub mirrors: SmallVec<[Target; 1]>,
}

/// A service that is there.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: u16,
    /// The part of it.
    pub subset: Option<Arc<str>>,
}

/// Why a request goes nowhere; each message names what to check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unroutable {
    /// No rule is for it.
    #[error("no rule of {0} takes the request: add one that matches everything")]
    NoRule(String),
    /// There is no such service.
    #[error("{resource} sends it to host {host}, which no Service or ServiceEntry has: correct the host")]
    NoService {
        /// The object.
        resource: String,
        /// The host.
        host: Arc<str>,
    },
    /// The service has no such port.
    #[error("{resource} sends it to port {port} of {host}, which has no such port: correct destination.port")]
    NoPort {
        /// The object.
        resource: String,
        /// The host.
        host: Arc<str>,
        /// The port.
        port: u16,
    },
    /// Nobody defines the part of the service.
    #[error(
        "{resource} sends it to subset {subset} of {host}, which no DestinationRule defines: add it to spec.subsets, \
         or correct destination.subset"
    )]
    NoSubset {
        /// The object.
        resource: String,
        /// The host.
        host: Arc<str>,
        /// The part.
        subset: Arc<str>,
    },
    /// The rule, or the destination, cannot be used.
    #[error("{resource} rule {rule}: {reason}")]
    Invalid {
        /// The object.
        resource: String,
        /// The position of the rule.
        rule: usize,
        /// Why not.
        reason: Box<str>,
    },
}

impl Unroutable {
    /// The status that Envoy answers with, as Istio has it do.
    pub fn status(&self) -> u16 {
        match self {
            Self::NoRule(_) => 404,
            Self::NoService { .. } | Self::NoPort { .. } | Self::NoSubset { .. } => 503,
            Self::Invalid { .. } => 500,
        }
    }

    /// The response flag of access logs.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::NoRule(_) | Self::Invalid { .. } => "NR",
            Self::NoService { .. } | Self::NoPort { .. } | Self::NoSubset { .. } => "NC",
        }
    }
}

/// Decides what becomes of a request.
///
/// Allocates only where a path is rewritten, a client redirected, or headers of CORS made.
pub fn route(
    snapshot: &Snapshot,
    origin: &Origin<'_>,
    request: &RequestHead<'_>,
    rng: &mut impl rand::Rng,
) -> RouteDecision {
    let table = snapshot.routes(&origin.service.key).map(|routes| &routes.http).filter(|t| !t.rules().is_empty());
    let Some(table) = table else {
        let action = match itself(snapshot, origin) {
            Some(target) => Action::Forward(Forward {
                target,
                destination: 0,
                path: None,
                authority: None,
                mirrors: SmallVec::new(),
            }),
            None => Action::Unroutable(Unroutable::NoService {
                resource: format!("service {}", origin.service.key),
                host: origin.service.key.hostname.clone(),
            }),
        };
        return RouteDecision { rule: None, matched: None, delay: None, action, cors: None };
    };
    let Some(found) = table.find(origin, request) else {
        let mut names: Vec<_> = table.rules().iter().map(|rule| rule.resource.to_string()).collect();
        names.dedup();
        let action = Action::Unroutable(Unroutable::NoRule(names.join(", ")));
        return RouteDecision { rule: None, matched: None, delay: None, action, cors: None };
    };
    let rule = found.rule;
    let mut decision = RouteDecision {
        rule: Some(rule.clone()),
        matched: found.matched,
        delay: rule.fault.delay.and_then(|(share, delay)| share.draw(rng).then_some(delay)),
        action: Action::Preflight(HeaderMap::new()),
        cors: None,
    };
    if let Some((_, abort)) = rule.fault.abort.filter(|(share, _)| share.draw(rng)) {
        decision.action = Action::Abort(abort);
        return decision;
    }
    match rule.cors.as_ref().map(|cors| cors.decide(request)).unwrap_or_default() {
        Cors::Preflight(headers) => {
            decision.action = Action::Preflight(headers);
            return decision;
        }
        Cors::Request(headers) => decision.cors = Some(headers),
        Cors::None => {}
    }
    decision.action = act(snapshot, origin, request, rule, found.matched, rng).unwrap_or_else(Action::Unroutable);
    decision
}

fn act(
    snapshot: &Snapshot,
    origin: &Origin<'_>,
    request: &RequestHead<'_>,
    rule: &HttpRule,
    matched: Option<usize>,
    rng: &mut impl rand::Rng,
) -> Result<Action, Unroutable> {
    let uri = matched.and_then(|at| rule.matches.get(at)?.uri.as_ref());
    let invalid =
        |reason: Box<str>| Unroutable::Invalid { resource: rule.resource.to_string(), rule: rule.rule, reason };
    match &rule.action {
        HttpAction::Invalid(reason) => Err(invalid(reason.clone())),
        HttpAction::Respond(response) => Ok(Action::Respond(response.clone())),
        HttpAction::Redirect(redirect) => {
            let location = redirect.location(origin, request, uri).map_err(|why| invalid(why.to_string().into()))?;
            Ok(Action::Redirect { status: redirect.status, location })
        }
        HttpAction::Forward(backends) => {
            let destination = weighted(backends.iter().map(|backend| backend.weight), rng)
                .ok_or_else(|| invalid("has no destination: add one, with a weight".into()))?;
            let chosen = &backends[destination];
            let target = resolve_backend(snapshot, origin, &rule.resource, rule.rule, &chosen.backend)?;
            let path = rule.rewrite.as_ref().map(|rewrite| rewrite.apply(request.path, uri));
            let path = path.transpose().map_err(|why| invalid(why.to_string().into()))?;
            let mut mirrors = SmallVec::new();
            for mirror in rule.mirrors.iter().filter(|mirror| mirror.share.draw(rng)) {
                // A copy that goes nowhere is nobody's loss.
                mirrors.extend(resolve(snapshot, origin, &rule.resource, rule.rule, &mirror.service).ok());
            }
            let authority = rule.authority.as_ref().or(chosen.authority.as_ref()).cloned();
            Ok(Action::Forward(Forward { target, destination, path, authority, mirrors }))
        }
    }
}

/// What becomes of a connection that carries no requests, and the rule that decided.
///
/// # Errors
/// When it goes nowhere.
pub fn route_connection(
    snapshot: &Snapshot,
    origin: &Origin<'_>,
    rng: &mut impl rand::Rng,
) -> Result<(Target, Option<Arc<L4Rule>>), Unroutable> {
    let routes = snapshot.routes(&origin.service.key);
    let tls = routes.filter(|_| origin.sni.is_some()).map(|routes| &routes.tls).into_iter().flatten();
    let tcp = routes.map(|routes| &routes.tcp).into_iter().flatten();
    let Some(rule) = tls.chain(tcp).find(|rule| rule.takes(origin)) else {
        let missing = || Unroutable::NoService {
            resource: format!("service {}", origin.service.key),
            host: origin.service.key.hostname.clone(),
        };
        return itself(snapshot, origin).map(|target| (target, None)).ok_or_else(missing);
    };
    let reason = "has no destination: add one, with a weight";
    let at = weighted(rule.backends.iter().map(|(_, weight)| *weight), rng).ok_or_else(|| Unroutable::Invalid {
        resource: rule.resource.to_string(),
        rule: rule.rule,
        reason: reason.into(),
    })?;
    let target = resolve_backend(snapshot, origin, &rule.resource, rule.rule, &rule.backends[at].0)?;
    Ok((target, Some(rule.clone())))
}

/// The service that is addressed.
fn itself(snapshot: &Snapshot, origin: &Origin<'_>) -> Option<Target> {
    let service = snapshot.service(&origin.service.key)?;
    Some(Target { service: service.clone(), port: origin.port, subset: None })
}

pub(crate) fn resolve_backend(
    snapshot: &Snapshot,
    origin: &Origin<'_>,
    resource: &culvert_api::ObjectRef,
    rule: usize,
    backend: &Backend,
) -> Result<Target, Unroutable> {
    match backend {
        Backend::Service(service) => resolve(snapshot, origin, resource, rule, service),
        Backend::Invalid(reason) => {
            Err(Unroutable::Invalid { resource: resource.to_string(), rule, reason: reason.clone() })
        }
    }
}

fn resolve(
    snapshot: &Snapshot,
    origin: &Origin<'_>,
    resource: &culvert_api::ObjectRef,
    rule: usize,
    to: &ServiceRef,
) -> Result<Target, Unroutable> {
    let claims = || snapshot.services_by_hostname(&to.host);
    let there = claims().find(|service| service.key.namespace == to.namespace);
    let service = there.or_else(|| if to.only_there { None } else { claims().next() });
    let missing = || match to.only_there {
        // Of Gateway API, a backend that is not there answers with 500.
        true => Unroutable::Invalid {
            resource: resource.to_string(),
            rule,
            reason: format!("there is no service {}", to.host).into(),
        },
        false => Unroutable::NoService { resource: resource.to_string(), host: to.host.clone() },
    };
    let service = service.ok_or_else(missing)?;
    let port = match (to.port, &*service.ports) {
        (Some(port), _) => port,
        (None, [only]) => only.port,
        (None, _) => origin.port,
    };
    if service.port(port).is_none() {
        return Err(Unroutable::NoPort { resource: resource.to_string(), host: to.host.clone(), port });
    }
    if let Some(subset) = &to.subset {
        let waypoint = origin.service.waypoint.as_ref().map(|binding| &binding.gateway.namespace);
        let namespace = waypoint.unwrap_or(&origin.service.key.namespace);
        if snapshot.traffic_rule(namespace, service, Some(subset)).1.is_none() {
            let (host, subset) = (to.host.clone(), subset.clone());
            return Err(Unroutable::NoSubset { resource: resource.to_string(), host, subset });
        }
    }
    Ok(Target { service: service.clone(), port, subset: to.subset.clone() })
}

impl RouteDecision {
    /// How often it is tried again.
    pub fn retries(&self) -> std::borrow::Cow<'_, RetryPolicy> {
        match &self.rule {
            Some(rule) => std::borrow::Cow::Borrowed(&rule.retries),
            None => std::borrow::Cow::Owned(RetryPolicy::default()),
        }
    }

    /// How long the answer may take; `None` for as long as it takes.
    pub fn timeout(&self) -> Option<Duration> {
        self.rule.as_ref().and_then(|rule| rule.timeout)
    }

    fn destination(&self) -> Option<&WeightedBackend> {
        match (&self.rule.as_ref()?.action, &self.action) {
            (HttpAction::Forward(backends), Action::Forward(forward)) => backends.get(forward.destination),
            _ => None,
        }
    }

    /// The operations on the headers of the request, in order: the destination's, then the rule's.
    pub fn request_operations(&self) -> impl Iterator<Item = &HeaderOps> {
        let rule = self.rule.as_ref().map(|rule| &rule.request_headers);
        self.destination().map(|destination| &destination.request_headers).into_iter().chain(rule)
    }

    /// The operations on the headers of the answer, in order: the destination's, then the rule's.
    pub fn response_operations(&self) -> impl Iterator<Item = &HeaderOps> {
        let rule = self.rule.as_ref().map(|rule| &rule.response_headers);
        self.destination().map(|destination| &destination.response_headers).into_iter().chain(rule)
    }

    /// Changes the headers of the request into those that the service gets.
    pub fn apply_to_request(&self, headers: &mut HeaderMap, variables: &Variables<'_>) {
        for operations in self.request_operations() {
            operations.apply(headers, variables);
        }
        if let Action::Forward(Forward { authority: Some(authority), .. }) = &self.action {
            headers.insert(HOST, authority.clone());
        }
    }

    /// Changes the headers of the answer into those that the client gets.
    pub fn apply_to_response(&self, headers: &mut HeaderMap, variables: &Variables<'_>) {
        for operations in self.response_operations() {
            operations.apply(headers, variables);
        }
        for (name, value) in self.cors.iter().flatten() {
            headers.insert(name, value.clone());
        }
    }
}
