//! Why a call was allowed or denied, in one readable line and in fields.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use smallvec::SmallVec;

use super::matcher::Facts;
use super::passage::Missed;
use super::rule::{Alternative, Clause, Condition, Rule};
use super::{Action, AuthorizationPolicy, UnsupportedDeny};
use crate::workload::NamespacedName;

/// How many of the policies that did not match an explanation names.
const MAX_TRIED: usize = 3;

/// What decided a call.
#[derive(Clone, Debug)]
pub enum Reason {
    /// Allowed: no ALLOW policy applies to the workload, and nothing denies.
    NoAllowPolicy,
    /// Denied: policies may be missing, for this reason.
    Incomplete(Arc<str>),
    /// Allowed by a rule.
    Allowed(RuleMatch),
    /// Denied by a rule.
    Denied(Box<RuleMatch>),
    /// Denied: ALLOW policies apply, and none of their rules matches.
    NotAllowed(Box<NotAllowed>),
    /// Not decided yet: the policy's provider is to be asked.
    Ask(Box<RuleMatch>),
    /// Denied: the policy names a provider that the mesh options do not have.
    UnknownProvider(Box<RuleMatch>),
    /// Denied: it had to come through a waypoint, and did not.
    NotThroughWaypoint(Box<Missed>),
    /// Denied: the port insists on an identity, and the caller has none.
    MtlsRequired {
        /// The PeerAuthentication that says so.
        object: Option<NamespacedName>,
        /// The workload's port.
        port: u16,
    },
}

/// A reason in fields, for JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The object that decided, `namespace/name`.
    pub policy: Option<String>,
    /// The position of its rule.
    pub rule: Option<usize>,
    /// The field that decided, below the rule: `from[0].source.principals[1]`.
    pub clause: Option<String>,
    /// The value there, as it was written.
    pub value: Option<String>,
    /// The whole as one line.
    pub message: String,
}

/// A rule that matched, and the values that made it match.
#[derive(Clone, Debug)]
pub struct RuleMatch {
    /// The policy.
    pub policy: Arc<AuthorizationPolicy>,
    /// The position of the rule.
    pub rule: usize,
    /// What matched, clause by clause; the first few.
    evidence: SmallVec<[Evidence; 4]>,
}

/// Positions within a rule: enough to find the text again, small enough to keep.
#[derive(Clone, Copy, Debug)]
struct Evidence {
    clause: u16,
    alternative: u16,
    /// `None`: the alternative holds nothing that can be decided, and matches for that.
    condition: Option<u16>,
    /// `None`: none of the values of a `not…` field matched.
    value: Option<u16>,
}

/// ALLOW policies that applied and did not match.
#[derive(Clone, Debug)]
pub struct NotAllowed {
    /// The rules that came nearest, nearest first; bounded.
    pub tried: Vec<Tried>,
    /// How many ALLOW policies applied.
    pub policies: usize,
}

/// A rule that did not match.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The policy.
    pub policy: NamespacedName,
    /// The position of the rule; `None` if the policy has no rules.
    pub rule: Option<usize>,
    /// The first clause that failed, as a field below the rule.
    pub clause: Option<String>,
    /// Why it failed.
    pub why: String,
    /// How many clauses matched before.
    passed: usize,
}

impl Reason {
    /// The object that decided: a policy, or a PeerAuthentication; for [`Reason::NotAllowed`], the nearest policy.
    pub fn policy(&self) -> Option<&NamespacedName> {
        match self {
            Self::NoAllowPolicy | Self::Incomplete(_) | Self::NotThroughWaypoint(_) => None,
            Self::Allowed(found) => Some(&found.policy.name),
            Self::Denied(found) | Self::Ask(found) | Self::UnknownProvider(found) => Some(&found.policy.name),
            Self::NotAllowed(tried) => tried.tried.first().map(|nearest| &nearest.policy),
            Self::MtlsRequired { object, .. } => object.as_ref(),
        }
    }

