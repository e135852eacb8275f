//! What a waypoint is asked for, decided by the policies that are attached to it and to what it serves.

mod attribute;
mod template;

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use smallvec::SmallVec;

pub use attribute::{ClaimPath, Paths, RequestAttribute};
pub use template::PathTemplate;

use super::explain::{NotAllowed, Reason, RuleMatch};
use super::matcher::Facts;
use super::{Action, AuthorizationPolicy, Call, DryRun, Settings, UnsupportedDeny};
use crate::authentication::Authenticated;
use crate::mesh::Snapshot;
use crate::options::MeshOptions;
use crate::options::ext_authz::ExtAuthz;
use crate::service::Service;
use crate::workload::NamespacedName;

/// A request, or a connection that is not HTTP, as a waypoint sees it.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The client's identity and address, and the address and port that it asked for.
    pub call: Call<'a>,
    /// Where the request first came from, by `X-Forwarded-For` or the PROXY protocol; else the client's address.
    pub remote_ip: IpAddr,
    /// The server name of the TLS within, if there was one.
    pub sni: Option<&'a str>,
    /// The request; `None` for a connection that is not HTTP.
    pub http: Option<HttpFacts<'a>>,
    /// The token that was verified; `None` if there was none.
    pub authenticated: Option<&'a Authenticated>,
    /// The providers that were asked and agreed, by name.
    pub agreed: &'a [Arc<str>],
}

/// What HTTP says.
#[derive(Clone, Copy, Debug)]
pub struct HttpFacts<'a> {
    /// The method.
    pub method: &'a str,
    /// `:authority`, or `Host`, with its port if it has one.
    pub host: &'a str,
    /// The path, normalized as the mesh options say, without its query.
    pub path: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
}

/// What a waypoint is asked for.
#[derive(Clone, Copy, Debug)]
pub struct RequestTarget<'a> {
    /// The waypoint.
    pub gateway: &'a NamespacedName,
    /// The service; `None` for a workload asked for by its own address.
    pub service: Option<&'a Service>,
}

impl RequestTarget<'_> {
    /// Whose namespace's policies apply.
    fn namespace(&self) -> &str {
        self.service.map_or(&self.gateway.namespace, |service| &service.key.namespace)
    }
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It goes on.
    Allow,
    /// It is refused: 403, or gRPC status 7, or the connection is closed.
    Deny,
    /// This provider is to be asked; if it agrees, decide again with it among [`RequestFacts::agreed`].
    Ask(Arc<ExtAuthz>),
}

/// What becomes of a request, and why.
#[derive(Clone, Debug)]
#[must_use]
pub struct RequestDecision {
    /// What becomes of it.
    pub verdict: Verdict,
    /// What decided.
    pub reason: Reason,
    /// The first rule of an AUDIT policy that matched: the request is to be marked, whatever becomes of it.
    pub audit: Option<RuleMatch>,
    /// The dry-run policies that apply, each with what it would have said.
    pub dry_run: SmallVec<[DryRun; 2]>,
}

impl RequestDecision {
    /// Whether the request goes on.
    pub fn is_allowed(&self) -> bool {
        matches!(self.verdict, Verdict::Allow)
    }

    fn new(verdict: Verdict, reason: Reason) -> Self {
        Self { verdict, reason, audit: None, dry_run: SmallVec::new() }
    }
}

/// Decides a request by everything in `snapshot` that applies to it: CUSTOM, then DENY, then ALLOW.
///
/// Where objects may be missing nothing is allowed: one of them may deny it.
pub fn authorize_request(snapshot: &Snapshot, target: RequestTarget<'_>, facts: &RequestFacts<'_>) -> RequestDecision {
    RequestPolicies::of(snapshot, target).authorize(snapshot.options(), facts)
}

/// What CUSTOM policies say of a request before its token is read, as Istio has the order: a provider to ask, or that
/// the request is refused. `None` if nobody has to be asked, or all have agreed.
pub fn ask(snapshot: &Snapshot, target: RequestTarget<'_>, facts: &RequestFacts<'_>) -> Option<RequestDecision> {
    RequestPolicies::of(snapshot, target).ask(snapshot.options(), facts)
}

/// The policies that apply to what a waypoint is asked for: the same for every request, as long as the mesh is.
#[derive(Clone, Debug)]
pub struct RequestPolicies {
    incomplete: Option<Arc<str>>,
    policies: SmallVec<[Arc<AuthorizationPolicy>; 4]>,
}

impl RequestPolicies {
    /// Those of `target`.
    pub fn of(snapshot: &Snapshot, target: RequestTarget<'_>) -> Self {
        let incomplete = snapshot.incomplete(target.namespace()).cloned();
        Self { incomplete, policies: snapshot.policies_at(target) }
    }

    /// Whether every request goes on.
    pub fn is_open(&self) -> bool {
        self.incomplete.is_none() && self.policies.is_empty()
    }

    /// Whether there is anybody to be asked.
    pub fn has_providers(&self) -> bool {
        self.policies.iter().any(|policy| policy.action == Action::Custom && !policy.dry_run)
    }

