//! How values are compared with a call. Every set answers with the position of the value that matched, so that a
//! decision can name it.
//!
//! Exact values are kept sorted and searched by halving: a policy with hundreds of rules of fifty principals each is
//! decided in microseconds.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use smallvec::SmallVec;

use super::Call;
use super::evaluate::Settings;
use super::request::RequestFacts;
use super::rule::Attribute;
use crate::address::canonical_ip;
use crate::identity::{DEFAULT_TRUST_DOMAIN, Identity};

/// A call, laid out for comparison.
pub(super) struct Facts<'a> {
    /// By whom rules may match it; `None` in plaintext.
    pub(super) caller: Option<Caller<'a>>,
    /// Who else has a part in it, where a waypoint calls on behalf of a client: a `not…` field fails if it names
    /// either of them.
    pub(super) other: Option<Caller<'a>>,
    /// What the waypoint saw; `None` at L4.
    pub(super) request: Option<&'a RequestFacts<'a>>,
    pub(super) source_ip: IpAddr,
    pub(super) destination_ip: IpAddr,
    pub(super) destination_port: u16,
}

/// Someone by whom a call may be matched.
pub(super) struct Caller<'a> {
    pub(super) identity: &'a Identity,
    /// `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`; on the stack for every name that Kubernetes accepts.
    path: SmallVec<[u8; 384]>,
    /// Whether the caller's trust domain is the mesh's, or an alias of it.
    local: bool,
    settings: Settings<'a>,
}

impl<'a> Caller<'a> {
    fn new(identity: &'a Identity, settings: Settings<'a>) -> Self {
        let mut path = SmallVec::new();
        for part in ["/ns/", &identity.namespace, "/sa/", &identity.service_account] {
            path.extend_from_slice(part.as_bytes());
        }
        Self { identity, path, local: settings.is_local(&identity.trust_domain), settings }
    }

    /// The trust domains by which a policy may name the caller.
    fn trust_domains(&self) -> impl Iterator<Item = &str> {
        let others = self.local.then(|| self.settings.local_names()).into_iter().flatten();
        std::iter::once(&*self.identity.trust_domain).chain(others)
    }
}

impl<'a> Facts<'a> {
    pub(super) fn new(call: &Call<'a>, settings: Settings<'a>) -> Self {
        Self {
            caller: call.principal.map(|identity| Caller::new(identity, settings)),
            other: None,
            request: None,
            source_ip: canonical_ip(call.source_ip),
            destination_ip: canonical_ip(call.destination.ip()),
            destination_port: call.destination.port(),
        }
    }

    /// The facts of a call that the caller makes on behalf of `client`: each as the one by whom rules may match it.
    ///
    /// A rule matches by one of them, never by the account of the one and the namespace of the other.
    pub(super) fn of_each(
        call: &Call<'a>,
        client: Option<&'a Identity>,
        settings: Settings<'a>,
    ) -> SmallVec<[Facts<'a>; 2]> {
        let own = Self::new(call, settings);
        let Some((peer, client)) = call.principal.zip(client) else { return SmallVec::from_iter([own]) };
        let caller = |identity| Some(Caller::new(identity, settings));
        let by_client = Self { caller: caller(client), other: caller(peer), ..Self::new(call, settings) };
        SmallVec::from_iter([Self { other: caller(client), ..own }, by_client])
    }

    /// The facts of what arrived at a waypoint.
    pub(super) fn of_request(request: &'a RequestFacts<'a>, settings: Settings<'a>) -> Self {
        Self { request: Some(request), ..Self::new(&request.call, settings) }
    }