    /// The position of the rule that matched; `None` where none did.
    pub fn rule(&self) -> Option<usize> {
        match self {
            Self::Allowed(found) => Some(found.rule),
            Self::Denied(found) | Self::Ask(found) | Self::UnknownProvider(found) => Some(found.rule),
            Self::NoAllowPolicy
            | Self::Incomplete(_)
            | Self::NotAllowed(_)
            | Self::NotThroughWaypoint(_)
            | Self::MtlsRequired { .. } => None,
        }
    }

    /// What denied a request, in the form of Envoy's response code details; `None` if nothing did.
    pub fn response_code_details(&self) -> Option<String> {
        let matched = |found: &RuleMatch| {
            let NamespacedName { namespace, name } = &found.policy.name;
            format!("rbac_access_denied_matched_policy[ns[{namespace}]-policy[{name}]-rule[{}]]", found.rule)
        };
        match self {
            Self::NoAllowPolicy | Self::Allowed(_) | Self::Ask(_) => None,
            Self::Denied(found) => Some(matched(found)),
            Self::UnknownProvider(_) => Some("ext_authz_error".to_owned()),
            Self::NotAllowed(_) | Self::Incomplete(_) | Self::NotThroughWaypoint(_) | Self::MtlsRequired { .. } => {
                Some("rbac_access_denied_matched_policy[none]".to_owned())
            }
        }
    }

    /// The reason in fields.
    pub fn explanation(&self) -> Explanation {
        let (clause, value) = match self {
            Self::Allowed(found) => found.first_evidence(),
            Self::Denied(found) | Self::Ask(found) | Self::UnknownProvider(found) => found.first_evidence(),
            Self::NotAllowed(tried) => (tried.tried.first().and_then(|nearest| nearest.clause.clone()), None),
            Self::NoAllowPolicy | Self::Incomplete(_) | Self::NotThroughWaypoint(_) | Self::MtlsRequired { .. } => {
                (None, None)
            }
        };
        let policy = self.policy().map(ToString::to_string);
        Explanation { policy, rule: self.rule(), clause, value, message: self.to_string() }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.explanation().serialize(serializer)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAllowPolicy => f.write_str("no ALLOW policy applies to the workload"),
            Self::Incomplete(why) => write!(f, "policies may be missing: {why}"),
            Self::Allowed(found) => write!(f, "allowed by AuthorizationPolicy {found}"),
            Self::Denied(found) => write!(f, "denied by AuthorizationPolicy {found}"),
            Self::Ask(found) => {
                write!(f, "for provider {:?} to decide, by AuthorizationPolicy {found}", found.policy.provider)
            }
            Self::UnknownProvider(found) => write!(
                f,
                "denied by AuthorizationPolicy {found}; its provider {:?} is none of the mesh options' that authorize: add \
                 it to extensionProviders",
                found.policy.provider
            ),
            Self::NotAllowed(tried) => tried.fmt(f),
            Self::NotThroughWaypoint(missed) => missed.fmt(f),
            Self::MtlsRequired { object: Some(object), port } => {
                write!(f, "PeerAuthentication {object} requires mTLS on port {port}, and the call came in plaintext")
            }
            Self::MtlsRequired { object: None, port } => {
                write!(f, "mTLS is required on port {port}, and the call came in plaintext")
            }
        }
    }
}

impl RuleMatch {
    /// Explains why rule number `rule` of `policy` matches, which the caller has found to be so.
    pub(super) fn new(
        policy: Arc<AuthorizationPolicy>,
        rule: usize,
        facts: &Facts<'_>,
        unsupported: UnsupportedDeny,
    ) -> Self {
        let mut evidence = SmallVec::new();
        let action = policy.action;
        if let Some(Rule::Clauses(clauses)) = policy.rules.get(rule) {
            for (c, clause) in clauses.iter().enumerate() {
                let found = clause.alternatives.iter().enumerate().find(|(_, a)| a.matches(facts, action, unsupported));
                if let Some((a, alternative)) = found {
                    gather(&mut evidence, (c, a), alternative, facts);
                }
            }
        }
        Self { policy, rule, evidence }
    }

    /// Whether explaining took more than the inline space; never.
    #[cfg(test)]
    pub(super) fn spilled(&self) -> bool {
        self.evidence.spilled()
    }

