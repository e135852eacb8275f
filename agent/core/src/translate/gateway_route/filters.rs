//! Filters: the same for requests of HTTP and of gRPC, for rules and for backends, in four sets of types.

use http::{HeaderName, HeaderValue};

use super::super::values::shown;
use super::{BackendRef, RouteReader, weight};
use crate::route::cors::CorsPolicy;
use crate::route::fault::Share;
use crate::route::headers::{HeaderOp, HeaderOps};
use crate::route::http::{Backend, HttpAction, HttpRule, Mirror, WeightedBackend};
use crate::route::pattern::{Expression, StringMatcher};
use crate::route::redirect::{Redirect, RedirectPort, is_authority, is_path};
use crate::route::rewrite::PathRewrite;
use crate::route::template::Template;

/// Headers to write, and to take out.
#[derive(Default)]
pub(crate) struct Modifier<'r> {
    pub(crate) set: Vec<(&'r str, &'r str)>,
    pub(crate) add: Vec<(&'r str, &'r str)>,
    pub(crate) remove: &'r [String],
}

/// The [`Modifier`] of any type that has its fields.
macro_rules! modifier {
    ($from:expr) => {
        $crate::translate::gateway_route::filters::Modifier {
            set: $from.set.iter().flatten().map(|header| (header.name.as_str(), header.value.as_str())).collect(),
            add: $from.add.iter().flatten().map(|header| (header.name.as_str(), header.value.as_str())).collect(),
            remove: $from.remove.as_deref().unwrap_or_default(),
        }
    };
}
pub(crate) use modifier;

/// A filter of a backend.
pub(crate) enum BackendFilter<'r> {
    RequestHeaders(Modifier<'r>),
    ResponseHeaders(Modifier<'r>),
    /// One that only rules may have.
    OfRules,
}

/// A backend and its share, with what is done on the way to it and back.
pub(crate) struct SharedBackend<'r> {
    pub(crate) to: BackendRef<'r>,
    pub(crate) weight: Option<i32>,
    pub(crate) filters: Vec<BackendFilter<'r>>,
}

/// The [`SharedBackend`] of any type that has its fields; the second is the type of its filters' types.
macro_rules! shared_backend {
    ($from:expr, $kind:ident) => {{
        use $crate::translate::gateway_route::filters::{BackendFilter, SharedBackend, modifier};
        let filters = $from.filters.iter().flatten().map(|filter| {
            match (&filter.r#type, &filter.request_header_modifier, &filter.response_header_modifier) {
                ($kind::RequestHeaderModifier, Some(written), _) => BackendFilter::RequestHeaders(modifier!(written)),
                ($kind::ResponseHeaderModifier, _, Some(written)) => BackendFilter::ResponseHeaders(modifier!(written)),
                _ => BackendFilter::OfRules,
            }
        });
        SharedBackend { to: backend_ref!($from), weight: $from.weight, filters: filters.collect() }
    }};
}
pub(crate) use shared_backend;

/// A new path: `replaceFullPath`, or `replacePrefixMatch`.
pub(crate) type NewPath<'r> = (Option<&'r str>, Option<&'r str>);

