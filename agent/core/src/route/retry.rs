//! How often a request is tried again, and after what (Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).

use std::time::Duration;

use smallvec::SmallVec;

/// How often endpoints are chosen anew because the one chosen has been tried.
pub const HOST_SELECTION_ATTEMPTS: u32 = 5;
/// The most retries that a rule may ask for.
pub const MAX_ATTEMPTS: u32 = 100;
const BASE_BACKOFF: Duration = Duration::from_millis(25);

/// How often a request is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// How often, beside the first time.
    pub attempts: u32,
    /// How long each try may take; `None` for as long as all of them.
    pub per_try_timeout: Option<Duration>,
    /// After what.
    pub on: RetryOn,
    /// The base of the exponential back-off.
    pub backoff: Duration,
    /// Whether endpoints that have been tried are passed over, up to [`HOST_SELECTION_ATTEMPTS`] times; not where a
    /// hash chooses them.
    pub avoid_previous_hosts: bool,
    /// Whether a retry prefers localities that have not been tried.
    pub remote_localities: bool,
}

impl Default for RetryPolicy {
    /// Istio's, where nothing is said: twice, after what certainly did not reach the application.
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            on: RetryOn::default(),
            backoff: BASE_BACKOFF,
            avoid_previous_hosts: true,
            remote_localities: false,
        }
    }
}

impl RetryPolicy {
    /// None at all.
    pub fn none() -> Self {
        Self { attempts: 0, ..Self::default() }
    }

    /// How long to wait before retry `number`, which counts from 1: at random below a bound that doubles each time, up
    /// to ten times the base.
    pub fn wait(&self, number: u32, rng: &mut impl rand::Rng) -> Duration {
        let most = self.backoff.saturating_mul(10);
        let factor = 2_u32.checked_pow(number.min(31)).map_or(u32::MAX, |power| power - 1);
        let bound = self.backoff.saturating_mul(factor.max(1)).min(most);
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(rng.random_range(0..nanos.max(1)))
    }
}

/// What a request is tried again after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryOn {
    conditions: u32,
    statuses: SmallVec<[u16; 4]>,
}

/// Something that a request may be tried again after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Condition {
    ServerError = 1,
    GatewayError = 1 << 1,
    Reset = 1 << 2,
    ResetBeforeRequest = 1 << 3,
    ConnectFailure = 1 << 4,
    RefusedStream = 1 << 5,
    Retriable4xx = 1 << 6,
    Statuses = 1 << 7,
    Cancelled = 1 << 8,
    DeadlineExceeded = 1 << 9,
    Internal = 1 << 10,
    ResourceExhausted = 1 << 11,
    Unavailable = 1 << 12,
    RateLimited = 1 << 13,
}

const CONDITIONS: [(&str, Condition); 14] = [
    ("5xx", Condition::ServerError),
    ("gateway-error", Condition::GatewayError),
    ("reset", Condition::Reset),
    ("reset-before-request", Condition::ResetBeforeRequest),
    ("connect-failure", Condition::ConnectFailure),
    ("refused-stream", Condition::RefusedStream),
    ("retriable-4xx", Condition::Retriable4xx),
    ("retriable-status-codes", Condition::Statuses),
    ("cancelled", Condition::Cancelled),
    ("deadline-exceeded", Condition::DeadlineExceeded),
    ("internal", Condition::Internal),
    ("resource-exhausted", Condition::ResourceExhausted),
    ("unavailable", Condition::Unavailable),
    ("envoy-ratelimited", Condition::RateLimited),
];

/// How a try ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// With an answer.
    Response {
        /// Its status.
        status: u16,
        /// The status of gRPC, where it came with the headers.
        grpc_status: Option<u8>,
        /// Whether it has `x-envoy-ratelimited`.
        rate_limited: bool,
    },
    /// No connection was made.
    ConnectFailure,
    /// The server refused the stream before it looked at it (`REFUSED_STREAM`, or GOAWAY below it).
    RefusedStream,
    /// The connection or the stream ended before an answer.
    Reset {
        /// Whether any of the request had been sent.
        request_sent: bool,
    },
    /// The time of the try was up.
    Timeout,
}

impl Default for RetryOn {
    /// Istio's: a server that answered is not asked again, unless it is gRPC and says so.
    fn default() -> Self {
        use Condition::{Cancelled, ConnectFailure, RefusedStream, Statuses, Unavailable};
        let conditions = [ConnectFailure, RefusedStream, Unavailable, Cancelled, Statuses];
        Self { conditions: conditions.iter().fold(0, |all, one| all | *one as u32), statuses: SmallVec::new() }
    }
}

