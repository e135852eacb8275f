//! Who may talk to whom: L4 authorization, as a pure function that can always say why.
//!
//! [`authorize`] takes a workload's PeerAuthentication and AuthorizationPolicies and one [`Call`], and returns a
//! [`Decision`]. The data path, `culvertctl simulate` and `culvertctl analyze` call the same function.
//!
//! # Order
//!
//! 1. The workload takes what comes through its waypoint alone, and this does not: denied.
//! 2. PeerAuthentication STRICT on the port, and the caller has no identity: denied.
//! 3. Any DENY rule that matches: denied.
//! 4. No ALLOW policy applies: allowed.
//! 5. Any ALLOW rule that matches: allowed. Otherwise denied.
//!
//! Policies with `istio.io/dry-run: "true"` are evaluated and reported, never enforced. The policies that apply to a
//! workload are those of the whole mesh (root namespace, no selector), of its namespace (no selector), and those whose
//! selector matches it; a selector in the root namespace selects the pods of every namespace.
//!
//! # What matches
//!
//! A rule is `from` (one source matches) AND `to` (one operation matches) AND every `when`. Within a source, operation
//! or condition every field must hold; a field holds if one of its values matches, a `not…` field if none does.
//!
//! | written | means |
//! |---|---|
//! | no `rules`, or `rules: []` | never matches: an ALLOW policy denies everything, a DENY policy does nothing |
//! | `rules: [{}]` | always matches |
//! | a `source` or `operation` without any field | that alternative never matches |
//!
//! Strings match exactly, by `prefix*`, by `*suffix`, or by `*` (anything but empty), always case-sensitively. Without
//! an identity (plaintext) no principal, namespace, service account or trust domain matches, so that the positive
//! fields fail and the negative ones hold. `destination.ip` and `destination.port` are the pod's, not the service's.
//!
//! A waypoint of the workload may say on whose behalf it calls. A rule then matches if it does by the waypoint's identity,
//! or if it does by the client's; a `not…` field fails if it names either. So everything that is written for a mesh in
//! which only the waypoint is seen holds as it did, and the client can be named beside it.
//!
//! A principal in the mesh's trust domain, in one of its aliases, or in `cluster.local` is expanded to the mesh's
//! trust domain and every alias.
//!
//! # Where this is stricter than Istio, and why
//!
//! Istio's node proxy drops what it cannot decide, and some of those drops turn a refusal into an open door. Here
//! everything that cannot be decided or understood counts against the connection, and is reported as a finding:
//!
//! | written | Istio's ztunnel | here |
//! |---|---|---|
//! | DENY with fields of L7 (`methods`, `paths`, `hosts`, `requestPrincipals`, `remoteIpBlocks`, `request.*`…) beside L4 fields of the same clause | the L4 fields alone decide | the same |
//! | DENY where a clause holds nothing but fields of L7 | the rule silently does nothing | the clause matches: more is denied than asked for, never less. Mesh option `l4-unsupported-deny: ignore` gives Istio's behaviour |
//! | ALLOW with fields of L7 | the rule never matches | the same |
//! | `trustDomains`, `when: source.serviceAccount`, `when: source.trustDomain` | dropped, or taken for L7 | decided |
//! | CIDRs and ports that do not parse | dropped in silence | DENY: such a value matches everything; ALLOW: it matches nothing, and a `not…` field that holds one fails |
//! | principals with `spiffe://`, `*` in the middle of a value | never match | DENY: read as what was evidently meant; ALLOW: never match |
//! | a field that nothing reads (`form:` for `from:`) | as if it were not there | DENY: the same, which matches more; ALLOW: the rule never matches, or none if the field is beside `rules` |
//! | legacy or unknown `when` keys | the rule is skipped | as a field that L4 cannot see |
//!
//! CUSTOM and AUDIT policies are not enforced at L4 and are reported; policies with `targetRefs` belong to waypoints.
//!
//! # At waypoints
//!
//! [`authorize_request`] decides what a waypoint is asked for, by the same rules and the same engine. Policies with
//! `targetRefs` apply there and nowhere else, and no other does: those without are for the nodes of the destination.
//!
//! 1. CUSTOM: each provider whose policy matches is asked; one that nobody knows denies.
//! 2. Any DENY rule that matches: denied. AUDIT marks, and never decides.
//! 3. No ALLOW policy applies: allowed. Any ALLOW rule that matches: allowed. Otherwise denied.
//!
//! A connection that is not HTTP has neither path nor headers nor token: a field of those is left out of DENY, CUSTOM
//! and AUDIT rules, which match more, and keeps ALLOW rules from matching. Strings of requests match by a `*` at the
//! start or else at the end; any other `*` is itself. Where this is stricter than Istio's waypoint:
//!
//! | written | Istio's waypoint | here |
//! |---|---|---|
//! | `hosts: [a.example]` and a request for `A.example:8080`, or for `a.example.` | no match, also in DENY | DENY and ALLOW's `notHosts` disregard port and final dot; ALLOW's `hosts` and DENY's `notHosts` do not |
//! | a claim that is a number or a boolean | never matches, also in DENY | DENY and ALLOW's `notValues` compare its text; the others do not |
//! | `experimental.envoy.filters.*`, unknown and legacy keys | Envoy's metadata; the rule is skipped | DENY: taken to match; ALLOW: the rule never matches |
//! | paths with `{*}` or `{**}` where these cannot be | refused by the webhook alone | DENY: matches everything; ALLOW: nothing |
//! | CUSTOM with fields of a token, which is read only after | never matches, so that nobody is asked | taken to match |

