//! One list of values.

use crate::policy::{
    Action, Attribute, ClaimPath, Condition, Networks, PathTemplate, Paths, Ports, Principals, RequestAttribute,
    ServiceAccounts, Strings, has_inner_wildcard,
};
use crate::translate::Findings;

/// The most `serviceAccounts` of a source, and the most characters of each, by Istio's CRD.
const MAX_SERVICE_ACCOUNTS: (usize, usize) = (16, 320);

/// What the values of a list stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FieldKind {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    DestinationIp,
    DestinationPort,
    /// [`Self::Namespace`] at a waypoint, where each `*` is a wildcard.
    NamespaceGlob,
    Host,
    Method,
    Path,
    RequestPrincipal,
    Audience,
    Presenter,
    Claim(ClaimPath),
    Header(Box<str>),
    RemoteIp,
    Sni,
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

    /// What `when.key` names, of what a waypoint can see.
    pub(super) fn of_waypoint_key(key: &str) -> Option<Self> {
        if let Some(name) = key.strip_prefix("request.headers[").and_then(|rest| rest.strip_suffix(']')) {
            let name = name.to_ascii_lowercase();
            let known =
                matches!(&*name, ":authority" | ":method") || http::HeaderName::from_bytes(name.as_bytes()).is_ok();
            return known.then(|| Self::Header(name.into()));
        }
        if let Some(path) = key.strip_prefix("request.auth.claims") {
            return ClaimPath::parse(path).map(Self::Claim);
        }
        Some(match key {
            "request.auth.principal" => Self::RequestPrincipal,
            "request.auth.audiences" => Self::Audience,
            "request.auth.presenter" => Self::Presenter,
            "remote.ip" => Self::RemoteIp,
            "connection.sni" => Self::Sni,
            "source.namespace" => Self::NamespaceGlob,
            _ => return Self::of_key(key),
        })
    }

    /// Whether only a token says it.
    pub(super) fn is_of_token(&self) -> bool {
        matches!(self, Self::RequestPrincipal | Self::Audience | Self::Presenter | Self::Claim(_))
    }
}

/// How a value can be taken.
enum Value<'v> {
    /// As it is written.
    Good(&'v str),
    /// As it is written, though it may not do what its author thinks.
    Odd(&'v str, &'static str),
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
    kind: &FieldKind,
    negated: bool,
    values: &[String],
    namespace: &str,
    action: Action,
    report: &mut Findings<'_>,
) -> Condition {
    let denies = action.restricts();
    let mut usable = Vec::with_capacity(values.len());
    let mut unreadable = None;
    for (index, written) in values.iter().enumerate() {
        let (meant, problem) = match examine(kind, index, written) {
            Value::Good(text) => {
                usable.push((index, text));
                continue;
            }
            Value::Odd(text, problem) => {
                usable.push((index, text));
                report.warning(format!("{path}[{index}]"), format!("{:?} {problem}", shorten(written)));
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
        report.error(format!("{path}[{index}]"), format!("{:?} {problem}: {outcome}", shorten(written)));
    }
    // Where a match takes away, what may be meant matches too.
    let attribute = attribute(kind, &usable, namespace, denies != negated);
    Condition { attribute, negated, unreadable, written: values.iter().map(|value| value.as_str().into()).collect() }
}

fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

fn attribute(kind: &FieldKind, values: &[(usize, &str)], namespace: &str, broad: bool) -> Attribute {
    let request = |attribute| Attribute::Request(Box::new(attribute));
    let plain = || Strings::plain(values.iter().copied());
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
        FieldKind::NamespaceGlob => Attribute::SourceNamespace(Strings::globs(values.iter().copied())),
        FieldKind::Host => {
            let lower: Vec<(usize, String)> = values.iter().map(|(i, text)| (*i, text.to_ascii_lowercase())).collect();
            let values = Strings::plain(lower.iter().map(|(i, text)| (*i, text.as_str())));
            request(RequestAttribute::Host { values, without_port: broad })
        }
        FieldKind::Method => request(RequestAttribute::Method(plain())),
        FieldKind::Path => {
            let (templates, others): (Vec<_>, Vec<_>) =
                values.iter().copied().partition(|(_, text)| PathTemplate::is_one(text));
            let templates = templates.into_iter().filter_map(|(i, text)| Some((PathTemplate::parse(text).ok()?, i)));
            let plain = Strings::plain(others);
            request(RequestAttribute::Path(Paths { plain, templates: templates.collect() }))
        }
        FieldKind::RequestPrincipal => request(RequestAttribute::Principal(plain())),
        FieldKind::Audience => request(RequestAttribute::Audience(plain())),
        FieldKind::Presenter => request(RequestAttribute::Presenter(plain())),
        FieldKind::Claim(path) => {
            request(RequestAttribute::Claim { path: path.clone(), values: plain(), scalars: broad })
        }
        FieldKind::Header(name) => request(RequestAttribute::Header { name: name.clone(), values: plain() }),
        FieldKind::RemoteIp => request(RequestAttribute::RemoteIp(networks())),
        FieldKind::Sni => request(RequestAttribute::Sni(plain())),
    }
}

fn examine<'v>(kind: &FieldKind, index: usize, text: &'v str) -> Value<'v> {
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
        FieldKind::SourceIp | FieldKind::DestinationIp | FieldKind::RemoteIp => match Networks::parse(text) {
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
        FieldKind::NamespaceGlob => match name(text, "cannot be a namespace") {
            Value::Meant(text, _) => Value::Good(text),
            other => other,
        },
        FieldKind::Host => host(text),
        FieldKind::Method => match text.bytes().any(|b| b.is_ascii_lowercase()) {
            true => Value::Odd(text, "is not a method that clients send: methods are in upper case"),
            false => plain(text),
        },
        FieldKind::Path => path(text),
        FieldKind::RequestPrincipal
        | FieldKind::Audience
        | FieldKind::Presenter
        | FieldKind::Claim(_)
        | FieldKind::Header(_)
        | FieldKind::Sni => plain(text),
    }
}

fn host(text: &str) -> Value<'_> {
    if text.contains("://") || text.contains('/') {
        return Value::Odd(text, "never matches: a host has neither scheme nor path");
    }
    plain(text)
}

fn path(text: &str) -> Value<'_> {
    if PathTemplate::is_one(text) {
        return match PathTemplate::parse(text) {
            Ok(_) => Value::Good(text),
            Err(problem) => Value::Unreadable(problem),
        };
    }
    match () {
        () if !text.starts_with(['/', '*']) => Value::Odd(text, "never matches: a path starts with /"),
        () if text.contains('?') => Value::Odd(text, "never matches: the query is not part of the path"),
        () => plain(text),
    }
}

/// A string of requests, where a `*` that is neither first nor last is itself.
fn plain(text: &str) -> Value<'_> {
    let inner = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
    match inner.contains('*') && inner.len() == text.len() {
        true => Value::Odd(text, "has a * that is neither first nor last, which stands for itself"),
        false => Value::Good(text),
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
