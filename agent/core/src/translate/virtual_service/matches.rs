//! What a request has to look like.

use std::collections::BTreeMap;

use culvert_api::networking::virtual_service::{HttpMatchRequest, StringMatch};
use http::HeaderName;

use super::super::values::{self, shown};
use super::{MAX_MATCHES, Reader};
use crate::route::matcher::{HeaderMatch, HttpMatch, ParameterMatch, PathMatcher, SourceMatch, UriMatch};
use crate::route::pattern::{Expression, StringMatcher};

/// The most bytes of a text to compare with.
const MAX_TEXT: usize = 8 << 10;

/// A condition that cannot be met: it has been reported.
pub(super) struct Never;

/// A string match: something, or anything at all.
pub(super) enum Pattern {
    Any,
    Is(StringMatcher),
}

impl Reader<'_, '_> {
    /// The matches of a rule; `None` if it has some, and none is for the mesh.
    pub(super) fn matches(&mut self, rule: &str, written: &[HttpMatchRequest]) -> Option<Vec<HttpMatch>> {
        if written.len() > MAX_MATCHES {
            self.error(format!("{rule}.match"), format!("more than {MAX_MATCHES}: the rest has no effect"));
        }
        let mut matches = Vec::new();
        for (at, matched) in written.iter().take(MAX_MATCHES).enumerate() {
            let field = format!("{rule}.match[{at}]");
            if !in_mesh(&matched.gateways) {
                continue;
            }
            matches.extend(self.http_match(&field, matched).ok());
        }
        (written.is_empty() || !matches.is_empty()).then_some(matches)
    }

    fn http_match(&mut self, field: &str, written: &HttpMatchRequest) -> Result<HttpMatch, Never> {
        let uri = written.uri.as_ref().map(|uri| self.uri(&format!("{field}.uri"), uri, written.ignore_uri_case));
        let scheme = self.optional(&format!("{field}.scheme"), written.scheme.as_ref());
        let method = self.optional(&format!("{field}.method"), written.method.as_ref());
        let authority = self.optional(&format!("{field}.authority"), written.authority.as_ref());
        let mut headers = self.header_matches(&format!("{field}.headers"), &written.headers, false)?;
        headers.extend(self.header_matches(&format!("{field}.withoutHeaders"), &written.without_headers, true)?);
        let mut parameters = Vec::new();
        for (name, value) in &written.query_params {
            let value = match self.pattern(&format!("{field}.queryParams[{name}]"), value)? {
                Pattern::Any => None,
                Pattern::Is(matcher) => Some(matcher),
            };
            parameters.push(ParameterMatch { name: name.as_str().into(), value });
        }
        let port = written.port.filter(|port| *port != 0);
        let source = source(&written.source_namespace, &written.source_labels);
        Ok(HttpMatch {
            name: written.name.as_str().into(),
            uri: uri.transpose()?,
            scheme: scheme?,
            method: method?,
            authority: authority?,
            headers,
            parameters,
            port: self.port(&format!("{field}.port"), port)?,
            source,
        })
    }

    fn uri(&mut self, field: &str, written: &StringMatch, ignore_case: bool) -> Result<UriMatch, Never> {
        let path = match self.pattern(field, written)? {
            Pattern::Any => {
                self.error(field, "says nothing, and is never met: write exact, prefix or regex");
                return Err(Never);
            }
            Pattern::Is(StringMatcher::Exact(exact)) => PathMatcher::Exact(exact),
            Pattern::Is(StringMatcher::Prefix(prefix)) => PathMatcher::Prefix(prefix),
            Pattern::Is(StringMatcher::Expression(expression)) => {
                if ignore_case {
                    self.warning(field, "ignoreUriCase does not apply to regex: start it with (?i)");
                }
                return Ok(UriMatch { path: PathMatcher::Expression(expression), ignore_case: false });
            }
        };
        let (PathMatcher::Exact(text) | PathMatcher::Prefix(text)) = &path else { return Err(Never) };
        if text.contains('?') {
            self.warning(field, "has a ?, and is never met: the query is no part of it; use queryParams");
        }
        Ok(UriMatch { path, ignore_case })
    }

