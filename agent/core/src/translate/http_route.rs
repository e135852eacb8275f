//! HTTPRoute into rules (Gateway API `apis/v1/httproute_types.go`).

use std::cmp::Reverse;
use std::sync::Arc;

use culvert_api::HTTPRoute;
use culvert_api::gateway_api::experimental::httproutes::{
    HttpRouteRules, HttpRouteRulesBackendRefsFiltersType as BackendKind, HttpRouteRulesFilters,
    HttpRouteRulesFiltersRequestRedirectScheme as Scheme, HttpRouteRulesFiltersType as Filter, HttpRouteRulesMatches,
    HttpRouteRulesMatchesHeadersType as HeaderKind, HttpRouteRulesMatchesPathType as PathKind,
    HttpRouteRulesMatchesQueryParamsType as ParameterKind, HttpRouteRulesSessionPersistence,
    HttpRouteRulesSessionPersistenceCookieConfigLifetimeType as Lifetime,
    HttpRouteRulesSessionPersistenceType as SessionKind,
};
use http::HeaderName;

use super::gateway_route::filters::{modifier, shared_backend};
use super::gateway_route::{
    GatewayRouteFacts, MAX_MATCHES, MAX_RULES, Precedence, RouteReader, Surroundings, backend_ref,
};
use super::values::{duration, shown};
use crate::route::http::{HttpAction, HttpRule, SessionPersistence};
use crate::route::matcher::{HeaderMatch, HttpMatch, ParameterMatch, PathMatcher, UriMatch};
use crate::route::pattern::{Expression, StringMatcher};
use crate::route::retry::{MAX_ATTEMPTS, RetryOn};

/// Reads `object`.
pub(crate) fn translate(
    object: &HTTPRoute,
    reference: culvert_api::ObjectRef,
    around: &Surroundings<'_>,
) -> GatewayRouteFacts {
    let mut reader = RouteReader::new(reference, super::metadata::created(&object.metadata), around);
    let rules = object.spec.rules.as_deref().unwrap_or_default();
    for (at, rule) in reader.at_most(MAX_RULES, "spec.rules", rules).iter().enumerate() {
        reader.http_rule(at, rule);
    }
    reader.finish(object.spec.parent_refs.as_ref())
}

