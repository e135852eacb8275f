//! What a waypoint does with a request: the rule that takes it, and where it may go from there.

use std::net::SocketAddr;
use std::sync::Arc;

use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::Serialize;

use super::asked::Asked;
use crate::mesh::Snapshot;
use crate::route::decide::{self, Action, Unroutable};
use crate::route::fault::Abort;
use crate::route::headers::{HeaderOp, HeaderOps};
use crate::route::http::{Backend, HttpAction, HttpRule, ServiceRef};
use crate::route::request::{Origin, RequestHead};
use crate::service::Service;
use crate::workload::Workload;

/// A request of HTTP to simulate.
#[derive(Clone, Debug)]
pub struct HttpRequest {
    /// The method: `GET`.
    pub method: String,
    /// The path, and its query.
    pub path: String,
    /// The headers; `host`, or `:authority`, in place of the host that is called.
    pub headers: Vec<(String, String)>,
}

/// Which rule takes a request, and what it does.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Route {
    /// The object, `VirtualService/namespace/name`; `None` where the service has no rules.
    pub resource: Option<String>,
    /// The position of the rule in it.
    pub rule: Option<usize>,
    /// The position of the match in the rule; `None` if it takes every request.
    #[serde(rename = "match")]
    pub matched: Option<usize>,
    /// The name of the rule.
    pub name: Option<String>,
    /// The object that the rule is filled in from.
    pub delegate: Option<String>,
    /// Where the request goes; one of these, by their weights.
    pub destinations: Vec<Destination>,
    /// Where its client is sent instead.
    pub redirect: Option<Redirect>,
    /// What its client is answered instead.
    pub response: Option<Response>,
    /// What becomes of its path and authority.
    pub rewrite: Option<Rewrite>,
    /// What is done to its headers, in order.
    pub request_headers: Vec<String>,
    /// What is done to the headers of the answer, in order.
    pub response_headers: Vec<String>,
    /// How long the answer may take, with all tries; `None` for as long as it takes.
    pub timeout: Option<String>,
    /// How often it is tried again, and after what.
    pub retries: Option<Retries>,
    /// What goes wrong on purpose.
    pub fault: Option<Fault>,
    /// Who gets copies.
    pub mirror: Vec<Mirror>,
    /// What CORS says: `none`, `preflight` or `request`; `None` without a policy.
    pub cors: Option<&'static str>,
    /// Why, in one line.
    pub reason: String,
}

/// A destination and its share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Destination {
    /// The host.
    pub host: String,
    /// The part of it.
    pub subset: Option<String>,
    /// The port; `None` for the only one, or the one that was called.
    pub port: Option<u16>,
    /// Its share, relative to its siblings'.
    pub weight: u32,
}

/// Where a client is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Redirect {
    /// The status.
    pub status: u16,
    /// Where to.
    pub location: String,
}

/// What a client is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// The length of the body.
    pub body_bytes: usize,
}

/// What becomes of a path and an authority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rewrite {
    /// The new path.
    pub path: Option<String>,
    /// The new authority.
    pub authority: Option<String>,
}

/// How often a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retries {
    /// How often, beside the first time.
    pub attempts: u32,
    /// How long each may take.
    pub per_try_timeout: Option<String>,
    /// After what.
    pub on: String,
    /// The base of the back-off.
    pub backoff: String,
}

/// What goes wrong on purpose.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// A delay.
    pub delay: Option<Delay>,
    /// An error.
    pub abort: Option<AbortReport>,
}

/// A delay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delay {
    /// Of how many requests.
    pub percent: f64,
    /// How long.
    pub duration: String,
}

/// An error.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AbortReport {
    /// Of how many requests.
    pub percent: f64,
    /// The status of HTTP.
    pub http_status: Option<u16>,
    /// The status of gRPC.
    pub grpc_status: Option<u8>,
}

/// Who gets copies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mirror {
    /// The host.
    pub host: String,
    /// The part of it.
    pub subset: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// Of how many requests.
    pub percent: f64,
}