impl RetryOn {
    /// Nothing.
    pub fn nothing() -> Self {
        Self { conditions: 0, statuses: SmallVec::new() }
    }

    /// Reads names and statuses separated by commas, and returns those that are not known beside it.
    pub fn parse(text: &str) -> (Self, Vec<&str>) {
        let mut on = Self::nothing();
        let mut unknown = Vec::new();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let condition = CONDITIONS.iter().find(|(known, _)| *known == name).map(|(_, condition)| *condition);
            match (condition, name.parse::<u16>()) {
                (Some(condition), _) => on.conditions |= condition as u32,
                (None, Ok(status @ 100..=599)) => on.add_status(status),
                _ => unknown.push(name),
            }
        }
        (on, unknown)
    }

    /// Adds a status.
    pub fn add_status(&mut self, status: u16) {
        self.conditions |= Condition::Statuses as u32;
        if !self.statuses.contains(&status) && self.statuses.len() < 64 {
            self.statuses.push(status);
        }
    }

    /// Adds what does not depend on an answer: connections that fail or break off.
    #[must_use]
    pub fn and_connections(mut self) -> Self {
        self.conditions |= Condition::ConnectFailure as u32 | Condition::RefusedStream as u32;
        self
    }

    fn has(&self, condition: Condition) -> bool {
        self.conditions & condition as u32 != 0
    }

    /// Whether a request may be tried again that an endpoint has been sent, in HTTP/2 or not, gRPC or not: then there has
    /// to be a copy of it.
    pub fn reaches_sent(&self, http2: bool, grpc: bool) -> bool {
        use Condition::{
            Cancelled, DeadlineExceeded, GatewayError, Internal, RateLimited, RefusedStream, Reset, ResourceExhausted,
            Retriable4xx, ServerError, Unavailable,
        };
        let any = |conditions: &[Condition]| conditions.iter().any(|condition| self.has(*condition));
        any(&[ServerError, GatewayError, Reset, Retriable4xx, RateLimited])
            || !self.statuses.is_empty()
            || (http2 && self.has(RefusedStream))
            || (grpc && any(&[Cancelled, DeadlineExceeded, Internal, ResourceExhausted, Unavailable]))
    }

    /// Whether a request is tried again that ended like `attempt`.
    pub fn matches(&self, attempt: Attempt) -> bool {
        use Condition::{
            Cancelled, ConnectFailure, DeadlineExceeded, GatewayError, Internal, RateLimited, RefusedStream, Reset,
            ResetBeforeRequest, ResourceExhausted, Retriable4xx, ServerError, Statuses, Unavailable,
        };
        match attempt {
            Attempt::Response { rate_limited: true, .. } => self.has(RateLimited),
            Attempt::Response { status, grpc_status, .. } => {
                let by_status = match status {
                    409 if self.has(Retriable4xx) => true,
                    502..=504 if self.has(GatewayError) => true,
                    500..=599 if self.has(ServerError) => true,
                    status => self.has(Statuses) && self.statuses.contains(&status),
                };
                by_status
                    || match grpc_status {
                        Some(1) => self.has(Cancelled),
                        Some(4) => self.has(DeadlineExceeded),
                        Some(8) => self.has(ResourceExhausted),
                        Some(13) => self.has(Internal),
                        Some(14) => self.has(Unavailable),
                        _ => false,
                    }
            }
            // 5xx and gateway-error are what the client would otherwise be told.
            Attempt::ConnectFailure => [ConnectFailure, ServerError, GatewayError].iter().any(|c| self.has(*c)),
            Attempt::RefusedStream => [RefusedStream, ServerError, Reset].iter().any(|c| self.has(*c)),
            Attempt::Reset { request_sent } => {
                [Reset, ServerError, GatewayError].iter().any(|c| self.has(*c))
                    || (!request_sent && self.has(ResetBeforeRequest))
            }
            Attempt::Timeout => [Reset, ServerError, GatewayError].iter().any(|c| self.has(*c)),
        }
    }
}

