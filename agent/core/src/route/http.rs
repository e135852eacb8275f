//! A rule for requests: what they look like, and what becomes of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use culvert_api::ObjectRef;
use http::HeaderValue;

use super::cors::CorsPolicy;
use super::fault::{Fault, Share};
use super::headers::HeaderOps;
use super::matcher::HttpMatch;
use super::redirect::Redirect;
use super::retry::RetryPolicy;
use super::rewrite::PathRewrite;

/// A rule for requests.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRule {
    /// The object that has it.
    pub resource: ObjectRef,
    /// Its position there.
    pub rule: usize,
    /// The delegate that fills it in, and the position in that.
    pub delegate: Option<(ObjectRef, usize)>,
    /// Its name; of a delegate's, both names.
    pub name: Box<str>,
    /// Any of these; none for every request.
    pub matches: Vec<HttpMatch>,
    /// What becomes of a request.
    pub action: HttpAction,
    /// What is written in place of the path of what is forwarded.
    pub rewrite: Option<PathRewrite>,
    /// What is written in place of the authority of what is forwarded.
    pub authority: Option<HeaderValue>,
    /// What is done to the headers of requests, after what the destination says.
    pub request_headers: HeaderOps,
    /// What is done to the headers of answers, after what the destination says.
    pub response_headers: HeaderOps,
    /// How long the answer may take, with all tries; `None` for as long as it takes.
    pub timeout: Option<Duration>,
    /// How often it is tried again.
    pub retries: RetryPolicy,
    /// What goes wrong on purpose.
    pub fault: Fault,
    /// Who gets copies.
    pub mirrors: Vec<Mirror>,
    /// Which web pages may ask.
    pub cors: Option<CorsPolicy>,
    /// How requests of one client stay together (Gateway API).
    pub session: Option<SessionPersistence>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum HttpAction {
    /// It goes to one of these, by their weights; none has the weight zero.
    Forward(Vec<WeightedBackend>),
    /// Its client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered.
    Respond(DirectResponse),
    /// It is answered with 500: the rule cannot be carried out as it is written, and going on without it would send
    /// the request where it must not go.
    Invalid(Box<str>),
}

/// An answer that nobody was asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct DirectResponse {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: Bytes,
}

/// A destination and its share.
#[derive(Clone, Debug, PartialEq)]
pub struct WeightedBackend {
    /// The destination.
    pub backend: Backend,
    /// Its share, relative to its siblings'.
    pub weight: u32,
    /// What is done to the headers of requests that go there, before what the rule says.
    pub request_headers: HeaderOps,
    /// What is done to the headers of its answers, before what the rule says.
    pub response_headers: HeaderOps,
    /// What is written in place of the authority, if the rule writes nothing.
    pub authority: Option<HeaderValue>,
}

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A service.
    Service(ServiceRef),
    /// None that can be used: what goes there is answered with 500 (Gateway API).
    Invalid(Box<str>),
}

/// A service by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceRef {
    /// Its full host name.
    pub host: Arc<str>,
    /// Its namespace, which is preferred where several have such a host.
    pub namespace: Arc<str>,
    /// Whether it is only meant in that namespace.
    pub only_there: bool,
    /// The part of it that a DestinationRule defines.
    pub subset: Option<Arc<str>>,
    /// Its port; `None` for its only one, or else for the port that was asked.
    pub port: Option<u16>,
}

/// Who gets copies, and of how many requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Who.
    pub service: ServiceRef,
    /// Of how many.
    pub share: Share,
}

/// How requests of one client stay with one endpoint (Gateway API GEP-1619).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPersistence {
    /// The cookie or header that says which.
    pub name: Box<str>,
    /// Whether it is a header.
    pub header: bool,
    /// How long it lasts; `None` for as long as the client.
    pub lifetime: Option<Duration>,
    /// How long it lasts without being used.
    pub idle: Option<Duration>,
}

impl HttpRule {
    /// The rule `rule` of `resource`: for every request, and with nothing done but `action`.
    pub fn new(resource: ObjectRef, rule: usize, action: HttpAction) -> Self {
        Self {
            resource,
            rule,
            delegate: None,
            name: Box::default(),
            matches: Vec::new(),
            action,
            rewrite: None,
            authority: None,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            timeout: None,
            retries: RetryPolicy::default(),
            fault: Fault::default(),
            mirrors: Vec::new(),
            cors: None,
            session: None,
        }
    }

    /// Whether it takes every request.
    pub fn is_catch_all(&self) -> bool {
        self.matches.is_empty() || self.matches.iter().any(HttpMatch::is_catch_all)
    }
}

impl WeightedBackend {
    /// All of the requests to `backend`.
    pub fn all(backend: Backend) -> Self {
        Self {
            backend,
            weight: 1,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
            authority: None,
        }
    }
}

/// One of `weights`, by their shares; `None` if there is none but zeros.
pub(super) fn weighted(weights: impl Iterator<Item = u32> + Clone, rng: &mut impl rand::Rng) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    if total == 0 {
        return None;
    }
    let mut at = rng.random_range(0..total);
    weights.enumerate().find_map(|(index, weight)| match at.checked_sub(u64::from(weight)) {
        Some(rest) => {
            at = rest;
            None
        }
        None => Some(index),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Each is taken as often as its share says, and one without a share never.
        #[test]
        fn requests_are_shared_out_by_weight(
            weights in proptest::collection::vec(0_u32..1_000_000, 1..6),
            seed in any::<u64>(),
        ) {
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut counts = vec![0_u32; weights.len()];
            const DRAWS: u32 = 20_000;
            for _ in 0..DRAWS {
                match weighted(weights.iter().copied(), &mut rng) {
                    Some(index) => counts[index] += 1,
                    None => prop_assert_eq!(total, 0),
                }
            }
            for (count, weight) in counts.iter().zip(&weights).filter(|_| total > 0) {
                let share = f64::from(*weight) / total as f64;
                // Six standard deviations.
                let tolerance = 6.0 * (share * (1.0 - share) / f64::from(DRAWS)).sqrt();
                prop_assert!((f64::from(*count) / f64::from(DRAWS) - share).abs() <= tolerance);
                prop_assert!(*weight > 0 || *count == 0);
            }
        }
    }

    #[test]
    fn absurd_weights_do_not_overflow() {
        let mut rng = SmallRng::seed_from_u64(1);
        assert!(weighted([u32::MAX; 8].into_iter(), &mut rng).is_some());
        assert_eq!(weighted(std::iter::empty(), &mut rng), None);
    }
}