impl RouteReader<'_> {
    fn http_rule(&mut self, at: usize, written: &HttpRouteRules) {
        let field = format!("spec.rules[{at}]");
        let backends = written.backend_refs.iter().flatten();
        let action = self.forward(&field, backends.map(|backend| shared_backend!(backend, BackendKind)));
        let mut rule = HttpRule::new(self.object.clone(), at, action);
        rule.name = written.name.as_deref().unwrap_or_default().into();
        for (at, filter) in written.filters.iter().flatten().enumerate() {
            self.http_filter(&format!("{field}.filters[{at}]"), filter, &mut rule);
        }
        let timeouts = written.timeouts.as_ref();
        let mut time = |name: &str, text: Option<&String>| {
            let text = text?;
            let read = duration(text);
            if read.is_none() {
                let message = format!("{field}.{name}: {} is no duration, such as 10s", shown(text));
                self.unsupported("UnsupportedValue", message);
            }
            read.filter(|time| !time.is_zero())
        };
        rule.timeout = time("timeouts.request", timeouts.and_then(|timeouts| timeouts.request.as_ref()));
        rule.retries.per_try_timeout =
            time("timeouts.backendRequest", timeouts.and_then(|timeouts| timeouts.backend_request.as_ref()));
        if let Some(retry) = &written.retry {
            if let Some(backoff) = time("retry.backoff", retry.backoff.as_ref()) {
                rule.retries.backoff = backoff;
            }
            if let Some(attempts) = retry.attempts {
                rule.retries.attempts = u32::try_from(attempts).unwrap_or(0).min(MAX_ATTEMPTS);
            }
            // Connections that fail or break off are tried again as well (GEP-1731).
            let mut on = RetryOn::parse("connect-failure,refused-stream,reset").0;
            for code in retry.codes.iter().flatten() {
                match u16::try_from(*code) {
                    Ok(code @ 400..=599) => on.add_status(code),
                    _ => {
                        self.unsupported("UnsupportedValue", format!("{field}.retry.codes: {code} is no such status"));
                    }
                }
            }
            rule.retries.on = on;
        }
        rule.session = written
            .session_persistence
            .as_ref()
            .and_then(|session| self.session(&format!("{field}.sessionPersistence"), session));
        match written.matches.as_deref().unwrap_or_default() {
            [] => {
                let matched = HttpMatch { uri: Some(below("")), ..HttpMatch::default() };
                self.http_push(rule, matched, 0, 1);
            }
            matches => {
                let matches = self.at_most(MAX_MATCHES, &format!("{field}.matches"), matches);
                for (position, matched) in matches.iter().enumerate() {
                    let field = format!("{field}.matches[{position}]");
                    if let Some((matched, length)) = self.http_match(&field, matched) {
                        self.http_push(rule.clone(), matched, position, length);
                    }
                }
            }
        }
    }

    /// Adds a rule for one of its matches: each is put in order on its own.
    pub(crate) fn http_push(&mut self, rule: HttpRule, matched: HttpMatch, position: usize, path_length: usize) {
        let path = match matched.uri.as_ref().map(|uri| &uri.path) {
            Some(PathMatcher::Exact(_)) => 0,
            Some(PathMatcher::Segments(_) | PathMatcher::Prefix(_)) | None => 1,
            Some(PathMatcher::Expression(_)) => 2,
        };
        let precedence = Precedence {
            path,
            path_length: Reverse(path_length),
            method: Reverse(matched.method.is_some()),
            headers: Reverse(matched.headers.len()),
            parameters: Reverse(matched.parameters.len()),
            created: self.created,
            name: self.name(),
            rule: rule.rule,
            matched: position,
        };
        self.facts.http.push((precedence, Arc::new(HttpRule { matches: vec![matched], ..rule })));
    }

    fn http_match(&mut self, field: &str, written: &HttpRouteRulesMatches) -> Option<(HttpMatch, usize)> {
        let mut matched = HttpMatch::default();
        let value = written.path.as_ref().and_then(|path| path.value.as_deref()).unwrap_or("/");
        let kind = written.path.as_ref().and_then(|path| path.r#type.as_ref()).unwrap_or(&PathKind::PathPrefix);
        let path = match kind {
            PathKind::Exact | PathKind::PathPrefix if !value.starts_with('/') => {
                self.unsupported("UnsupportedValue", format!("{field}.path.value {} starts not with /", shown(value)));
                return None;
            }
            PathKind::Exact => UriMatch { path: PathMatcher::Exact(value.into()), ignore_case: false },
            PathKind::PathPrefix => below(value),
            PathKind::RegularExpression => {
                let path = PathMatcher::Expression(self.expression(&format!("{field}.path.value"), value)?);
                UriMatch { path, ignore_case: false }
            }
        };
        matched.uri = Some(path);
        let method = written.method.as_ref().and_then(|method| serde_json::to_value(method).ok());
        matched.method = method.and_then(|method| Some(StringMatcher::Exact(method.as_str()?.into())));
        for header in written.headers.iter().flatten() {
            let regex = header.r#type == Some(HeaderKind::RegularExpression);
            self.header_match(&format!("{field}.headers"), &mut matched, &header.name, &header.value, regex)?;
        }
        for parameter in written.query_params.iter().flatten() {
            if matched.parameters.iter().any(|known| *known.name == *parameter.name) {
                continue;
            }
            let regex = parameter.r#type == Some(ParameterKind::RegularExpression);
            let value = self.text(&format!("{field}.queryParams"), &parameter.value, regex)?;
            matched.parameters.push(ParameterMatch { name: parameter.name.as_str().into(), value: Some(value) });
        }
        Some((matched, value.len()))
    }

    /// Adds a header to a match; of two of one name the first counts.
    pub(crate) fn header_match(
        &mut self,
        field: &str,
        matched: &mut HttpMatch,
        name: &str,
        value: &str,
        regex: bool,
    ) -> Option<()> {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            self.unsupported("UnsupportedValue", format!("{field}: {} is no header", shown(name)));
            return None;
        };
        let value = self.text(field, value, regex)?;
        if !matched.headers.iter().any(|known| known.name == name) {
            matched.headers.push(HeaderMatch { name, value: Some(value), negated: false });
        }
        Some(())
    }

    fn text(&mut self, field: &str, value: &str, regex: bool) -> Option<StringMatcher> {
        match regex {
            true => Some(StringMatcher::Expression(self.expression(field, value)?)),
            false => Some(StringMatcher::Exact(value.into())),
        }
    }

    /// An expression; a match with one that cannot be read is never met.
    pub(crate) fn expression(&mut self, field: &str, text: &str) -> Option<Expression> {
        match Expression::of_all(text) {
            Ok(expression) => Some(expression),
            Err(why) => {
                self.unsupported("UnsupportedValue", format!("{field}: {} {why}", shown(text)));
                None
            }
        }
    }

    fn http_filter(&mut self, field: &str, filter: &HttpRouteRulesFilters, rule: &mut HttpRule) {
        let missing = |reader: &mut Self| {
            let message = format!("{field} lacks what its type needs, or is of a type that is not supported");
            HttpAction::Invalid(reader.unsupported("UnsupportedValue", message))
        };
        match &filter.r#type {
            Filter::RequestHeaderModifier => match &filter.request_header_modifier {
                Some(written) => {
                    let operations = self.operations(field, &modifier!(written));
                    rule.request_headers = rule.request_headers.followed_by(&operations);
                }
                None => rule.action = missing(self),
            },
            Filter::ResponseHeaderModifier => match &filter.response_header_modifier {
                Some(written) => {
                    let operations = self.operations(field, &modifier!(written));
                    rule.response_headers = rule.response_headers.followed_by(&operations);
                }
                None => rule.action = missing(self),
            },
            Filter::RequestMirror => match &filter.request_mirror {
                Some(mirror) => {
                    let to =
                        self.backend(&format!("{field}.requestMirror.backendRef"), &backend_ref!(mirror.backend_ref));
                    let fraction = mirror.fraction.as_ref().map(|part| (part.numerator, part.denominator));
                    self.mirror(field, rule, to, mirror.percent, fraction);
                }
                None => rule.action = missing(self),
            },
            Filter::RequestRedirect => match &filter.request_redirect {
                _ if rule.rewrite.is_some() || rule.authority.is_some() => {
                    let message = format!("{field}: requestRedirect goes not with urlRewrite: remove one");
                    rule.action = HttpAction::Invalid(self.unsupported("IncompatibleFilters", message));
                }
                Some(written) => {
                    let scheme = written.scheme.as_ref().map(|scheme| match scheme {
                        Scheme::Http => "http",
                        Scheme::Https => "https",
                    });
                    let path = written.path.as_ref();
                    let path = path.map(|p| (p.replace_full_path.as_deref(), p.replace_prefix_match.as_deref()));
                    let parts = (scheme, written.hostname.as_deref(), written.port, written.status_code);
                    rule.action = self.redirect(&format!("{field}.requestRedirect"), parts, path.unwrap_or_default());
                }
                None => rule.action = missing(self),
            },
            Filter::UrlRewrite => match &filter.url_rewrite {
                _ if matches!(rule.action, HttpAction::Redirect(_)) => {
                    let message = format!("{field}: urlRewrite goes not with requestRedirect: remove one");
                    rule.action = HttpAction::Invalid(self.unsupported("IncompatibleFilters", message));
                }
                Some(written) => {
                    let path = written.path.as_ref();
                    let path = path.map(|p| (p.replace_full_path.as_deref(), p.replace_prefix_match.as_deref()));
                    let field = format!("{field}.urlRewrite");
                    self.rewrite(&field, rule, written.hostname.as_deref(), path.unwrap_or_default());
                }
                None => rule.action = missing(self),
            },
            Filter::Cors => match &filter.cors {
                Some(cors) => {
                    let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
                    let (origins, methods) = (list(&cors.allow_origins), list(&cors.allow_methods));
                    let (headers, exposed) = (list(&cors.allow_headers), list(&cors.expose_headers));
                    let credentials = cors.allow_credentials.unwrap_or(false);
                    let lists = [methods.as_slice(), &headers, &exposed];
                    rule.cors = Some(self.cors(&format!("{field}.cors"), &origins, lists, cors.max_age, credentials));
                }
                None => rule.action = missing(self),
            },
            Filter::ExtensionRef | Filter::ExternalAuth => rule.action = missing(self),
        }
    }

    fn session(&mut self, field: &str, written: &HttpRouteRulesSessionPersistence) -> Option<SessionPersistence> {
        let header = written.r#type == Some(SessionKind::Header);
        let name = written.session_name.as_deref().unwrap_or("culvert-session");
        if HeaderName::from_bytes(name.as_bytes()).is_err() {
            self.unsupported("UnsupportedValue", format!("{field}.sessionName {} is no name", shown(name)));
            return None;
        }
        let permanent = written.cookie_config.as_ref().and_then(|config| config.lifetime_type.as_ref());
        let absolute = written.absolute_timeout.as_deref().and_then(duration);
        if permanent == Some(&Lifetime::Permanent) && absolute.is_none() {
            self.unsupported("UnsupportedValue", format!("{field}: a permanent cookie needs absoluteTimeout: set it"));
            return None;
        }
        Some(SessionPersistence {
            name: name.into(),
            header,
            lifetime: absolute,
            idle: written.idle_timeout.as_deref().and_then(duration),
        })
    }
}

/// Everything below `path`, by segments.
pub(crate) fn below(path: &str) -> UriMatch {
    UriMatch { path: PathMatcher::Segments(path.trim_end_matches('/').into()), ignore_case: false }
}
