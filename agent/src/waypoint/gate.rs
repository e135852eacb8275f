//! Who may do what: token, providers and policies, in Istio's order.
//!
//! 1. What only a proxy may say is taken from the request: `x-forwarded-client-cert`, and every header that a
//!    RequestAuthentication passes claims on in.
//! 2. CUSTOM policies: each provider whose policy matches is asked.
//! 3. The token: one that no rule accepts ends the request.
//! 4. DENY, then ALLOW; AUDIT and policies on trial are noted.
//!
//! Core decides ([`culvert_core::policy`], [`culvert_core::authentication`]); here is what takes time: providers and
//! key servers. Where nothing applies to a request the gate costs one look at what is known of its target.
//!
//! | module | what it is for |
//! |---|---|
//! | `guard` | what applies to a target, found once for each snapshot |
//! | `token` | from a request's tokens to who it is |
//! | `jwks` | the keys of issuers that are elsewhere |
//! | `ext_authz` | providers |
//! | `xfcc` | telling applications who their client is |
//! | `refusal` | the answers to who may not |
//! | `reach` | how providers and key servers in the mesh are reached |

mod ext_authz;
mod guard;
mod jwks;
mod reach;
mod refusal;
#[cfg(test)]
mod tests;
mod token;
mod xfcc;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwap;
use culvert_core::authentication::Authenticated;
use culvert_core::identity::Identity;
use culvert_core::mesh::Snapshot;
use culvert_core::policy::{
    Call, DryRun, HttpFacts, RequestDecision, RequestFacts, RequestTarget, RuleMatch, Verdict as Decided,
};
use culvert_core::route::normalize::{BadPath, normalize};
use http::HeaderMap;
use http::request::Parts;
use http::uri::PathAndQuery;
use smallvec::SmallVec;

pub use self::ext_authz::ResponseHeaders;
use self::guard::Guard;
use self::jwks::Keys;
pub use self::reach::{Duplex, Reach, ReachError, Server, Stream};
use crate::identity::Clock;
use crate::telemetry::PeerLine;
use crate::waypoint::body::Body;
use crate::waypoint::http::reply::LocalReply;

/// Decides requests. One for all workers.
pub struct Gate {
    keys: Keys,
    reach: Arc<dyn Reach>,
    clock: Arc<dyn Clock>,
}

/// What is known of a session before its first request.
#[derive(Clone, Copy, Debug)]
pub struct SessionFacts<'a> {
    /// Who the client has proved to be; `None` in plaintext.
    pub principal: Option<&'a Identity>,
    /// The client's address.
    pub client_address: SocketAddr,
    /// The address that it asked for.
    pub destination: SocketAddr,
    /// The server name of the TLS within, if there was one.
    pub sni: Option<&'a str>,
    /// Who the waypoint itself is.
    pub own: Option<&'a Identity>,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Verdict {
    /// It goes on.
    Allow(Allowed),
    /// It is answered with this instead.
    Deny(Box<LocalReply>),
}

/// What is known of a request that goes on.
#[derive(Debug, Default)]
pub struct Allowed {
    /// What its token says, if it has one.
    pub authenticated: Option<Box<Authenticated>>,
    /// What providers have to say to the client.
    pub response: Option<Box<ResponseHeaders>>,
    /// Whether its route is to be chosen by what it is now, and not by what came: a client could have forged headers
    /// that only a proxy may set, and routes may look at the claims of tokens.
    pub reroute: bool,
    /// The AUDIT rule that it matches.
    pub audit: Option<Box<RuleMatch>>,
}

impl Gate {
    /// A gate that fetches keys and asks providers by `reach`. `mesh` says which key servers are in the mesh.
    pub fn new(mesh: Arc<ArcSwap<Snapshot>>, reach: Arc<dyn Reach>, clock: Arc<dyn Clock>) -> Self {
        Self { keys: Keys::new(mesh, reach.clone()), reach, clock }
    }

    /// Decides a request, and makes of it what is to go on.
    ///
    /// Its path is normalized where that was not done yet; one that cannot be is refused (400).
    pub async fn check(
        &self,
        snapshot: &Arc<Snapshot>,
        target: RequestTarget<'_>,
        session: &SessionFacts<'_>,
        head: &mut Parts,
        body: &mut Body,
    ) -> Verdict {
        let guard = Guard::of(snapshot, target);
        let reroute = xfcc::set(&mut head.headers, guard.tells_client, session);
        if guard.is_open() {
            return Verdict::Allow(Allowed { reroute, ..Allowed::default() });
        }
        let request = Request { gate: self, guard: &guard, snapshot, session };
        match request.check(head, body).await {
            Ok(allowed) => Verdict::Allow(Allowed { reroute: allowed.reroute | reroute, ..allowed }),
            Err(reply) => Verdict::Deny(reply),
        }
    }