    fn optional(&mut self, field: &str, written: Option<&StringMatch>) -> Result<Option<StringMatcher>, Never> {
        match written.map(|written| self.pattern(field, written)) {
            None | Some(Ok(Pattern::Any)) => Ok(None),
            Some(Ok(Pattern::Is(matcher))) => Ok(Some(matcher)),
            Some(Err(never)) => Err(never),
        }
    }

    fn header_matches(
        &mut self,
        field: &str,
        written: &BTreeMap<String, StringMatch>,
        negated: bool,
    ) -> Result<Vec<HeaderMatch>, Never> {
        let mut headers = Vec::new();
        for (name, value) in written {
            let field = format!("{field}[{name}]");
            if name.starts_with("@request.auth.claims") {
                self.error(
                    field,
                    "claims are compared at gateways only, so this is never met: use AuthorizationPolicy",
                );
                return Err(Never);
            }
            if matches!(name.as_str(), "uri" | "scheme" | "method" | "authority") {
                self.warning(field, format!("is ignored: {name} has a field of its own"));
                continue;
            }
            let Ok(known) = HeaderName::from_bytes(name.as_bytes()) else {
                self.error(field, format!("{} is no header name, and is never met", shown(name)));
                return Err(Never);
            };
            let value = match self.pattern(&field, value)? {
                Pattern::Any => None,
                Pattern::Is(matcher) => Some(matcher),
            };
            headers.push(HeaderMatch { name: known, value, negated });
        }
        Ok(headers)
    }

    pub(super) fn pattern(&mut self, field: &str, written: &StringMatch) -> Result<Pattern, Never> {
        let never = |reader: &mut Self, message: &str| {
            reader.error(field, format!("{message}, and is never met"));
            Err(Never)
        };
        let StringMatch { exact, prefix, regex } = written;
        match (exact, prefix, regex) {
            (None, None, None) => Ok(Pattern::Any),
            // A metacharacter of Istio's, no expression.
            (None, None, Some(regex)) if regex == "*" => Ok(Pattern::Any),
            (Some(text), None, None) | (None, Some(text), None) if text.len() > MAX_TEXT => {
                never(self, &format!("is longer than {MAX_TEXT} bytes"))
            }
            (Some(exact), None, None) => Ok(Pattern::Is(StringMatcher::Exact(exact.as_str().into()))),
            (None, Some(prefix), None) if prefix.is_empty() => never(self, "is an empty prefix: leave the field out"),
            (None, Some(prefix), None) => Ok(Pattern::Is(StringMatcher::Prefix(prefix.as_str().into()))),
            (None, None, Some(regex)) => match Expression::of_all(regex) {
                Ok(expression) => Ok(Pattern::Is(StringMatcher::Expression(expression))),
                Err(why) => never(self, &format!("{} {why}", shown(regex))),
            },
            _ => never(self, "has more than one of exact, prefix and regex"),
        }
    }

    pub(super) fn port(&mut self, field: &str, written: Option<u32>) -> Result<Option<u16>, Never> {
        match written.map(values::port) {
            None => Ok(None),
            Some(Some(port)) => Ok(Some(port)),
            Some(None) => {
                self.error(field, "is not a port from 1 to 65535, and is never met");
                Err(Never)
            }
        }
    }
}

/// Whether a match with these `gateways` is for the mesh.
pub(super) fn in_mesh(gateways: &[String]) -> bool {
    gateways.is_empty() || gateways.iter().any(|gateway| gateway == "mesh")
}

pub(super) fn source(namespace: &str, labels: &BTreeMap<String, String>) -> SourceMatch {
    SourceMatch {
        namespace: (!namespace.is_empty()).then(|| namespace.into()),
        labels: labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
    }
}