impl std::fmt::Display for Route {
    /// In one paragraph.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = vec![self.reason.clone()];
        if let Some(fault) = &self.fault {
            let delay = fault.delay.as_ref().map(|delay| format!("delays {} % by {}", delay.percent, delay.duration));
            let abort = fault.abort.as_ref().map(|abort| {
                let status = abort.http_status.map(|status| status.to_string());
                let status = status.or(abort.grpc_status.map(|status| format!("gRPC {status}"))).unwrap_or_default();
                format!("aborts {} % with {status}", abort.percent)
            });
            parts.extend(delay.into_iter().chain(abort));
        }
        parts.extend(self.redirect.as_ref().map(|to| format!("redirects to {} ({})", to.location, to.status)));
        parts.extend(self.response.as_ref().map(|response| format!("answers {}", response.status)));
        let several = self.destinations.len() > 1;
        let destinations: Vec<_> = self
            .destinations
            .iter()
            .map(|to| {
                let subset = to.subset.as_ref().map(|subset| format!(" subset {subset}")).unwrap_or_default();
                let port = to.port.map(|port| format!(":{port}")).unwrap_or_default();
                let weight = if several { format!(" weight {}", to.weight) } else { String::new() };
                format!("{}{port}{subset}{weight}", to.host)
            })
            .collect();
        if !destinations.is_empty() {
            parts.push(format!("goes to {}", destinations.join(", or ")));
        }
        if let Some(rewrite) = &self.rewrite {
            parts.extend(rewrite.path.as_ref().map(|path| format!("as {path}")));
            parts.extend(rewrite.authority.as_ref().map(|authority| format!("for {authority}")));
        }
        parts.extend(self.request_headers.iter().map(|line| format!("request header: {line}")));
        parts.extend(self.response_headers.iter().map(|line| format!("response header: {line}")));
        parts.extend(self.timeout.as_ref().map(|timeout| format!("within {timeout}")));
        parts.extend(
            self.retries.as_ref().map(|retries| format!("tried again {} times on {}", retries.attempts, retries.on)),
        );
        parts.extend(self.mirror.iter().map(|mirror| format!("copies {} % to {}", mirror.percent, mirror.host)));
        f.write_str(&parts.join("; "))
    }
}

/// What a waypoint does with a request.
pub(super) struct Routed {
    pub(super) report: Route,
    /// Where it may go: the service, its port, and the part of it; none if it is answered at the waypoint.
    pub(super) ends: Vec<(Arc<Service>, u16, Option<Arc<str>>)>,
    /// Why it goes nowhere.
    pub(super) unroutable: Option<String>,
}

/// Asks the waypoint of `service`.
pub(super) fn route(
    snapshot: &Snapshot,
    service: &Arc<Service>,
    source: &Workload,
    dialled: SocketAddr,
    asked: &Asked,
) -> Routed {
    let head = asked.head();
    let client_address = source.addresses.first().copied().unwrap_or_else(|| [0, 0, 0, 0].into());
    let origin = Origin {
        service,
        port: dialled.port(),
        client: Some(source),
        client_address: SocketAddr::new(client_address, 0),
        destination: dialled.ip(),
        sni: None,
    };
    let decision = decide::route(snapshot, &origin, &head, &mut StdRng::seed_from_u64(0));
    let mut report = match &decision.rule {
        Some(rule) => describe(rule, decision.matched, &head, &origin),
        None => Route {
            reason: format!("no VirtualService or HTTPRoute is for {}: it goes there as it is", service.key.hostname),
            destinations: vec![Destination {
                host: service.key.hostname.to_string(),
                subset: None,
                port: Some(dialled.port()),
                weight: 1,
            }],
            ..Route::default()
        },
    };
    let mut ends = Vec::new();
    let mut unroutable = None;
    match (&decision.action, &decision.rule) {
        (Action::Unroutable(why), rule) => {
            if rule.is_none() {
                report.destinations.clear();
            }
            report.reason = why.to_string();
            unroutable = Some(why.clone());
        }
        (Action::Forward(forward), None) => ends.push((forward.target.service.clone(), forward.target.port, None)),
        (_, Some(rule)) => {
            for backend in backends(rule) {
                match decide::resolve_backend(snapshot, &origin, &rule.resource, rule.rule, backend) {
                    Ok(target) => ends.push((target.service, target.port, target.subset)),
                    Err(why) => unroutable = unroutable.or(Some(why)),
                }
            }
        }
        (_, None) => {}
    }
    let unroutable = unroutable.map(|why: Unroutable| format!("{} ({} {})", why, why.status(), why.flag()));
    Routed { report, ends, unroutable }
}

fn backends(rule: &HttpRule) -> impl Iterator<Item = &Backend> {
    let list = match &rule.action {
        HttpAction::Forward(backends) => backends.as_slice(),
        HttpAction::Redirect(_) | HttpAction::Respond(_) | HttpAction::Invalid(_) => &[],
    };
    list.iter().map(|weighted| &weighted.backend)
}