    /// The time since 1970.
    fn now(&self) -> Duration {
        self.clock.now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// One request, and what it is judged by.
struct Request<'r> {
    gate: &'r Gate,
    guard: &'r Guard,
    snapshot: &'r Arc<Snapshot>,
    session: &'r SessionFacts<'r>,
}

/// The names of providers that have agreed.
type Agreed = SmallVec<[Arc<str>; 2]>;

impl Request<'_> {
    async fn check(&self, head: &mut Parts, body: &mut Body) -> Result<Allowed, Box<LocalReply>> {
        self.normalize(head)?;
        for name in &self.guard.reserved {
            head.headers.remove(name);
        }
        let mut allowed = Allowed { reroute: !self.guard.reserved.is_empty(), ..Allowed::default() };
        let mut agreed = Agreed::new();
        if self.guard.policies.has_providers() {
            // Boxed, so that what nobody is asked about does not carry the room for it.
            Box::pin(self.ask(head, body, &mut agreed, &mut allowed)).await?;
        }
        if !self.guard.authentications.is_empty() {
            allowed.authenticated = self.authenticate(head).await?;
        }
        let decision = self.decided(head, |http, remote_ip| {
            let facts = facts(self.session, http, remote_ip, allowed.authenticated.as_deref(), &agreed);
            self.guard.policies.authorize_agreed(self.snapshot.options(), &facts)
        });
        note(&decision, self.session);
        if !decision.is_allowed() {
            return Err(refusal::denied(&decision.reason));
        }
        allowed.audit = decision.audit.map(Box::new);
        Ok(allowed)
    }

    /// Asks every provider whose policy matches, one after the other: each sees what those before it have made of the
    /// request.
    async fn ask(
        &self,
        head: &mut Parts,
        body: &mut Body,
        agreed: &mut Agreed,
        allowed: &mut Allowed,
    ) -> Result<(), Box<LocalReply>> {
        loop {
            let decision = self.decided(head, |http, remote_ip| {
                let facts = facts(self.session, http, remote_ip, None, agreed);
                self.guard.policies.ask(self.snapshot.options(), &facts)
            });
            let Some(decision) = decision else { return Ok(()) };
            let Decided::Ask(provider) = decision.verdict else {
                note(&decision, self.session);
                return Err(refusal::denied(&decision.reason));
            };
            let asking = ext_authz::Asking {
                reach: &*self.gate.reach,
                snapshot: self.snapshot,
                provider: &provider,
                session: self.session,
                now: self.gate.now(),
            };
            let changes = asking.ask(head, body).await?;
            changes.apply(head, allowed.response.get_or_insert_default());
            allowed.reroute |= provider.clear_route_cache;
            self.normalize(head)?;
            agreed.push(provider.name.clone());
        }
    }

    /// Gives the path the one spelling that policies, routes and servers see.
    fn normalize(&self, head: &mut Parts) -> Result<(), Box<LocalReply>> {
        let mode = self.snapshot.options().path_normalization;
        // What has no path is a CONNECT, which has nothing to normalize.
        let Some(path) = head.uri.path_and_query() else { return Ok(()) };
        let normalized = match normalize(mode, path.as_str()) {
            Ok(normalized) if *normalized == *path.as_str() => return Ok(()),
            Ok(normalized) => normalized.into_owned(),
            Err(bad) => return Err(refusal::bad_path(bad)),
        };
        set_path(head, normalized).map_err(|()| refusal::bad_path(BadPath::Relative))
    }

    /// What `decide` says of the request, given what it says of itself and where it first came from.
    fn decided<T>(&self, head: &Parts, decide: impl FnOnce(HttpFacts<'_>, IpAddr) -> T) -> T {
        let http =
            HttpFacts { method: head.method.as_str(), host: host(head), path: head.uri.path(), headers: &head.headers };
        decide(http, remote_ip(&head.headers).unwrap_or(self.session.client_address.ip()))
    }
}

/// Puts a path and query in the place of a request's own.
fn set_path(head: &mut Parts, path_and_query: String) -> Result<(), ()> {
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    let path = PathAndQuery::try_from(path_and_query).map_err(drop);
    let (kept, result) = match path {
        Ok(path) => (Some(path), Ok(())),
        Err(()) => (parts.path_and_query.take(), Err(())),
    };
    parts.path_and_query = kept;
    head.uri = http::Uri::from_parts(parts).map_err(drop)?;
    result
}

/// `:authority`, or `Host`.
fn host(head: &Parts) -> &str {
    let of_header = || head.headers.get(http::header::HOST)?.to_str().ok();
    head.uri.authority().map(http::uri::Authority::as_str).or_else(of_header).unwrap_or_default()
}

/// Where a request first came from, as the proxy before this one says: the last entry of `X-Forwarded-For`.
fn remote_ip(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
    let entry = last.rsplit(',').next()?.trim();
    let ip = entry.parse::<IpAddr>().or_else(|_| entry.parse::<SocketAddr>().map(|address| address.ip())).ok()?;
    Some(ip.to_canonical())
}

fn facts<'a>(
    session: &SessionFacts<'a>,
    http: HttpFacts<'a>,
    remote_ip: IpAddr,
    authenticated: Option<&'a Authenticated>,
    agreed: &'a [Arc<str>],
) -> RequestFacts<'a> {
    let SessionFacts { principal, client_address, destination, sni, .. } = *session;
    let call = Call { principal, source_ip: client_address.ip(), destination };
    RequestFacts { call, remote_ip, sni, http: Some(http), authenticated, agreed }
}

/// Says what policies on trial would have, and why a request was refused.
fn note(decision: &RequestDecision, session: &SessionFacts<'_>) {
    for DryRun { policy, rule } in decision.dry_run.iter().filter(|_| PeerLine::DryRun.may_be_written()) {
        tracing::info!(
            policy = %policy.name, action = ?policy.action, rule, source = %session.client_address,
            destination = %session.destination, "dry run: {}",
            if rule.is_some() { "the policy matches" } else { "the policy does not match" },
        );
    }
    if !decision.is_allowed() {
        tracing::debug!(source = %session.client_address, destination = %session.destination, "refused: {}", decision.reason);
    }
}
