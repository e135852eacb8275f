//! The parts of a policy: rule, clause, alternative, condition.

use std::borrow::Cow;
use std::fmt;

use super::matcher::{Caller, Facts, Networks, Ports, Principals, ServiceAccounts, Strings};
use super::request::RequestAttribute;
use super::{Action, UnsupportedDeny};

/// One entry of `spec.rules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Cannot match, for the reason given: an ALLOW rule with what cannot be seen or read.
    Never(Box<str>),
    /// Matches if every clause does; without clauses, always.
    Clauses(Box<[Clause]>),
}

/// `from`, `to`, or one entry of `when`: matches if one of its alternatives does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Which.
    pub kind: ClauseKind,
    /// The entries, in the object's order; a `when` entry has exactly one.
    pub alternatives: Box<[Alternative]>,
}

/// Which part of the rule a clause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClauseKind {
    /// `from`
    From,
    /// `to`
    To,
    /// `when[i]`
    When(usize),
}

/// One `source`, `operation` or `when` entry: matches if every condition holds.
///
/// Without conditions that can be decided it never matches, except in a rule that restricts and holds other fields: see
/// [`UnsupportedDeny`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alternative {
    /// What can be decided: at L4, or for a policy with targets by a waypoint.
    pub conditions: Box<[Condition]>,
    /// The names of the fields that cannot; only rules that restrict have any.
    pub unsupported: Box<[Box<str>]>,
}

/// One field with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What is compared, and with what.
    pub attribute: Attribute,
    /// Whether this is a `not…` field: holds if no value matches.
    pub negated: bool,
    /// The position of a value that could not be read and is taken to match whatever comes.
    pub unreadable: Option<usize>,
    /// The values as they were written.
    pub written: Box<[Box<str>]>,
}

/// What a condition compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// `principals`, `source.principal`
    SourcePrincipal(Principals),
    /// `namespaces`, `source.namespace`
    SourceNamespace(Strings),
    /// `serviceAccounts`, `source.serviceAccount`
    SourceServiceAccount(ServiceAccounts),
    /// `trustDomains`, `source.trustDomain`
    SourceTrustDomain(Strings),
    /// `ipBlocks`, `source.ip`
    SourceIp(Networks),
    /// `destination.ip`
    DestinationIp(Networks),
    /// `ports`, `destination.port`
    DestinationPort(Ports),
    /// What only a waypoint sees; only policies with targets have any.
    Request(Box<RequestAttribute>),
}

impl Rule {
    pub(super) fn matches(&self, facts: &Facts<'_>, action: Action, unsupported: UnsupportedDeny) -> bool {
        match self {
            Self::Never(_) => false,
            Self::Clauses(clauses) => {
                clauses.iter().all(|clause| clause.alternatives.iter().any(|a| a.matches(facts, action, unsupported)))
            }
        }
    }
}

impl Alternative {
    pub(super) fn matches(&self, facts: &Facts<'_>, action: Action, unsupported: UnsupportedDeny) -> bool {
        let mut decided = false;
        for condition in &self.conditions {
            match condition.judge(facts) {
                Some(false) => return false,
                Some(true) => decided = true,
                None if !action.restricts() => return false,
                None => {}
            }
        }
        let holds_others = self.unsupported.len() + self.conditions.len() > 0;
        decided || (action.restricts() && unsupported == UnsupportedDeny::Deny && holds_others)
    }
}

impl Condition {
    pub(super) fn holds(&self, facts: &Facts<'_>) -> bool {
        self.judge(facts) == Some(true)
    }

    /// Whether it holds; `None` if nothing of the call shows: a connection has no path.
    pub(super) fn judge(&self, facts: &Facts<'_>) -> Option<bool> {
        self.is_shown(facts).then(|| self.matching_value(facts).is_some() != self.negated)
    }

    /// Whether anything of the call shows whether it holds.
    pub(super) fn is_shown(&self, facts: &Facts<'_>) -> bool {
        match &self.attribute {
            Attribute::Request(attribute) => self.unreadable.is_some() || attribute.is_shown_by(facts.request),
            _ => true,
        }
    }

    /// The position of the first value found to match.
    pub(super) fn matching_value(&self, facts: &Facts<'_>) -> Option<usize> {
        let others = facts.other.iter().filter(|_| self.negated);
        let by_caller = |find: &dyn Fn(&Caller<'_>) -> Option<usize>| facts.caller.iter().chain(others).find_map(find);
        self.unreadable.or_else(|| match &self.attribute {
            Attribute::SourcePrincipal(values) => by_caller(&|caller| values.find(caller)),
            Attribute::SourceNamespace(values) => by_caller(&|caller| values.find(&caller.identity.namespace)),
            Attribute::SourceServiceAccount(values) => by_caller(&|caller| values.find(caller.identity)),
            Attribute::SourceTrustDomain(values) => by_caller(&|caller| values.find(&caller.identity.trust_domain)),
            Attribute::SourceIp(values) => values.find(facts.source_ip),
            Attribute::DestinationIp(values) => values.find(facts.destination_ip),
            Attribute::DestinationPort(values) => values.find(facts.destination_port),
            Attribute::Request(attribute) => attribute.find(facts.request?),
        })
    }

    /// The field's name below `kind`: `source.notPrincipals`, `operation.ports`, `values`.
    pub fn field(&self, kind: ClauseKind) -> &'static str {
        let pair = match (kind, &self.attribute) {
            (ClauseKind::When(_), _) => ("values", "notValues"),
            (_, Attribute::SourcePrincipal(_)) => ("source.principals", "source.notPrincipals"),
            (_, Attribute::SourceNamespace(_)) => ("source.namespaces", "source.notNamespaces"),
            (_, Attribute::SourceServiceAccount(_)) => ("source.serviceAccounts", "source.notServiceAccounts"),
            (_, Attribute::SourceTrustDomain(_)) => ("source.trustDomains", "source.notTrustDomains"),
            (_, Attribute::SourceIp(_)) => ("source.ipBlocks", "source.notIpBlocks"),
            (_, Attribute::DestinationIp(_)) => ("operation.ips", "operation.notIps"),
            (_, Attribute::DestinationPort(_)) => ("operation.ports", "operation.notPorts"),
            (_, Attribute::Request(attribute)) => attribute.fields(),
        };
        if self.negated { pair.1 } else { pair.0 }
    }
}

impl Attribute {
    /// The attribute by the name that `when` uses for it.
    pub fn key(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::SourcePrincipal(_) => "source.principal",
            Self::SourceNamespace(_) => "source.namespace",
            Self::SourceServiceAccount(_) => "source.serviceAccount",
            Self::SourceTrustDomain(_) => "source.trustDomain",
            Self::SourceIp(_) => "source.ip",
            Self::DestinationIp(_) => "destination.ip",
            Self::DestinationPort(_) => "destination.port",
            Self::Request(attribute) => return attribute.key(),
        })
    }
}

impl fmt::Display for ClauseKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From => f.write_str("from"),
            Self::To => f.write_str("to"),
            Self::When(index) => write!(f, "when[{index}]"),
        }
    }
}
