//! What only a waypoint sees of a call, and how it is compared.

use std::borrow::Cow;

use serde_json::Value;

use super::super::matcher::{Networks, Strings};
use super::template::PathTemplate;
use super::{HttpFacts, RequestFacts};
use crate::address::canonical_ip;
use crate::authentication::Authenticated;

/// How much of what a client sent is repeated.
const MAX_SHOWN: usize = 100;

/// What a condition on a request compares, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestAttribute {
    /// `hosts`; `without_port`: also with neither its port nor a final dot.
    Host {
        /// In lower case.
        values: Strings,
        /// Whether `a.example:80` is also compared as `a.example`.
        without_port: bool,
    },
    /// `methods`
    Method(Strings),
    /// `paths`
    Path(Paths),
    /// `requestPrincipals`, `request.auth.principal`
    Principal(Strings),
    /// `request.auth.audiences`
    Audience(Strings),
    /// `request.auth.presenter`
    Presenter(Strings),
    /// `request.auth.claims[a][b]`; `scalars`: whether numbers and booleans are compared by their text.
    Claim {
        /// Where the claim is.
        path: ClaimPath,
        /// What it is compared with.
        values: Strings,
        /// Whether numbers and booleans are compared, by their text.
        scalars: bool,
    },
    /// `request.headers[name]`, the name in lower case.
    Header {
        /// The name.
        name: Box<str>,
        /// What it is compared with; several of one name are compared as one, separated by commas.
        values: Strings,
    },
    /// `remoteIpBlocks`, `remote.ip`
    RemoteIp(Networks),
    /// `connection.sni`
    Sni(Strings),
}

/// Paths: strings, and templates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Those without `{*}` and `{**}`.
    pub plain: Strings,
    /// The others, with their positions in the object.
    pub templates: Box<[(PathTemplate, usize)]>,
}

/// Where in a token a claim is: `[a][b]` for the `b` of the `a`. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath(Box<[Box<str>]>);

/// The deepest claim that can be named.
const MAX_CLAIM_DEPTH: usize = 16;

impl ClaimPath {
    /// Reads `[a][b]`; `None` if it is not of that form.
    pub fn parse(text: &str) -> Option<Self> {
        let names: Vec<Box<str>> =
            text.strip_prefix('[')?.strip_suffix(']')?.split("][").map(Box::from).take(MAX_CLAIM_DEPTH + 1).collect();
        let readable = |name: &str| !name.is_empty() && !name.contains(['[', ']']);
        (names.len() <= MAX_CLAIM_DEPTH && names.iter().all(|name| readable(name))).then(|| Self(names.into()))
    }

    /// The claim of this path.
    pub fn find<'v>(&self, token: &'v Authenticated) -> Option<&'v Value> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().try_fold(token.claims.get(&**first)?, |value, name| value.as_object()?.get(&**name))
    }

    /// The name, if it is not within another claim.
    fn top_level(&self) -> Option<&str> {
        match &*self.0 {
            [name] => Some(name),
            _ => None,
        }
    }
}

impl RequestAttribute {
    /// Whether the call has such a thing at all: a connection has neither path nor headers nor token.
    pub(in crate::policy) fn is_shown_by(&self, facts: Option<&RequestFacts<'_>>) -> bool {
        match self {
            Self::RemoteIp(_) | Self::Sni(_) => facts.is_some(),
            _ => facts.is_some_and(|facts| facts.http.is_some()),
        }
    }

    /// The position of the first value found to match.
    pub(in crate::policy) fn find(&self, facts: &RequestFacts<'_>) -> Option<usize> {
        match self {
            Self::Host { values, without_port } => find_host(values, *without_port, facts.http?.host),
            Self::Method(values) => values.find(facts.http?.method),
            Self::Path(paths) => paths.find(facts.http?.path),
            Self::Principal(values) => values.find(facts.authenticated?.principal.as_deref()?),
            Self::Audience(values) => facts.authenticated?.audiences().find_map(|audience| values.find(audience)),
            Self::Presenter(values) => values.find(facts.authenticated?.claims.get("azp")?.as_str()?),
            Self::Claim { path, values, scalars } => {
                let token = facts.authenticated?;
                let spaced = path.top_level().is_some_and(|name| token.is_space_delimited(name));
                find_claim(values, path.find(token)?, spaced, *scalars)
            }
            Self::Header { name, values } => {
                let value = header(&facts.http?, name)?;
                // Istio asks a `*` for the header's presence alone.
                values.find_bytes(&value).or_else(|| values.presence())
            }
            Self::RemoteIp(values) => values.find(canonical_ip(facts.remote_ip)),
            Self::Sni(values) => values.find(facts.sni?),
        }
    }