fn describe(rule: &HttpRule, matched: Option<usize>, request: &RequestHead<'_>, origin: &Origin<'_>) -> Route {
    let uri = matched.and_then(|at| rule.matches.get(at)?.uri.as_ref());
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let path_of = |object: &culvert_api::ObjectRef| format!("{}/{}/{}", object.kind, object.namespace, object.name);
    let mut report = Route {
        resource: Some(path_of(&rule.resource)),
        rule: Some(rule.rule),
        matched,
        name: some(&rule.name),
        delegate: rule.delegate.as_ref().map(|(object, _)| path_of(object)),
        request_headers: operations(&rule.request_headers),
        response_headers: operations(&rule.response_headers),
        reason: format!(
            "{}, rule {}{}{}",
            rule.resource,
            rule.rule,
            matched.map(|at| format!(", match {at}")).unwrap_or_default(),
            rule.delegate.as_ref().map(|(to, at)| format!(", by its delegate {to}, rule {at}")).unwrap_or_default()
        ),
        ..Route::default()
    };
    report.cors = rule.cors.as_ref().map(|cors| match cors.decide(request) {
        crate::route::cors::Cors::None => "none",
        crate::route::cors::Cors::Preflight(_) => "preflight",
        crate::route::cors::Cors::Request(_) => "request",
    });
    let fault = &rule.fault;
    report.fault = (fault.delay.is_some() || fault.abort.is_some()).then(|| Fault {
        delay: fault.delay.map(|(share, delay)| Delay { percent: share.as_percent(), duration: format!("{delay:?}") }),
        abort: fault.abort.map(|(share, abort)| AbortReport {
            percent: share.as_percent(),
            http_status: if let Abort::Http(status) = abort { Some(status) } else { None },
            grpc_status: if let Abort::Grpc(status) = abort { Some(status) } else { None },
        }),
    });
    match &rule.action {
        HttpAction::Redirect(redirect) => {
            let location = redirect.location(origin, request, uri).ok();
            report.redirect = location.map(|location| Redirect { status: redirect.status, location });
        }
        HttpAction::Respond(response) => {
            report.response = Some(Response { status: response.status, body_bytes: response.body.len() });
        }
        HttpAction::Invalid(reason) => report.reason = format!("{}: {reason}", report.reason),
        HttpAction::Forward(backends) => {
            let several = backends.len() > 1;
            let mut own = Vec::new();
            for weighted in backends {
                let (host, subset, port) = match &weighted.backend {
                    Backend::Service(ServiceRef { host, subset, port, .. }) => {
                        (host.to_string(), subset.clone(), *port)
                    }
                    Backend::Invalid(reason) => (reason.to_string(), None, None),
                };
                if several {
                    let to = |line: String| format!("{line} (to {host})");
                    own.extend(operations(&weighted.request_headers).into_iter().map(to));
                }
                let subset = subset.map(|subset| subset.to_string());
                report.destinations.push(Destination { host, subset, port, weight: weighted.weight });
            }
            report.request_headers.splice(0..0, own);
            let path = rule.rewrite.as_ref().and_then(|rewrite| rewrite.apply(request.path, uri).ok());
            let authority = rule.authority.as_ref().or(match backends.as_slice() {
                [only] => only.authority.as_ref(),
                _ => None,
            });
            let authority = authority.and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
            report.rewrite = (path.is_some() || authority.is_some()).then_some(Rewrite { path, authority });
            report.timeout = rule.timeout.map(|timeout| format!("{timeout:?}"));
            report.retries = (rule.retries.attempts > 0).then(|| Retries {
                attempts: rule.retries.attempts,
                per_try_timeout: rule.retries.per_try_timeout.map(|timeout| format!("{timeout:?}")),
                on: rule.retries.on.to_string(),
                backoff: format!("{:?}", rule.retries.backoff),
            });
            report.mirror = rule
                .mirrors
                .iter()
                .map(|mirror| Mirror {
                    host: mirror.service.host.to_string(),
                    subset: mirror.service.subset.as_ref().map(ToString::to_string),
                    port: mirror.service.port,
                    percent: mirror.share.as_percent(),
                })
                .collect();
        }
    }
    report
}

fn operations(operations: &HeaderOps) -> Vec<String> {
    operations
        .iter()
        .map(|operation| match operation {
            HeaderOp::Remove(name) => format!("remove {name}"),
            HeaderOp::Set(name, value) => format!("set {name}: {value}"),
            HeaderOp::Add(name, value) => format!("add {name}: {value}"),
        })
        .collect()
}