    /// What the call has for `attribute`, for people.
    pub(super) fn describe(&self, attribute: &Attribute) -> String {
        let caller = match (attribute, &self.caller) {
            (Attribute::Request(attribute), _) => return attribute.describe(self.request),
            (Attribute::SourceIp(_), _) => return self.source_ip.to_string(),
            (Attribute::DestinationIp(_), _) => return self.destination_ip.to_string(),
            (Attribute::DestinationPort(_), _) => return self.destination_port.to_string(),
            (_, None) => return "a caller without an identity (plaintext)".to_owned(),
            (_, Some(caller)) => caller,
        };
        let name = |id: &Identity| match attribute {
            Attribute::SourceNamespace(_) => id.namespace.to_string(),
            Attribute::SourceServiceAccount(_) => format!("{}/{}", id.namespace, id.service_account),
            Attribute::SourceTrustDomain(_) => id.trust_domain.to_string(),
            _ => id.principal(),
        };
        match &self.other {
            Some(other) => format!("{} or {}", name(caller.identity), name(other.identity)),
            None => name(caller.identity),
        }
    }
}

impl<'a> Settings<'a> {
    fn is_local(&self, trust_domain: &str) -> bool {
        trust_domain == self.trust_domain || self.aliases.iter().any(|alias| **alias == *trust_domain)
    }

    /// What policies may write for the mesh's own trust domain. `cluster.local` always means the local one.
    fn local_names(&self) -> impl Iterator<Item = &'a str> {
        [self.trust_domain, DEFAULT_TRUST_DOMAIN].into_iter().chain(self.aliases.iter().map(|alias| &**alias))
    }
}

/// A value with a wildcard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `*`: anything but empty.
    Present,
    /// `text*`
    Prefix(Box<str>),
    /// `*text`
    Suffix(Box<str>),
    /// Starts with the one and ends with the other: what a `*` in the middle can at most mean.
    Around(Box<str>, Box<str>),
    /// These, in this order, and anything between: `a*b*c`.
    Glob(Box<[Box<str>]>),
}

impl Pattern {
    /// Whether `head` followed by `tail` matches.
    fn matches(&self, head: &[u8], tail: &[u8]) -> bool {
        match self {
            Self::Present => !(head.is_empty() && tail.is_empty()),
            Self::Prefix(prefix) => starts_with(head, tail, prefix.as_bytes()),
            Self::Suffix(suffix) => ends_with(head, tail, suffix.as_bytes()),
            Self::Around(prefix, suffix) => {
                starts_with(head, tail, prefix.as_bytes()) && ends_with(head, tail, suffix.as_bytes())
            }
            Self::Glob(pieces) if tail.is_empty() => glob(pieces, head),
            Self::Glob(pieces) => glob(pieces, &[head, tail].concat()),
        }
    }
}

/// Whether `text` is the first piece, the last piece, and the others between them in their order: taking each as early
/// as it comes finds a match if there is one.
fn glob(pieces: &[Box<str>], text: &[u8]) -> bool {
    let [first, between @ .., last] = pieces else {
        return pieces.first().is_some_and(|only| only.as_bytes() == text);
    };
    let Some(mut rest) = text.strip_prefix(first.as_bytes()) else { return false };
    for piece in between.iter().filter(|piece| !piece.is_empty()) {
        match rest.windows(piece.len()).position(|window| window == piece.as_bytes()) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last.as_bytes())
}

fn starts_with(head: &[u8], tail: &[u8], prefix: &[u8]) -> bool {
    match prefix.get(head.len()..) {
        Some(rest) => prefix.starts_with(head) && tail.starts_with(rest),
        None => head.starts_with(prefix),
    }
}

fn ends_with(head: &[u8], tail: &[u8], suffix: &[u8]) -> bool {
    match suffix.len().checked_sub(tail.len()) {
        Some(split) => suffix.ends_with(tail) && head.ends_with(&suffix[..split]),
        None => tail.ends_with(suffix),
    }
}

/// A value, read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Text<'v> {
    Exact(&'v str),
    Pattern(Pattern),
}

impl<'v> Text<'v> {
    fn parse(value: &'v str) -> Self {
        if value == "*" {
            return Self::Pattern(Pattern::Present);
        }
        match (value.find('*'), value.rfind('*')) {
            (Some(first), Some(last)) if first == last && last + 1 == value.len() => {
                Self::Pattern(Pattern::Prefix(value[..first].into()))
            }
            (Some(0), Some(0)) => Self::Pattern(Pattern::Suffix(value[1..].into())),
            (Some(first), Some(last)) => {
                Self::Pattern(Pattern::Around(value[..first].into(), value[last + 1..].into()))
            }
            _ => Self::Exact(value),
        }
    }
}