    /// What the call has for it, for people; nothing of headers and claims, which may be secret.
    pub(in crate::policy) fn describe(&self, facts: Option<&RequestFacts<'_>>) -> String {
        let Some(facts) = facts else { return "a connection that no waypoint saw".to_owned() };
        let token = |name: &str| match facts.authenticated {
            Some(_) => format!("the {name} of the request's token"),
            None => "a request without a token".to_owned(),
        };
        match (self, &facts.http) {
            (Self::RemoteIp(_), _) => facts.remote_ip.to_string(),
            (Self::Sni(_), _) => facts.sni.map_or_else(|| "a connection without a server name".to_owned(), shown),
            (_, None) => "a connection that is not HTTP".to_owned(),
            (Self::Host { .. }, Some(http)) => shown(http.host),
            (Self::Method(_), Some(http)) => shown(http.method),
            (Self::Path(_), Some(http)) => shown(http.path),
            (Self::Principal(_), _) => match facts.authenticated.and_then(|token| token.principal.as_deref()) {
                Some(principal) => shown(principal),
                None => token("principal"),
            },
            (Self::Audience(_), _) => token("audiences"),
            (Self::Presenter(_), _) => token("presenter"),
            (Self::Claim { path, .. }, _) => token(&format!("claim {path}")),
            (Self::Header { name, .. }, Some(http)) => match header(http, name) {
                Some(_) => format!("the request's header {name}"),
                None => format!("a request without header {name}"),
            },
        }
    }

    /// The names of the field and of its negation, below `from[i]` or `to[i]`.
    pub(in crate::policy) fn fields(&self) -> (&'static str, &'static str) {
        match self {
            Self::Host { .. } => ("operation.hosts", "operation.notHosts"),
            Self::Method(_) => ("operation.methods", "operation.notMethods"),
            Self::Path(_) => ("operation.paths", "operation.notPaths"),
            Self::Principal(_) => ("source.requestPrincipals", "source.notRequestPrincipals"),
            Self::RemoteIp(_) => ("source.remoteIpBlocks", "source.notRemoteIpBlocks"),
            Self::Audience(_) | Self::Presenter(_) | Self::Claim { .. } | Self::Header { .. } | Self::Sni(_) => {
                ("values", "notValues")
            }
        }
    }

    /// The attribute by the name that `when` uses for it, or Envoy.
    pub(in crate::policy) fn key(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Host { .. } => "request.host",
            Self::Method(_) => "request.method",
            Self::Path(_) => "request.url_path",
            Self::Principal(_) => "request.auth.principal",
            Self::Audience(_) => "request.auth.audiences",
            Self::Presenter(_) => "request.auth.presenter",
            Self::Claim { path, .. } => return Cow::Owned(format!("request.auth.claims{path}")),
            Self::Header { name, .. } => return Cow::Owned(format!("request.headers[{name}]")),
            Self::RemoteIp(_) => "remote.ip",
            Self::Sni(_) => "connection.sni",
        })
    }
}

impl std::fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, "[{}]", name.escape_debug()))
    }
}

impl Paths {
    fn find(&self, path: &str) -> Option<usize> {
        let template = || self.templates.iter().find(|(template, _)| template.matches(path)).map(|(_, index)| *index);
        self.plain.find(path).or_else(template)
    }
}

fn find_host(values: &Strings, without_port: bool, host: &str) -> Option<usize> {
    let host = match host.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    };
    let bare = || {
        let name = without_port.then(|| name_of(&host))?;
        (name != host).then(|| values.find(name))?
    };
    values.find(&host).or_else(bare)
}

/// A host without its port and its final dot. An address in brackets keeps them.
fn name_of(host: &str) -> &str {
    let is_port = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && (!name.contains(':') || name.ends_with(']')) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

fn find_claim(values: &Strings, claim: &Value, spaced: bool, scalars: bool) -> Option<usize> {
    let text = |value: &Value| match value {
        Value::String(text) => values.find(text),
        Value::Bool(_) | Value::Number(_) if scalars => values.find(&value.to_string()),
        _ => None,
    };
    match claim {
        Value::Array(list) => list.iter().find_map(text),
        Value::String(words) if spaced => words.split(' ').find_map(|word| values.find(word)),
        other => text(other),
    }
}

/// The value of a header, as Envoy has it: several of one name are one, separated by commas.
fn header<'h>(http: &HttpFacts<'h>, name: &str) -> Option<Cow<'h, [u8]>> {
    match name {
        ":authority" | "host" => return Some(Cow::Borrowed(http.host.as_bytes())),
        ":method" => return Some(Cow::Borrowed(http.method.as_bytes())),
        _ => {}
    }
    let mut all = http.headers.get_all(name).iter().map(|value| value.as_bytes());
    let first = all.next()?;
    let mut joined = Cow::Borrowed(first);
    for next in all {
        let text = joined.to_mut();
        text.push(b',');
        text.extend_from_slice(next);
    }
    Some(joined)
}

fn shown(text: &str) -> String {
    let quoted: String = text.chars().take(MAX_SHOWN).collect();
    format!("{quoted:?}")
}