    fn first_evidence(&self) -> (Option<String>, Option<String>) {
        match self.evidence.first().and_then(|evidence| self.resolve(*evidence)) {
            Some(found) => (Some(found.path()), found.value_text().map(str::to_owned)),
            None => (None, None),
        }
    }

    fn resolve(&self, evidence: Evidence) -> Option<Resolved<'_>> {
        let Rule::Clauses(clauses) = self.policy.rules.get(self.rule)? else { return None };
        let clause = clauses.get(usize::from(evidence.clause))?;
        let index = usize::from(evidence.alternative);
        let alternative = clause.alternatives.get(index)?;
        let condition = evidence.condition.and_then(|c| alternative.conditions.get(usize::from(c)));
        let unseen = if self.policy.is_for_nodes() { "L4 cannot see" } else { "cannot be seen here" };
        let value = evidence.value.map(usize::from);
        Some(Resolved { clause, index, alternative, condition, value, unseen })
    }
}

/// Adds the conditions of one alternative, as far as the inline space of `evidence` goes: explaining never allocates.
fn gather(
    evidence: &mut SmallVec<[Evidence; 4]>,
    (clause, alternative): (usize, usize),
    matched: &Alternative,
    facts: &Facts<'_>,
) {
    // Positions are bounded by what an object may hold; one beyond u16 only makes the explanation vaguer.
    let small = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let (clause, alternative) = (small(clause), small(alternative));
    if matched.conditions.is_empty() && evidence.len() < evidence.inline_size() {
        evidence.push(Evidence { clause, alternative, condition: None, value: None });
    }
    let mut decided = matched.conditions.iter().enumerate().filter(|(_, c)| c.is_shown(facts)).peekable();
    if decided.peek().is_none() && !matched.conditions.is_empty() && evidence.len() < evidence.inline_size() {
        evidence.push(Evidence { clause, alternative, condition: None, value: None });
    }
    for (i, condition) in decided {
        if evidence.len() == evidence.inline_size() {
            return;
        }
        let value = condition.matching_value(facts).map(small);
        evidence.push(Evidence { clause, alternative, condition: Some(small(i)), value });
    }
}

impl fmt::Display for RuleMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, rule {}", self.policy.name, self.rule)?;
        let mut separator = ": ";
        for found in self.evidence.iter().filter_map(|evidence| self.resolve(*evidence)) {
            write!(f, "{separator}{found}")?;
            separator = ", ";
        }
        if self.evidence.is_empty() {
            f.write_str(": matches everything")?;
        }
        Ok(())
    }
}

/// A piece of evidence with the text it points to.
struct Resolved<'a> {
    clause: &'a Clause,
    index: usize,
    alternative: &'a Alternative,
    condition: Option<&'a Condition>,
    value: Option<usize>,
    /// Why fields cannot be decided.
    unseen: &'static str,
}

impl Resolved<'_> {
    /// The field: `from[0].source.principals[1]`.
    fn path(&self) -> String {
        let field = match self.condition {
            Some(condition) => condition_path(self.clause, self.index, condition),
            None => alternative_path(self.clause, self.index),
        };
        match self.value {
            Some(value) => format!("{field}[{value}]"),
            None => field,
        }
    }

    fn value_text(&self) -> Option<&str> {
        self.condition?.written.get(self.value?).map(|text| &**text)
    }
}

impl fmt::Display for Resolved<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())?;
        match (self.condition, self.value_text()) {
            (Some(condition), Some(text)) if condition.unreadable.is_some() => {
                write!(f, " = {text:?} cannot be read, and is taken to match")
            }
            (Some(condition), Some(text)) => write!(f, " = {text:?} ({})", condition.attribute.key()),
            (Some(_), None) => f.write_str(" names none that match"),
            (None, _) => {
                let unseen = self.alternative.conditions.iter().map(|c| Cow::Borrowed(c.field(self.clause.kind)));
                let names = self.alternative.unsupported.iter().map(|name| Cow::Borrowed(&**name)).chain(unseen);
                let names = names.collect::<Vec<_>>().join(", ");
                write!(f, " has only fields that {} ({names}), and matches", self.unseen)
            }
        }
    }
}

fn alternative_path(clause: &Clause, index: usize) -> String {
    match clause.kind {
        super::ClauseKind::When(_) => clause.kind.to_string(),
        kind => format!("{kind}[{index}]"),
    }
}