impl std::fmt::Display for RetryOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = CONDITIONS.iter().filter(|(_, condition)| self.has(*condition)).map(|(name, _)| (*name).to_owned());
        f.write_str(&names.chain(self.statuses.iter().map(u16::to_string)).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    fn response(status: u16, grpc_status: Option<u8>) -> Attempt {
        Attempt::Response { status, grpc_status, rate_limited: false }
    }

    #[test]
    fn each_condition_is_what_envoy_means_by_it() {
        let reset = |request_sent| Attempt::Reset { request_sent };
        for (on, attempt, expected) in [
            ("5xx", response(500, None), true),
            ("5xx", response(404, None), false),
            ("5xx", Attempt::ConnectFailure, true),
            ("5xx", Attempt::Timeout, true),
            ("gateway-error", response(500, None), false),
            ("gateway-error", response(503, None), true),
            ("gateway-error", reset(true), true),
            ("connect-failure", Attempt::ConnectFailure, true),
            ("connect-failure", reset(false), false),
            ("refused-stream", Attempt::RefusedStream, true),
            ("reset", reset(true), true),
            ("reset", response(503, None), false),
            ("reset-before-request", reset(false), true),
            ("reset-before-request", reset(true), false),
            ("retriable-4xx", response(409, None), true),
            ("retriable-4xx", response(404, None), false),
            ("retriable-status-codes", response(503, None), false),
            ("503", response(503, None), true),
            ("503, 429", response(429, None), true),
            ("cancelled", response(200, Some(1)), true),
            ("deadline-exceeded", response(200, Some(4)), true),
            ("resource-exhausted", response(200, Some(8)), true),
            ("internal", response(200, Some(13)), true),
            ("unavailable", response(200, Some(14)), true),
            ("unavailable", response(200, Some(0)), false),
            ("envoy-ratelimited", Attempt::Response { status: 429, grpc_status: None, rate_limited: true }, true),
            ("429", Attempt::Response { status: 429, grpc_status: None, rate_limited: true }, false),
        ] {
            let (on, unknown) = RetryOn::parse(on);
            assert!(unknown.is_empty());
            assert_eq!(on.matches(attempt), expected, "{on} {attempt:?}");
        }
    }

    #[test]
    fn by_default_a_503_is_not_tried_again_and_a_failed_connection_is() {
        let on = RetryOn::default();
        assert!(!on.matches(response(503, None)));
        assert!(on.matches(Attempt::ConnectFailure) && on.matches(Attempt::RefusedStream));
        assert!(on.matches(response(200, Some(14))) && !on.matches(Attempt::Reset { request_sent: true }));
    }

    #[test]
    fn what_reaches_a_request_that_was_sent_matches_some_end_of_one() {
        let sent = |http2: bool, grpc: bool| {
            let statuses = (400..600).map(|status| response(status, None));
            let grpc = (0..17).filter(move |_| grpc).map(|status| response(200, Some(status)));
            let limited = Attempt::Response { status: 429, grpc_status: None, rate_limited: true };
            let others = [Attempt::Reset { request_sent: true }, Attempt::Timeout, limited];
            let refused = http2.then_some(Attempt::RefusedStream);
            statuses.chain(grpc).chain(others).chain(refused)
        };
        let names = CONDITIONS.iter().map(|(name, _)| *name).chain(["503", "", "connect-failure,reset-before-request"]);
        for on in names.map(|names| RetryOn::parse(names).0).chain([RetryOn::default()]) {
            for (http2, grpc) in [(false, false), (false, true), (true, false), (true, true)] {
                // Of a status of gRPC in what is no gRPC nobody makes anything.
                let expected = sent(http2, grpc).any(|attempt| on.matches(attempt));
                assert_eq!(on.reaches_sent(http2, grpc), expected, "{on} {http2} {grpc}");
            }
        }
    }

    #[test]
    fn names_that_nobody_knows_are_told() {
        assert_eq!(RetryOn::parse("5xx, nonsense,999,").1, ["nonsense", "999"]);
        assert_eq!(RetryOn::parse("503,gateway-error").0.to_string(), "gateway-error,retriable-status-codes,503");
    }

    #[test]
    fn the_wait_doubles_up_to_ten_times_the_base() {
        let policy = RetryPolicy::default();
        let mut rng = SmallRng::seed_from_u64(1);
        for (number, most) in [(1, 25), (2, 75), (3, 175), (4, 250), (50, 250)] {
            let longest = (0..2_000).map(|_| policy.wait(number, &mut rng)).max().unwrap();
            assert!(
                longest < Duration::from_millis(most) && longest > Duration::from_millis(most * 9 / 10),
                "{number}"
            );
        }
    }
}