mod evaluate;
mod explain;
mod matcher;
mod passage;
mod peer_authentication;
mod request;
mod rule;
mod serialize;
mod target;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

pub use evaluate::{Settings, decide};
pub use explain::{Explanation, NotAllowed, Reason, RuleMatch, Tried};
pub(crate) use matcher::has_inner_wildcard;
pub use matcher::{Networks, Pattern, Ports, Principals, ServiceAccounts, Strings};
pub use passage::Missed;
pub use peer_authentication::{EffectivePeerAuthentication, MtlsMode, PeerAuthentication, PeerAuthenticationScope};
pub use request::{
    ClaimPath, HttpFacts, PathTemplate, Paths, RequestAttribute, RequestDecision, RequestFacts, RequestPolicies,
    RequestTarget, Verdict, ask, authorize_request, decide_request,
};
pub use rule::{Alternative, Attribute, Clause, ClauseKind, Condition, Rule};

pub use target::{NotBound, PolicyTarget};

use self::passage::Passage;
use crate::identity::Identity;
use crate::mesh::Snapshot;
use crate::options::MeshOptions;
use crate::workload::{Labels, NamespacedName, Workload};

/// An AuthorizationPolicy that L4 enforces: parsed, so that evaluating it cannot fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// The object.
    pub name: NamespacedName,
    /// What a match means.
    pub action: Action,
    /// Which workloads it applies to.
    pub scope: Scope,
    /// The rules, in the object's order. A rule that cannot match is kept, so that positions are the object's.
    pub rules: Vec<Rule>,
    /// Whether it is only reported (`istio.io/dry-run: "true"`).
    pub dry_run: bool,
    /// Who is asked about what matches ([`Action::Custom`]), by the name in the mesh options; empty for nobody.
    pub provider: Arc<str>,
}

impl AuthorizationPolicy {
    /// Whether this policy applies to `workload`.
    pub fn applies_to(&self, workload: &Workload) -> bool {
        match &self.scope {
            Scope::Mesh => true,
            Scope::Namespace => workload.namespace == self.name.namespace,
            Scope::Selector(labels) => workload.namespace == self.name.namespace && selects(labels, &workload.labels),
            Scope::MeshSelector(labels) => selects(labels, &workload.labels),
            Scope::Targets(_) => false,
        }
    }

    /// Whether nodes enforce it; else waypoints do.
    pub fn is_for_nodes(&self) -> bool {
        !matches!(self.scope, Scope::Targets(_))
    }
}

/// Whether every pair of `selector` is among `labels`.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What a matching rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// The call is allowed, unless something denies it.
    Allow,
    /// The call is denied.
    Deny,
    /// The call is marked; only at waypoints.
    Audit,
    /// An extension provider decides; only at waypoints.
    Custom,
}