fn condition_path(clause: &Clause, index: usize, condition: &Condition) -> String {
    format!("{}.{}", alternative_path(clause, index), condition.field(clause.kind))
}

impl NotAllowed {
    pub(super) fn new<'a>(policies: impl Iterator<Item = &'a Arc<AuthorizationPolicy>>, facts: &Facts<'_>) -> Self {
        let mut nearest: Vec<(usize, &AuthorizationPolicy, Option<usize>)> = Vec::new();
        let mut count = 0;
        for policy in policies {
            count += 1;
            // One rule a policy, its nearest: several policies say more than several rules of one.
            let rules =
                policy.rules.iter().enumerate().map(|(i, rule)| (passed(rule, facts), policy.as_ref(), Some(i)));
            let best = rules.reduce(|best, next| if next.0 > best.0 { next } else { best });
            nearest.push(best.unwrap_or((0, policy, None)));
            nearest.sort_by_key(|(passed, _, _)| std::cmp::Reverse(*passed));
            nearest.truncate(MAX_TRIED);
        }
        let tried = nearest.into_iter().map(|(passed, policy, rule)| Tried::new(policy, rule, passed, facts)).collect();
        Self { tried, policies: count }
    }
}

/// How many clauses match before the first that does not.
fn passed(rule: &Rule, facts: &Facts<'_>) -> usize {
    match rule {
        Rule::Never(_) => 0,
        Rule::Clauses(clauses) => clauses.iter().take_while(|clause| clause_matches(clause, facts)).count(),
    }
}

fn clause_matches(clause: &Clause, facts: &Facts<'_>) -> bool {
    clause.alternatives.iter().any(|a| a.matches(facts, Action::Allow, UnsupportedDeny::Deny))
}

impl fmt::Display for NotAllowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ALLOW policies apply, and none of them matches: ")?;
        for (i, tried) in self.tried.iter().enumerate() {
            write!(f, "{}{tried}", if i == 0 { "" } else { "; " })?;
        }
        match self.policies.saturating_sub(self.tried.len()) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Tried {
    fn new(policy: &AuthorizationPolicy, rule: Option<usize>, passed: usize, facts: &Facts<'_>) -> Self {
        let (clause, why) = match rule.and_then(|rule| policy.rules.get(rule)) {
            None => (None, "has no rules".to_owned()),
            Some(Rule::Never(why)) => (None, why.to_string()),
            Some(Rule::Clauses(clauses)) => match clauses.get(passed) {
                Some(clause) => failure(clause, facts),
                None => (None, "does not match".to_owned()),
            },
        };
        Self { policy: policy.name.clone(), rule, clause, why, passed }
    }

    /// How many clauses of the rule matched before the one that failed.
    pub fn clauses_passed(&self) -> usize {
        self.passed
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.policy)?;
        if let Some(rule) = self.rule {
            write!(f, ", rule {rule}")?;
        }
        match &self.clause {
            Some(clause) => write!(f, ": {clause} {}", self.why),
            None => write!(f, ": {}", self.why),
        }
    }
}

/// The condition that failed in the alternative that came nearest.
fn failure(clause: &Clause, facts: &Facts<'_>) -> (Option<String>, String) {
    let held = |alternative: &Alternative| alternative.conditions.iter().filter(|c| c.holds(facts)).count();
    let nearest = clause.alternatives.iter().enumerate().reduce(
        |best, next| {
            if held(next.1) > held(best.1) { next } else { best }
        },
    );
    let Some((index, alternative)) = nearest else {
        return (Some(clause.kind.to_string()), "is empty".to_owned());
    };
    match alternative.conditions.iter().find(|condition| !condition.holds(facts)) {
        None => (Some(alternative_path(clause, index)), "is empty, and never matches".to_owned()),
        Some(condition) => {
            let actual = facts.describe(&condition.attribute);
            let why = match condition.negated {
                _ if condition.unreadable.is_some() => "holds a value that cannot be read".to_owned(),
                true => format!("excludes {actual}"),
                false => format!("does not include {actual}"),
            };
            (Some(condition_path(clause, index, condition)), why)
        }
    }
}
