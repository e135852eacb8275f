//! The decision.

use std::sync::Arc;

use smallvec::SmallVec;

use super::explain::{NotAllowed, Reason, RuleMatch};
use super::matcher::Facts;
use super::rule::Rule;
use super::{
    Action, AuthorizationPolicy, Call, Decision, DryRun, EffectivePeerAuthentication, MtlsMode, UnsupportedDeny,
};
use crate::identity::Identity;

/// The mesh options that decisions depend on.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The mesh's trust domain.
    pub trust_domain: &'a str,
    /// The names that are as good as it.
    pub aliases: &'a [Arc<str>],
    /// What a DENY clause without anything L4 can see means.
    pub unsupported_deny: UnsupportedDeny,
}

/// Decides `call` by what applies to the workload: its PeerAuthentication and its `policies`, in any order.
/// `client` is on whose behalf the caller calls, where it is a waypoint that is believed.
///
/// Nothing is allocated unless the call is denied, or more than two dry-run policies apply.
pub fn decide(
    settings: Settings<'_>,
    peer_authentication: &EffectivePeerAuthentication,
    policies: &[Arc<AuthorizationPolicy>],
    call: &Call<'_>,
    client: Option<&Identity>,
) -> Decision {
    let each = Facts::of_each(call, client, settings);
    let first_match = |policy: &AuthorizationPolicy| {
        let matches = |rule: &Rule, facts| rule.matches(facts, policy.action, settings.unsupported_deny);
        let by = |rule| each.iter().find(|facts| matches(rule, *facts));
        policy.rules.iter().enumerate().find_map(|(i, rule)| Some((i, by(rule)?)))
    };
    let enforced = |action| policies.iter().filter(move |policy| policy.action == action && !policy.dry_run);
    let matching = |action| {
        enforced(action).find_map(|policy| {
            let (rule, facts) = first_match(policy)?;
            Some(RuleMatch::new(policy.clone(), rule, facts, settings.unsupported_deny))
        })
    };
    let dry_run: SmallVec<[DryRun; 2]> = policies
        .iter()
        .filter(|policy| policy.dry_run)
        .map(|policy| DryRun { policy: policy.clone(), rule: first_match(policy).map(|(rule, _)| rule) })
        .collect();

    let reason = if let Some(strict) = refused_as_plaintext(peer_authentication, call) {
        strict
    } else if let Some(found) = matching(Action::Deny) {
        Reason::Denied(Box::new(found))
    } else if enforced(Action::Allow).next().is_none() {
        Reason::NoAllowPolicy
    } else if let Some(found) = matching(Action::Allow) {
        Reason::Allowed(found)
    } else {
        Reason::NotAllowed(Box::new(NotAllowed::new(enforced(Action::Allow), &each[each.len() - 1])))
    };
    Decision { allowed: matches!(reason, Reason::NoAllowPolicy | Reason::Allowed(_)), reason, dry_run }
}

fn refused_as_plaintext(peer_authentication: &EffectivePeerAuthentication, call: &Call<'_>) -> Option<Reason> {
    if call.principal.is_some() {
        return None;
    }
    match peer_authentication.port(call.destination.port()) {
        (MtlsMode::Strict, source) => {
            Some(Reason::MtlsRequired { object: source.cloned(), port: call.destination.port() })
        }
        (MtlsMode::Permissive, _) => None,
    }
}