impl Action {
    /// Whether a match can only take away: what cannot be read in such a rule matches.
    pub fn restricts(self) -> bool {
        self != Self::Allow
    }
}

/// What a policy applies to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Scope {
    /// Every workload: a policy of the root namespace without a selector.
    Mesh,
    /// Every workload of the policy's namespace.
    Namespace,
    /// The workloads of the policy's namespace that carry these labels (never empty).
    Selector(Labels),
    /// The workloads of every namespace that carry these labels: a policy of the root namespace (never empty).
    MeshSelector(Labels),
    /// No workload, but what waypoints are asked for: see [`PolicyTarget`].
    Targets(Box<[PolicyTarget]>),
}

/// What to do with a DENY clause that holds nothing L4 can see (mesh option `l4-unsupported-deny`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnsupportedDeny {
    /// It matches: more is denied than asked for.
    #[default]
    Deny,
    /// It never matches, as at Istio's ztunnel.
    Ignore,
}

/// One connection, as the server's side sees it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Who the peer proved to be; `None` for plaintext.
    pub principal: Option<&'a Identity>,
    /// The client's address.
    pub source_ip: IpAddr,
    /// The pod's address and the port of the application on it.
    pub destination: SocketAddr,
}

/// Whether a call goes through, and why.
#[derive(Clone, Debug)]
#[must_use]
pub struct Decision {
    /// Whether it goes through.
    pub allowed: bool,
    /// What decided.
    pub reason: Reason,
    /// The dry-run policies that apply, each with what it would have said.
    pub dry_run: SmallVec<[DryRun; 2]>,
}

impl Decision {
    /// Denied before any policy was asked.
    fn denied(reason: Reason) -> Self {
        Self { allowed: false, reason, dry_run: SmallVec::new() }
    }
}

/// Decides `call` to `workload` by everything in `snapshot` that applies to it.
///
/// `client` is on whose behalf the caller says that it calls ([`crate::hbone::client_identity`]). A waypoint of the
/// workload is believed, and policies may then name the client as well as the waypoint; what anybody else says is
/// disregarded.
///
/// Where objects may be missing nothing is allowed: one of them may deny it.
pub fn authorize(snapshot: &Snapshot, workload: &Workload, call: &Call<'_>, client: Option<&Identity>) -> Decision {
    if let Some(why) = snapshot.incomplete(&workload.namespace) {
        return Decision::denied(Reason::Incomplete(why.clone()));
    }
    let passage = Passage::of(snapshot, workload, call);
    if let Some(missed) = passage.missed {
        return Decision::denied(Reason::NotThroughWaypoint(Box::new(missed)));
    }
    let (peer_authentication, policies) = (snapshot.peer_authentication_for(workload), snapshot.policies_for(workload));
    decide(settings(snapshot.options()), &peer_authentication, &policies, call, client.filter(|_| passage.by_waypoint))
}

/// Decides as [`authorize`] would if nothing were missing and the dry-run policy `trial` were enforced too.
pub fn authorize_with(
    snapshot: &Snapshot,
    workload: &Workload,
    call: &Call<'_>,
    client: Option<&Identity>,
    trial: &DryRun,
) -> Decision {
    let enforced = AuthorizationPolicy { dry_run: false, ..AuthorizationPolicy::clone(&trial.policy) };
    let mut policies: Vec<_> = snapshot.policies_for(workload).into_iter().collect();
    policies.retain(|policy| policy.name != enforced.name);
    policies.push(Arc::new(enforced));
    let client = client.filter(|_| Passage::of(snapshot, workload, call).by_waypoint);
    decide(settings(snapshot.options()), &snapshot.peer_authentication_for(workload), &policies, call, client)
}

fn settings(options: &MeshOptions) -> Settings<'_> {
    Settings {
        trust_domain: &options.trust_domain,
        aliases: &options.trust_domain_aliases,
        unsupported_deny: options.l4_unsupported_deny,
    }
}

/// What a dry-run policy would have said.
#[derive(Clone, Debug)]
pub struct DryRun {
    /// The policy.
    pub policy: Arc<AuthorizationPolicy>,
    /// The first rule that matched, if any did.
    pub rule: Option<usize>,
}

#[cfg(test)]
mod tests;
