//! Timeouts, retries, faults, copies and CORS.

use std::time::Duration;

use culvert_api::networking::virtual_service::{
    CorsPolicy as WrittenCors, FaultAbort, FaultDelay, HttpRetry, HttpRoute, Percent, UnmatchedPreflights,
};
use http::{HeaderName, HeaderValue, Method};

use super::super::values::{self, shown};
use super::Reader;
use super::matches::Pattern;
use crate::route::cors::CorsPolicy;
use crate::route::fault::{Abort, Fault, Share, grpc_status};
use crate::route::http::{HttpRule, Mirror};
use crate::route::pattern::StringMatcher;
use crate::route::retry::{MAX_ATTEMPTS, RetryOn, RetryPolicy};

/// The most copies of a request.
const MAX_MIRRORS: usize = 16;

impl Reader<'_, '_> {
    pub(super) fn policies(&mut self, field: &str, route: &HttpRoute, rule: &mut HttpRule) {
        let timeout = route.timeout.as_deref();
        rule.timeout = self.duration(&format!("{field}.timeout"), timeout).filter(|timeout| !timeout.is_zero());
        if let Some(retries) = &route.retries {
            rule.retries = self.retries(&format!("{field}.retries"), retries);
        }
        if let Some(fault) = &route.fault {
            let field = format!("{field}.fault");
            if fault.delay.is_none() && fault.abort.is_none() {
                self.warning(&field, "says nothing: set delay or abort");
            }
            let delay = fault.delay.as_ref().and_then(|delay| self.delay(&format!("{field}.delay"), delay));
            let abort = fault.abort.as_ref().and_then(|abort| self.abort(&format!("{field}.abort"), abort));
            rule.fault = Fault { delay, abort };
        }
        rule.mirrors = self.mirrors(field, route);
        rule.cors = route.cors_policy.as_ref().map(|cors| self.cors(&format!("{field}.corsPolicy"), cors));
    }

    /// A duration; what is none has no effect.
    pub(super) fn duration(&mut self, field: &str, written: Option<&str>) -> Option<Duration> {
        let written = written.filter(|written| !written.is_empty())?;
        let duration = values::duration(written);
        if duration.is_none() {
            self.error(field, format!("{} is no duration, such as 1.5s: it has no effect", shown(written)));
        }
        duration
    }

    fn retries(&mut self, field: &str, written: &HttpRetry) -> RetryPolicy {
        let default = RetryPolicy::default();
        let attempts = match u32::try_from(written.attempts) {
            Ok(attempts) if attempts <= MAX_ATTEMPTS => attempts,
            Ok(_) => {
                self.error(format!("{field}.attempts"), format!("is more than {MAX_ATTEMPTS}: read as that"));
                MAX_ATTEMPTS
            }
            Err(_) => {
                self.error(format!("{field}.attempts"), "is negative: nothing is tried again");
                0
            }
        };
        let (on, unknown) = RetryOn::parse(&written.retry_on);
        for name in unknown {
            self.error(format!("{field}.retryOn"), format!("{} is no condition: it has no effect", shown(name)));
        }
        if attempts == 0 && (!written.retry_on.is_empty() || written.per_try_timeout.is_some()) {
            self.warning(
                format!("{field}.attempts"),
                "is 0: nothing is tried again; leave retries out for the default",
            );
        }
        let per_try = self.duration(&format!("{field}.perTryTimeout"), written.per_try_timeout.as_deref());
        let backoff = self.duration(&format!("{field}.backoff"), written.backoff.as_deref());
        RetryPolicy {
            attempts,
            per_try_timeout: per_try.filter(|timeout| !timeout.is_zero()),
            on: if written.retry_on.trim().is_empty() { default.on } else { on },
            backoff: backoff.filter(|backoff| !backoff.is_zero()).unwrap_or(default.backoff),
            avoid_previous_hosts: written.retry_ignore_previous_hosts.unwrap_or(default.avoid_previous_hosts),
            remote_localities: written.retry_remote_localities.unwrap_or(default.remote_localities),
        }
    }

    fn share(&mut self, field: &str, written: Option<Percent>) -> Option<Share> {
        match values::percent(written?.value) {
            Ok(share) => Some(share),
            Err(message) => {
                self.error(format!("{field}.value"), format!("{message}: read as 0"));
                Some(Share::percent(0.0)?)
            }
        }
    }

    fn delay(&mut self, field: &str, written: &FaultDelay) -> Option<(Share, Duration)> {
        if written.exponential_delay.is_some() {
            self.error(format!("{field}.exponentialDelay"), "is not supported, and has no effect: use fixedDelay");
        }
        let deprecated = (written.percent != 0).then(|| Percent { value: f64::from(written.percent) });
        let share = self.share(&format!("{field}.percentage"), written.percentage.or(deprecated));
        if share.is_none() {
            self.warning(field, "has no percentage, and so delays no request: set percentage.value");
        }
        let delay = self.duration(&format!("{field}.fixedDelay"), written.fixed_delay.as_deref())?;
        Some((share?, delay))
    }