impl RouteReader<'_> {
    /// Where the requests of the rule at `field` go: one of these, by their weights.
    pub(crate) fn forward<'r>(&mut self, field: &str, written: impl Iterator<Item = SharedBackend<'r>>) -> HttpAction {
        let mut backends = Vec::new();
        for (at, backend) in written.enumerate() {
            let field = format!("{field}.backendRefs[{at}]");
            let (mut request_headers, mut response_headers) = (HeaderOps::default(), HeaderOps::default());
            for (at, filter) in backend.filters.iter().enumerate() {
                let field = format!("{field}.filters[{at}]");
                let (operations, modifier) = match filter {
                    BackendFilter::RequestHeaders(modifier) => (&mut request_headers, modifier),
                    BackendFilter::ResponseHeaders(modifier) => (&mut response_headers, modifier),
                    BackendFilter::OfRules => {
                        let message = format!("{field}: a backend may only have header modifiers: put it on the rule");
                        self.unsupported("UnsupportedValue", message);
                        continue;
                    }
                };
                *operations = operations.followed_by(&self.operations(&field, modifier));
            }
            let weight = weight(backend.weight);
            let all = WeightedBackend::all(self.backend(&field, &backend.to));
            if weight > 0 {
                backends.push(WeightedBackend { weight, request_headers, response_headers, ..all });
            }
        }
        match backends.is_empty() {
            true => HttpAction::Invalid(format!("{field}.backendRefs has no backend with a weight").into()),
            false => HttpAction::Forward(backends),
        }
    }

    /// The operations of a modifier: those that remove, then those that set, then those that add.
    pub(crate) fn operations(&mut self, field: &str, modifier: &Modifier<'_>) -> HeaderOps {
        let mut operations = Vec::new();
        for name in modifier.remove {
            operations.extend(self.header(field, name).map(HeaderOp::Remove));
        }
        for (list, set) in [(&modifier.set, true), (&modifier.add, false)] {
            for (name, value) in list {
                let Some(name) = self.header(field, name) else { continue };
                match Template::literal(value) {
                    Ok(value) if set => operations.push(HeaderOp::Set(name, value)),
                    Ok(value) => operations.push(HeaderOp::Add(name, value)),
                    Err(why) => {
                        self.unsupported("UnsupportedValue", format!("{field}: {} {why}", shown(value)));
                    }
                }
            }
        }
        HeaderOps::new(operations)
    }

    fn header(&mut self, field: &str, name: &str) -> Option<HeaderName> {
        let known = HeaderName::from_bytes(name.as_bytes()).ok().filter(|name| name != http::header::HOST);
        if known.is_none() {
            self.unsupported("UnsupportedValue", format!("{field}: {} cannot be changed", shown(name)));
        }
        known
    }

    pub(crate) fn path(&mut self, field: &str, (full, prefix): NewPath<'_>) -> Result<Option<PathRewrite>, Box<str>> {
        let text = full.or(prefix);
        match text {
            Some(text) if !is_path(text) || !(text.is_empty() || text.starts_with('/')) => {
                let message = format!("{field}: {} is no path", shown(text));
                Err(self.unsupported("UnsupportedValue", message))
            }
            None => Ok(None),
            Some(text) if full.is_some() => Ok(Some(PathRewrite::Full(text.into()))),
            Some(text) => Ok(Some(PathRewrite::Segments(text.into()))),
        }
    }

    pub(crate) fn rewrite(&mut self, field: &str, rule: &mut HttpRule, hostname: Option<&str>, path: NewPath<'_>) {
        match self.path(&format!("{field}.path"), path) {
            Ok(rewrite) => rule.rewrite = rewrite,
            Err(reason) => rule.action = HttpAction::Invalid(reason),
        }
        if let Some(hostname) = hostname {
            let value = is_authority(hostname).then(|| HeaderValue::from_str(hostname).ok()).flatten();
            if value.is_none() {
                let message = format!("{field}.hostname {} is no host", shown(hostname));
                rule.action = HttpAction::Invalid(self.unsupported("UnsupportedValue", message));
            }
            rule.authority = value;
        }
    }

    /// Where clients are sent: 302, and the port of the scheme where a scheme is named (GEP-1364).
    pub(crate) fn redirect(
        &mut self,
        field: &str,
        (scheme, hostname, port, status): (Option<&str>, Option<&str>, Option<i32>, Option<i64>),
        path: NewPath<'_>,
    ) -> HttpAction {
        let status = match status.unwrap_or(302) {
            status @ (301 | 302 | 303 | 307 | 308) => status as u16,
            other => {
                let message = format!("{field}.statusCode {other} is none of 301, 302, 303, 307, 308");
                return HttpAction::Invalid(self.unsupported("UnsupportedValue", message));
            }
        };
        if let Some(hostname) = hostname.filter(|hostname| !is_authority(hostname)) {
            let message = format!("{field}.hostname {} is no host", shown(hostname));
            return HttpAction::Invalid(self.unsupported("UnsupportedValue", message));
        }
        let path = match self.path(&format!("{field}.path"), path) {
            Ok(path) => path,
            Err(reason) => return HttpAction::Invalid(reason),
        };
        let port = match (port.map(super::super::values::port), scheme) {
            (Some(Some(port)), _) => RedirectPort::Number(port),
            (Some(None), _) => {
                let message = format!("{field}.port is no port");
                return HttpAction::Invalid(self.unsupported("UnsupportedValue", message));
            }
            (None, Some(_)) => RedirectPort::OfScheme,
            (None, None) => RedirectPort::OfRequest,
        };
        HttpAction::Redirect(Redirect {
            status,
            scheme: scheme.map(Into::into),
            authority: hostname.map(Into::into),
            port,
            path,
        })
    }

    pub(crate) fn mirror(
        &mut self,
        field: &str,
        rule: &mut HttpRule,
        to: Backend,
        percent: Option<i32>,
        fraction: Option<(i32, Option<i32>)>,
    ) {
        let share = match (percent, fraction) {
            (None, None) => Some(Share::ALL),
            (Some(percent), None) => Share::percent(f64::from(percent)),
            (None, Some((numerator, denominator))) => u32::try_from(numerator)
                .ok()
                .zip(u32::try_from(denominator.unwrap_or(100)).ok())
                .and_then(|(numerator, denominator)| Share::fraction(numerator, denominator)),
            (Some(_), Some(_)) => None,
        };
        let Some(share) = share else {
            self.unsupported("UnsupportedValue", format!("{field}: percent or fraction is no share of requests"));
            return;
        };
        // One that cannot be resolved has been told; nothing is copied there.
        if let (Backend::Service(service), true) = (to, rule.mirrors.len() < 16) {
            rule.mirrors.push(Mirror { service, share });
        }
    }

    pub(crate) fn cors(
        &mut self,
        field: &str,
        origins: &[String],
        [methods, headers, exposed]: [&[String]; 3],
        max_age: Option<i32>,
        credentials: bool,
    ) -> CorsPolicy {
        let mut list = |name: &str, written: &[String]| {
            let joined = written.join(",");
            let value = (!written.is_empty()).then(|| HeaderValue::from_str(&joined));
            if let Some(Err(_)) = &value {
                self.unsupported("UnsupportedValue", format!("{field}.{name} cannot be in a header"));
            }
            value.and_then(Result::ok)
        };
        let (methods, headers, exposed) =
            (list("allowMethods", methods), list("allowHeaders", headers), list("exposeHeaders", exposed));
        let mut matchers = Vec::new();
        for origin in origins {
            if origin == "*" || !origin.contains('*') {
                matchers.push(StringMatcher::Exact(origin.as_str().into()));
                continue;
            }
            // A wildcard stands for the labels before a domain.
            let escaped = origin.split('*').map(regex::escape).collect::<Vec<_>>().join("[^/]+");
            match Expression::of_all(&escaped) {
                Ok(expression) => matchers.push(StringMatcher::Expression(expression)),
                Err(why) => {
                    self.unsupported("UnsupportedValue", format!("{field}.allowOrigins: {} {why}", shown(origin)));
                }
            }
        }
        let max_age = u64::try_from(max_age.unwrap_or(5)).ok();
        CorsPolicy { origins: matchers, methods, headers, exposed, max_age, credentials, forward_unmatched: true }
    }
}
