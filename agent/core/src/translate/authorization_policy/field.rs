//! One list of values.

use super::Report;
use crate::policy::{
    Action, Attribute, Condition, Networks, Ports, Principals, ServiceAccounts, Strings, has_inner_wildcard,
};

/// The most `serviceAccounts` of a source, and the most characters of each, by Istio's CRD.
const MAX_SERVICE_ACCOUNTS: (usize, usize) = (16, 320);

/// What the values of a list stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FieldKind {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    DestinationIp,
    DestinationPort,
}

impl FieldKind {
    /// What `when.key` names, of what L4 can see.
    pub(super) fn of_key(key: &str) -> Option<Self> {
        Some(match key {
            "source.principal" => Self::Principal,
            "source.namespace" => Self::Namespace,
            "source.serviceAccount" => Self::ServiceAccount,
            "source.trustDomain" => Self::TrustDomain,
            "source.ip" => Self::SourceIp,
            "destination.ip" => Self::DestinationIp,
            "destination.port" => Self::DestinationPort,
            _ => return None,
        })
    }
}

/// How a value can be taken.
enum Value<'v> {
    /// As it is written.
    Good(&'v str),
    /// It is wrong, but this is what was meant, at most.
    Meant(&'v str, &'static str),
    /// It is wrong.
    Unreadable(&'static str),
}

/// Reads a list that is not empty.
///
/// A value that is wrong is reported, and then weakens nothing: in DENY a positive list takes it for what was meant,
/// or for everything, and a `not…` list drops it; in ALLOW a positive list drops it, and a `not…` list fails.
pub(super) fn read(
    path: &str,
    kind: FieldKind,
    negated: bool,
    values: &[String],
    namespace: &str,
    action: Action,
    report: &mut Report<'_>,
) -> Condition {
    let denies = action == Action::Deny;
    let mut usable = Vec::with_capacity(values.len());
    let mut unreadable = None;
    for (index, written) in values.iter().enumerate() {
        let (meant, problem) = match examine(kind, index, written) {
            Value::Good(text) => {
                usable.push((index, text));
                continue;
            }
            Value::Meant(text, problem) => (Some(text), problem),
            Value::Unreadable(problem) => (None, problem),
        };
        let outcome = match (denies, negated, meant) {
            (true, false, Some(text)) => {
                usable.push((index, text));
                "here it denies what it seems to mean"
            }
            (true, false, None) => "here it matches everything",
            (false, true, _) => "the field never holds",
            (true, true, _) | (false, false, _) => "it matches nothing",
        };
        if (denies && !negated && meant.is_none()) || (!denies && negated) {
            unreadable.get_or_insert(index);
        }
        let shown: String = written.chars().take(100).collect();
        report.error(format!("{path}[{index}]"), format!("{shown:?} {problem}: {outcome}"));
    }
    let attribute = attribute(kind, &usable, namespace);
    Condition { attribute, negated, unreadable, written: values.iter().map(|value| value.as_str().into()).collect() }
}

fn attribute(kind: FieldKind, values: &[(usize, &str)], namespace: &str) -> Attribute {
    let networks = || Networks::new(values.iter().filter_map(|(i, text)| Some((*i, Networks::parse(text)?))));
    match kind {
        FieldKind::Principal => Attribute::SourcePrincipal(Principals::new(values.iter().copied())),
        FieldKind::Namespace => Attribute::SourceNamespace(Strings::new(values.iter().copied())),
        FieldKind::TrustDomain => Attribute::SourceTrustDomain(Strings::new(values.iter().copied())),
        FieldKind::ServiceAccount => {
            let accounts = values.iter().map(|&(i, text)| {
                let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
                (i, namespace, name)
            });
            Attribute::SourceServiceAccount(ServiceAccounts::new(accounts))
        }
        FieldKind::SourceIp => Attribute::SourceIp(networks()),
        FieldKind::DestinationIp => Attribute::DestinationIp(networks()),
        FieldKind::DestinationPort => {
            let ports = values.iter().filter_map(|(i, text)| Some((*i, text.parse().ok()?)));
            Attribute::DestinationPort(Ports::new(ports))
        }
    }
}

fn examine(kind: FieldKind, index: usize, text: &str) -> Value<'_> {
    if text.is_empty() {
        return Value::Unreadable("is empty");
    }
    match kind {
        FieldKind::Principal => principal(text),
        FieldKind::Namespace => name(text, "cannot be a namespace"),
        FieldKind::TrustDomain => match text.strip_prefix("spiffe://") {
            Some(rest) => match name(rest, "") {
                Value::Unreadable(_) => Value::Unreadable("is not a trust domain"),
                _ => Value::Meant(rest, "must be written without spiffe://"),
            },
            None => name(text, "is not a trust domain"),
        },
        FieldKind::ServiceAccount => service_account(index, text),
        FieldKind::SourceIp | FieldKind::DestinationIp => match Networks::parse(text) {
            Some(_) => Value::Good(text),
            None => Value::Unreadable("is neither an IP address nor a CIDR"),
        },
        FieldKind::DestinationPort => {
            let port = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok()).flatten();
            match port {
                Some(1..) => Value::Good(text),
                _ => Value::Unreadable("is not a port from 1 to 65535"),
            }
        }
    }
}

fn principal(text: &str) -> Value<'_> {
    const SHAPE: &str = "is not of the form TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT";
    let (bare, problem) = match text.strip_prefix("spiffe://") {
        Some(rest) => (rest, Some("must be written without spiffe://")),
        None if text.starts_with("*spiffe://") => return Value::Unreadable(SHAPE),
        None => (text, None),
    };
    if bare.is_empty()
        || (!bare.contains('*') && format!("spiffe://{bare}").parse::<crate::identity::Identity>().is_err())
    {
        return Value::Unreadable(SHAPE);
    }
    match problem {
        Some(problem) => Value::Meant(bare, problem),
        None => inner_wildcard_or(bare),
    }
}

/// A namespace, or a trust domain: labels and dots.
fn name<'v>(text: &'v str, problem: &'static str) -> Value<'v> {
    let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'*');
    if text.is_empty() || !text.bytes().all(known) {
        return Value::Unreadable(problem);
    }
    inner_wildcard_or(text)
}

fn inner_wildcard_or(text: &str) -> Value<'_> {
    if has_inner_wildcard(text) {
        Value::Meant(text, "may have a * only at its start or at its end")
    } else {
        Value::Good(text)
    }
}

fn service_account(index: usize, text: &str) -> Value<'_> {
    let (most, longest) = MAX_SERVICE_ACCOUNTS;
    let name =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'));
    let readable = match text.split_once('/') {
        Some((namespace, account)) => name(namespace) && name(account),
        None => name(text),
    };
    match readable && text.len() <= longest {
        false => Value::Unreadable("is neither NAMESPACE/ACCOUNT nor ACCOUNT (wildcards are not supported)"),
        true if index >= most => Value::Meant(text, "is one too many: at most 16 are allowed"),
        true => Value::Good(text),
    }
}