    /// As [`ask`].
    pub fn ask(&self, options: &MeshOptions, facts: &RequestFacts<'_>) -> Option<RequestDecision> {
        if let Some(why) = &self.incomplete {
            return Some(RequestDecision::new(Verdict::Deny, Reason::Incomplete(why.clone())));
        }
        let judge = Judge { facts: &Facts::of_request(facts, settings(options)), policies: &self.policies };
        judge.ask(&options.ext_authz, facts.agreed)
    }

    /// As [`authorize_request`].
    pub fn authorize(&self, options: &MeshOptions, facts: &RequestFacts<'_>) -> RequestDecision {
        if let Some(why) = &self.incomplete {
            return RequestDecision::new(Verdict::Deny, Reason::Incomplete(why.clone()));
        }
        decide_request(settings(options), &self.policies, &options.ext_authz, facts)
    }

    /// As [`Self::authorize`], once everybody has agreed who was to be asked: what the answers and the token have made
    /// of the request asks nobody else.
    pub fn authorize_agreed(&self, options: &MeshOptions, facts: &RequestFacts<'_>) -> RequestDecision {
        if let Some(why) = &self.incomplete {
            return RequestDecision::new(Verdict::Deny, Reason::Incomplete(why.clone()));
        }
        let judge = Judge { facts: &Facts::of_request(facts, settings(options)), policies: &self.policies };
        judge.note(judge.deny_or_allow())
    }
}

/// Decides a request by `policies`, in any order; `providers` are those of the mesh options.
pub fn decide_request(
    settings: Settings<'_>,
    policies: &[Arc<AuthorizationPolicy>],
    providers: &[Arc<ExtAuthz>],
    facts: &RequestFacts<'_>,
) -> RequestDecision {
    let judge = Judge { facts: &Facts::of_request(facts, settings), policies };
    judge.note(judge.ask(providers, facts.agreed).unwrap_or_else(|| judge.deny_or_allow()))
}

fn settings(options: &MeshOptions) -> Settings<'_> {
    // What the option `l4-unsupported-deny` is about is seen here.
    Settings { unsupported_deny: UnsupportedDeny::Deny, ..super::settings(options) }
}

/// One request and what applies to it.
struct Judge<'j, 'a> {
    facts: &'j Facts<'a>,
    policies: &'j [Arc<AuthorizationPolicy>],
}

impl<'j> Judge<'j, '_> {
    fn first_match(&self, policy: &AuthorizationPolicy) -> Option<usize> {
        policy.rules.iter().position(|rule| rule.matches(self.facts, policy.action, UnsupportedDeny::Deny))
    }

    fn enforced(&self, action: Action) -> impl Iterator<Item = &'j Arc<AuthorizationPolicy>> {
        self.policies.iter().filter(move |policy| policy.action == action && !policy.dry_run)
    }

    fn matching(&self, action: Action) -> Option<(&'j Arc<AuthorizationPolicy>, usize)> {
        self.enforced(action).find_map(|policy| Some((policy, self.first_match(policy)?)))
    }

    fn explain(&self, (policy, rule): (&Arc<AuthorizationPolicy>, usize)) -> RuleMatch {
        RuleMatch::new(policy.clone(), rule, self.facts, UnsupportedDeny::Deny)
    }

    fn ask(&self, providers: &[Arc<ExtAuthz>], agreed: &[Arc<str>]) -> Option<RequestDecision> {
        let open = self.enforced(Action::Custom).filter(|policy| !agreed.contains(&policy.provider));
        let (policy, rule) = open.into_iter().find_map(|policy| Some((policy, self.first_match(policy)?)))?;
        let found = Box::new(self.explain((policy, rule)));
        Some(match providers.iter().find(|provider| provider.name == policy.provider) {
            Some(provider) => RequestDecision::new(Verdict::Ask(provider.clone()), Reason::Ask(found)),
            None => RequestDecision::new(Verdict::Deny, Reason::UnknownProvider(found)),
        })
    }

    /// Adds what AUDIT policies and those on trial say.
    fn note(&self, decision: RequestDecision) -> RequestDecision {
        let audit = self.matching(Action::Audit).map(|found| self.explain(found));
        let on_trial = self.policies.iter().filter(|policy| policy.dry_run);
        let dry_run = on_trial
            .filter(|policy| matches!(policy.action, Action::Allow | Action::Deny))
            .map(|policy| DryRun { policy: policy.clone(), rule: self.first_match(policy) })
            .collect();
        RequestDecision { audit, dry_run, ..decision }
    }

    fn deny_or_allow(&self) -> RequestDecision {
        let (verdict, reason) = if let Some(found) = self.matching(Action::Deny) {
            (Verdict::Deny, Reason::Denied(Box::new(self.explain(found))))
        } else if self.enforced(Action::Allow).next().is_none() {
            (Verdict::Allow, Reason::NoAllowPolicy)
        } else if let Some(found) = self.matching(Action::Allow) {
            (Verdict::Allow, Reason::Allowed(self.explain(found)))
        } else {
            let nearest = NotAllowed::new(self.enforced(Action::Allow), self.facts);
            (Verdict::Deny, Reason::NotAllowed(Box::new(nearest)))
        };
        RequestDecision::new(verdict, reason)
    }
}