impl<'v> Text<'v> {
    /// As Istio reads strings of requests: a `*` at the start or else at the end is a wildcard, any other is itself.
    fn parse_plain(value: &'v str) -> Self {
        match (value.strip_prefix('*'), value.strip_suffix('*')) {
            (Some(""), _) => Self::Pattern(Pattern::Present),
            (Some(suffix), _) => Self::Pattern(Pattern::Suffix(suffix.into())),
            (None, Some(prefix)) => Self::Pattern(Pattern::Prefix(prefix.into())),
            (None, None) => Self::Exact(value),
        }
    }

    /// Every `*` is a wildcard.
    fn parse_glob(value: &'v str) -> Self {
        match Self::parse(value) {
            Self::Pattern(Pattern::Around(..)) => {
                Self::Pattern(Pattern::Glob(value.split('*').map(Box::from).collect()))
            }
            text => text,
        }
    }
}

/// Whether `value` has a `*` anywhere but at its start or its end, or more than one.
pub(crate) fn has_inner_wildcard(value: &str) -> bool {
    matches!(Text::parse(value), Text::Pattern(Pattern::Around(..)))
}

/// Plain strings: namespaces, trust domains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    exact: Box<[(Box<str>, usize)]>,
    patterns: Box<[(Pattern, usize)]>,
}

impl Strings {
    /// From values with their positions in the object.
    pub fn new<'v>(values: impl IntoIterator<Item = (usize, &'v str)>) -> Self {
        Self::of(values.into_iter().map(|(index, value)| (index, Text::parse(value))))
    }

    /// As [`Self::new`], where a `*` that is neither first nor last stands for itself: strings of requests.
    pub fn plain<'v>(values: impl IntoIterator<Item = (usize, &'v str)>) -> Self {
        Self::of(values.into_iter().map(|(index, value)| (index, Text::parse_plain(value))))
    }

    /// As [`Self::new`], where each `*` stands for anything: namespaces, at waypoints.
    pub fn globs<'v>(values: impl IntoIterator<Item = (usize, &'v str)>) -> Self {
        Self::of(values.into_iter().map(|(index, value)| (index, Text::parse_glob(value))))
    }

    fn of<'v>(values: impl IntoIterator<Item = (usize, Text<'v>)>) -> Self {
        let (mut exact, mut patterns) = (Vec::new(), Vec::new());
        for (index, value) in values {
            match value {
                Text::Exact(text) => exact.push((Box::from(text), index)),
                Text::Pattern(pattern) => patterns.push((pattern, index)),
            }
        }
        exact.sort();
        Self { exact: exact.into(), patterns: patterns.into() }
    }

    pub(super) fn find(&self, text: &str) -> Option<usize> {
        let exact = self.exact.binary_search_by(|(value, _)| (**value).cmp(text)).ok().map(|i| self.exact[i].1);
        let pattern = || self.patterns.iter().find(|(p, _)| p.matches(text.as_bytes(), b"")).map(|(_, i)| *i);
        exact.or_else(pattern)
    }

    /// As [`Self::find`] for bytes that may be no text.
    pub(super) fn find_bytes(&self, bytes: &[u8]) -> Option<usize> {
        let exact = self.exact.binary_search_by(|(value, _)| value.as_bytes().cmp(bytes)).ok().map(|i| self.exact[i].1);
        exact.or_else(|| self.patterns.iter().find(|(p, _)| p.matches(bytes, b"")).map(|(_, i)| *i))
    }

    /// The position of a `*`, which asks that there be something.
    pub(super) fn presence(&self) -> Option<usize> {
        self.patterns.iter().find(|(pattern, _)| *pattern == Pattern::Present).map(|(_, index)| *index)
    }
}

/// Principals: `TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`, compared under every trust domain the caller is known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Principals {
    /// Sorted by what follows the trust domain.
    exact: Box<[ExactPrincipal]>,
    patterns: Box<[(Pattern, usize)]>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ExactPrincipal {
    path: Box<str>,
    trust_domain: Box<str>,
    index: usize,
}

