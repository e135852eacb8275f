//! What a request has to look like for a rule.

use std::sync::Arc;

use http::HeaderName;

use super::pattern::{Expression, StringMatcher};
use super::request::{Origin, RequestHead};
use crate::workload::{Labels, Workload};

/// What a request has to look like: every field that is there has to hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpMatch {
    /// Its name.
    pub name: Box<str>,
    /// The path.
    pub uri: Option<UriMatch>,
    /// The scheme.
    pub scheme: Option<StringMatcher>,
    /// The method.
    pub method: Option<StringMatcher>,
    /// The authority.
    pub authority: Option<StringMatcher>,
    /// The headers.
    pub headers: Vec<HeaderMatch>,
    /// The query parameters.
    pub parameters: Vec<ParameterMatch>,
    /// The port of the service.
    pub port: Option<u16>,
    /// The client.
    pub source: SourceMatch,
}

/// What the path of a request has to be.
#[derive(Clone, Debug, PartialEq)]
pub struct UriMatch {
    /// How it is compared.
    pub path: PathMatcher,
    /// Whether upper and lower case are the same; never for expressions.
    pub ignore_case: bool,
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum PathMatcher {
    /// It is this.
    Exact(Box<str>),
    /// It starts with these characters (VirtualService).
    Prefix(Box<str>),
    /// It starts with these segments (Gateway API): without a slash at the end.
    Segments(Box<str>),
    /// This describes it.
    Expression(Expression),
}

/// What a header has to be.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderMatch {
    /// The header.
    pub name: HeaderName,
    /// What it has to be; `None` for anything.
    pub value: Option<StringMatcher>,
    /// Whether it must not be so (`withoutHeaders`).
    pub negated: bool,
}

/// What a query parameter has to be.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterMatch {
    /// Its name.
    pub name: Box<str>,
    /// What it has to be; `None` for anything.
    pub value: Option<StringMatcher>,
}

/// Who the client has to be. One that is not known is nobody that is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceMatch {
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Its labels.
    pub labels: Labels,
}

impl HttpMatch {
    /// Whether a request is such, apart from its path, which the caller has compared.
    pub(super) fn matches_but_for_path(&self, origin: &Origin<'_>, request: &RequestHead<'_>) -> bool {
        let is =
            |matcher: &Option<StringMatcher>, text: &str| matcher.as_ref().is_none_or(|m| m.matches(text.as_bytes()));
        self.port.is_none_or(|port| port == origin.port)
            && is(&self.method, request.method.as_str())
            && is(&self.scheme, request.scheme)
            && is(&self.authority, request.authority)
            && self.headers.iter().all(|header| header.matches(request))
            && self.parameters.iter().all(|parameter| parameter.matches(request))
            && self.source.matches(origin.client)
    }

    /// Whether every request is such.
    pub fn is_catch_all(&self) -> bool {
        let Self { name: _, uri, scheme, method, authority, headers, parameters, port, source } = self;
        let everywhere = match uri {
            None => true,
            Some(UriMatch { path: PathMatcher::Prefix(prefix), .. }) => matches!(&**prefix, "" | "/"),
            Some(UriMatch { path: PathMatcher::Segments(prefix), .. }) => prefix.is_empty(),
            Some(_) => false,
        };
        everywhere
            && (scheme, method, authority, port) == (&None, &None, &None, &None)
            && headers.is_empty()
            && parameters.is_empty()
            && *source == SourceMatch::default()
    }
}

impl UriMatch {
    /// Whether `path`, without its query, is such.
    pub fn matches(&self, path: &str) -> bool {
        let starts_with = |prefix: &str| match (path.as_bytes().get(..prefix.len()), self.ignore_case) {
            (Some(start), true) => start.eq_ignore_ascii_case(prefix.as_bytes()),
            (Some(start), false) => start == prefix.as_bytes(),
            (None, _) => false,
        };
        match &self.path {
            PathMatcher::Exact(exact) => path.len() == exact.len() && starts_with(exact),
            PathMatcher::Prefix(prefix) => starts_with(prefix),
            PathMatcher::Segments(prefix) => starts_with(prefix) && ends_segment(path, prefix.len()),
            PathMatcher::Expression(expression) => expression.is_match(path.as_bytes()),
        }
    }
}

/// Whether a segment of `path` ends after `length` bytes.
pub(super) fn ends_segment(path: &str, length: usize) -> bool {
    path.as_bytes().get(length).is_none_or(|next| *next == b'/')
}

impl HeaderMatch {
    fn matches(&self, request: &RequestHead<'_>) -> bool {
        let there = request.header(&self.name);
        let holds = match (&self.value, there) {
            (None, there) => there.is_some(),
            (Some(matcher), Some(value)) => matcher.matches(&value),
            // Of `withoutHeaders`, a header that is not there is taken for an empty one, as Istio has Envoy do.
            (Some(matcher), None) => self.negated && matcher.matches(b""),
        };
        holds != self.negated
    }
}

impl ParameterMatch {
    fn matches(&self, request: &RequestHead<'_>) -> bool {
        let there = request.parameter(&self.name);
        there.is_some_and(|value| self.value.as_ref().is_none_or(|matcher| matcher.matches(value.as_bytes())))
    }
}

impl SourceMatch {
    /// Whether `client` is such.
    pub fn matches(&self, client: Option<&Workload>) -> bool {
        if self.namespace.is_none() && self.labels.is_empty() {
            return true;
        }
        let Some(client) = client else { return false };
        self.namespace.as_ref().is_none_or(|namespace| *namespace == client.namespace)
            && self.labels.iter().all(|(key, value)| client.labels.get(key) == Some(value))
    }
}
