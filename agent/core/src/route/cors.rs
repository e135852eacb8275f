//! Which web pages may ask: the CORS protocol (Fetch standard), as Envoy's filter carries it out.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    ORIGIN,
};
use http::{HeaderMap, HeaderValue, Method};

use super::pattern::StringMatcher;
use super::request::RequestHead;

/// Which web pages may ask.
#[derive(Clone, Debug, PartialEq)]
pub struct CorsPolicy {
    /// Those of these origins.
    pub origins: Vec<StringMatcher>,
    /// By these methods, as the header has them.
    pub methods: Option<HeaderValue>,
    /// With these headers.
    pub headers: Option<HeaderValue>,
    /// And read these headers of the answer.
    pub exposed: Option<HeaderValue>,
    /// For how many seconds a browser may remember that.
    pub max_age: Option<u64>,
    /// With credentials.
    pub credentials: bool,
    /// Whether the service answers preflights of other origins.
    pub forward_unmatched: bool,
}

/// What the policy says to a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Cors {
    /// Nothing: it is none of a web page, or of one that may not ask.
    #[default]
    None,
    /// A preflight, answered with 200 and these headers.
    Preflight(HeaderMap),
    /// A request whose answer gets these headers.
    Request(HeaderMap),
}

impl CorsPolicy {
    /// What it says to `request`.
    pub fn decide(&self, request: &RequestHead<'_>) -> Cors {
        let Some(origin) = request.headers.get(ORIGIN).filter(|origin| !origin.is_empty()) else { return Cors::None };
        let preflight =
            request.method == Method::OPTIONS && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let any = |matcher: &StringMatcher| matches!(matcher, StringMatcher::Exact(all) if **all == *"*");
        let allowed = self.origins.iter().any(|matcher| any(matcher) || matcher.matches(origin.as_bytes()));
        match (allowed, preflight) {
            (false, true) if !self.forward_unmatched => Cors::Preflight(HeaderMap::new()),
            (false, _) => Cors::None,
            (true, true) => Cors::Preflight(self.preflight(origin)),
            (true, false) => Cors::Request(self.common(origin, self.exposed.as_ref())),
        }
    }

    fn common(&self, origin: &HeaderValue, exposed: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(exposed) = exposed {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
        headers
    }

    fn preflight(&self, origin: &HeaderValue) -> HeaderMap {
        let mut headers = self.common(origin, None);
        if let Some(methods) = &self.methods {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
        }
        if let Some(allowed) = &self.headers {
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed.clone());
        }
        if let Some(age) = self.max_age {
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(age));
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> CorsPolicy {
        CorsPolicy {
            origins: vec![StringMatcher::Exact("https://a.example".into())],
            methods: Some(HeaderValue::from_static("GET,POST")),
            headers: Some(HeaderValue::from_static("x-a")),
            exposed: Some(HeaderValue::from_static("x-b")),
            max_age: Some(60),
            credentials: true,
            forward_unmatched: true,
        }
    }

    fn ask(policy: &CorsPolicy, method: Method, headers: &[(&'static str, &'static str)]) -> Cors {
        let headers = headers.iter().map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_static(v))).collect();
        let request = RequestHead {
            method: &method,
            scheme: "http",
            authority: "a",
            path: "/",
            protocol: "HTTP/1.1",
            headers: &headers,
        };
        policy.decide(&request)
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> = headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    const PREFLIGHT: &[(&str, &str)] = &[("origin", "https://a.example"), ("access-control-request-method", "PUT")];
    const OTHER: &[(&str, &str)] = &[("origin", "https://b.example"), ("access-control-request-method", "PUT")];

    #[test]
    fn a_preflight_of_an_origin_that_may_ask_is_answered() {
        let Cors::Preflight(headers) = ask(&policy(), Method::OPTIONS, PREFLIGHT) else { panic!() };
        assert_eq!(
            lines(&headers),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-headers: x-a",
                "access-control-allow-methods: GET,POST",
                "access-control-allow-origin: https://a.example",
                "access-control-max-age: 60",
            ]
        );
    }

    #[test]
    fn a_preflight_of_another_origin_is_the_services_unless_it_is_to_be_ignored() {
        assert_eq!(ask(&policy(), Method::OPTIONS, OTHER), Cors::None);
        let ignoring = CorsPolicy { forward_unmatched: false, ..policy() };
        assert_eq!(ask(&ignoring, Method::OPTIONS, OTHER), Cors::Preflight(HeaderMap::new()));
        assert_eq!(ask(&ignoring, Method::GET, OTHER), Cors::None);
    }

    #[test]
    fn the_answer_to_a_web_page_says_what_it_may_read() {
        let Cors::Request(headers) = ask(&policy(), Method::GET, &PREFLIGHT[..1]) else { panic!() };
        assert_eq!(
            lines(&headers),
            [
                "access-control-allow-credentials: true",
                "access-control-allow-origin: https://a.example",
                "access-control-expose-headers: x-b",
            ]
        );
        assert_eq!(ask(&policy(), Method::GET, &[]), Cors::None);
        assert!(matches!(ask(&policy(), Method::OPTIONS, &PREFLIGHT[..1]), Cors::Request(_)));
    }
}