impl Principals {
    /// From values with their positions in the object, without a scheme.
    pub fn new<'v>(values: impl IntoIterator<Item = (usize, &'v str)>) -> Self {
        let (mut exact, mut patterns) = (Vec::new(), Vec::new());
        for (index, value) in values {
            match Text::parse(value) {
                Text::Exact(text) => {
                    let (trust_domain, path) = text.split_at(text.find('/').unwrap_or(text.len()));
                    exact.push(ExactPrincipal { path: path.into(), trust_domain: trust_domain.into(), index });
                }
                Text::Pattern(pattern) => patterns.push((pattern, index)),
            }
        }
        exact.sort();
        Self { exact: exact.into(), patterns: patterns.into() }
    }

    pub(super) fn find(&self, caller: &Caller<'_>) -> Option<usize> {
        let path: &[u8] = &caller.path;
        let first = self.exact.partition_point(|value| value.path.as_bytes() < path);
        let exact = || {
            let same_path = self.exact[first..].iter().take_while(|value| value.path.as_bytes() == path);
            same_path.into_iter().find(|value| caller.trust_domains().any(|td| *td == *value.trust_domain))
        };
        let pattern = || {
            let named = |p: &Pattern| caller.trust_domains().any(|td| p.matches(td.as_bytes(), path));
            self.patterns.iter().find(|(p, _)| named(p)).map(|(_, index)| *index)
        };
        exact().map(|value| value.index).or_else(pattern)
    }
}

/// Service accounts: (namespace, name), whatever the trust domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAccounts(Box<[ServiceAccount]>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ServiceAccount {
    namespace: Box<str>,
    name: Box<str>,
    index: usize,
}

impl ServiceAccounts {
    /// From (position, namespace, service account).
    pub fn new<'v>(values: impl IntoIterator<Item = (usize, &'v str, &'v str)>) -> Self {
        let mut accounts: Vec<_> = values
            .into_iter()
            .map(|(index, namespace, name)| ServiceAccount { namespace: namespace.into(), name: name.into(), index })
            .collect();
        accounts.sort();
        Self(accounts.into())
    }

    pub(super) fn find(&self, identity: &Identity) -> Option<usize> {
        let wanted: (&str, &str) = (&identity.namespace, &identity.service_account);
        let order = |account: &ServiceAccount| (&*account.namespace, &*account.name).cmp(&wanted);
        self.0.binary_search_by(order).ok().map(|i| self.0[i].index)
    }
}

/// Networks of either family. An IPv4-mapped network is the IPv4 one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Box<[(IpNet, usize)]>);

impl Networks {
    /// From networks with their positions in the object.
    pub fn new(values: impl IntoIterator<Item = (usize, IpNet)>) -> Self {
        Self(values.into_iter().map(|(index, net)| (net, index)).collect())
    }

    /// Reads a CIDR, or an address, which stands for itself alone.
    pub fn parse(value: &str) -> Option<IpNet> {
        let net = value.parse::<IpNet>().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from))?;
        let unmapped = match net {
            IpNet::V6(v6) if v6.prefix_len() >= 96 => {
                v6.addr().to_ipv4_mapped().and_then(|v4| Ipv4Net::new(v4, v6.prefix_len() - 96).ok())
            }
            _ => None,
        };
        Some(unmapped.map_or(net, IpNet::V4).trunc())
    }

    pub(super) fn find(&self, ip: IpAddr) -> Option<usize> {
        self.0.iter().find(|(net, _)| net.contains(&ip)).map(|(_, index)| *index)
    }
}

/// Ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports(Box<[(u16, usize)]>);

impl Ports {
    /// From ports with their positions in the object.
    pub fn new(values: impl IntoIterator<Item = (usize, u16)>) -> Self {
        let mut ports: Vec<_> = values.into_iter().map(|(index, port)| (port, index)).collect();
        ports.sort_unstable();
        Self(ports.into())
    }

    pub(super) fn find(&self, port: u16) -> Option<usize> {
        self.0.binary_search_by_key(&port, |(value, _)| *value).ok().map(|i| self.0[i].1)
    }
}