    fn abort(&mut self, field: &str, written: &FaultAbort) -> Option<(Share, Abort)> {
        let share = self.share(&format!("{field}.percentage"), written.percentage);
        if share.is_none() {
            self.warning(field, "has no percentage, and so aborts no request: set percentage.value");
        }
        let abort = match (written.http_status, &written.grpc_status, &written.http2_error) {
            (Some(status), None, None) => match u16::try_from(status) {
                Ok(status @ 200..=599) => Ok(Abort::Http(status)),
                _ => Err(format!("httpStatus {status} is not from 200 to 599")),
            },
            (None, Some(name), None) => {
                grpc_status(name).map(Abort::Grpc).ok_or_else(|| format!("grpcStatus {} is none", shown(name)))
            }
            (None, None, Some(_)) => Err("http2Error is not supported: use httpStatus or grpcStatus".to_owned()),
            (None, None, None) => Err("says nothing: set httpStatus or grpcStatus".to_owned()),
            _ => Err("has more than one of httpStatus, grpcStatus and http2Error".to_owned()),
        };
        match abort {
            Ok(abort) => Some((share?, abort)),
            Err(message) => {
                self.error(field, format!("{message}; it has no effect"));
                None
            }
        }
    }

    fn mirrors(&mut self, field: &str, route: &HttpRoute) -> Vec<Mirror> {
        if route.mirror.is_some() && !route.mirrors.is_empty() {
            self.error(format!("{field}.mirrors"), "goes not with mirror: both have effect; write mirrors alone");
        }
        if route.mirrors.len() > MAX_MIRRORS {
            self.error(format!("{field}.mirrors"), format!("more than {MAX_MIRRORS}: the rest has no effect"));
        }
        let deprecated = route.mirror_percent.map(|percent| Percent { value: f64::from(percent) });
        let one = route.mirror.as_ref().map(|to| ("mirror".to_owned(), to, route.mirror_percentage.or(deprecated)));
        let several = route.mirrors.iter().take(MAX_MIRRORS).enumerate();
        let several =
            several.map(|(at, mirror)| (format!("mirrors[{at}].destination"), &mirror.destination, mirror.percentage));
        let mut mirrors = Vec::new();
        for (name, to, percentage) in one.into_iter().chain(several) {
            let field = format!("{field}.{name}");
            let share = self.share(&field, percentage).unwrap_or(Share::ALL);
            match self.destination(&field, to) {
                Ok(service) => mirrors.push(Mirror { service, share }),
                Err(reason) => self.error(field, format!("{reason}: nothing is copied")),
            }
        }
        mirrors
    }

    fn cors(&mut self, field: &str, written: &WrittenCors) -> CorsPolicy {
        let mut origins = Vec::new();
        for (at, origin) in written.allow_origins.iter().enumerate() {
            match self.pattern(&format!("{field}.allowOrigins[{at}]"), origin) {
                Ok(Pattern::Is(matcher)) => origins.push(matcher),
                Ok(Pattern::Any) => self.error(format!("{field}.allowOrigins[{at}]"), "says nothing: it allows nobody"),
                Err(_) => {}
            }
        }
        if written.allow_origins.is_empty() {
            let exact = |origin: &String| StringMatcher::Exact(origin.as_str().into());
            origins.extend(written.allow_origin.iter().map(exact));
        }
        if origins.is_empty() {
            self.warning(field, "allows no origin: set allowOrigins");
        }
        let is_method = |text: &str| text == "*" || Method::from_bytes(text.as_bytes()).is_ok();
        let is_header = |text: &str| text == "*" || HeaderName::from_bytes(text.as_bytes()).is_ok();
        let max_age = self.duration(&format!("{field}.maxAge"), written.max_age.as_deref());
        if max_age.is_some_and(|age| age.subsec_nanos() != 0) {
            self.warning(format!("{field}.maxAge"), "is cut to whole seconds");
        }
        CorsPolicy {
            origins,
            methods: self.list(&format!("{field}.allowMethods"), &written.allow_methods, &is_method),
            headers: self.list(&format!("{field}.allowHeaders"), &written.allow_headers, &is_header),
            exposed: self.list(&format!("{field}.exposeHeaders"), &written.expose_headers, &is_header),
            max_age: max_age.map(|age| age.as_secs()),
            credentials: written.allow_credentials.unwrap_or(false),
            forward_unmatched: written.unmatched_preflights != Some(UnmatchedPreflights::Ignore),
        }
    }

    fn list(&mut self, field: &str, written: &[String], is_one: &dyn Fn(&str) -> bool) -> Option<HeaderValue> {
        let mut kept: Vec<&str> = Vec::new();
        for (at, text) in written.iter().enumerate() {
            match is_one(text) {
                true => kept.push(text),
                false => self.error(format!("{field}[{at}]"), format!("{} is none: left out", shown(text))),
            }
        }
        (!kept.is_empty()).then(|| HeaderValue::from_str(&kept.join(",")).ok()).flatten()
    }
}
