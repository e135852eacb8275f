//! Which endpoint a client's requests keep to: by a hash of what they have in common, or by the session that it has.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use culvert_core::route::decide::RouteDecision;
use culvert_core::route::http::HttpRule;
use culvert_core::route::request::{Origin, RequestHead};
use culvert_core::traffic::hash;
use culvert_core::traffic::policy::{Algorithm, HashKey};
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};

use super::Taken;
use super::session::Token;
use crate::waypoint::upstream::{Cluster, token_of};

/// What keeps a client's requests together.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    pub(super) hash: Option<u64>,
    /// For a client that has none yet.
    cookie: Option<HeaderValue>,
    /// The rule that keeps sessions, and the client's.
    session: Option<(Arc<HttpRule>, Option<Token>)>,
}

impl Affinity {
    /// Of a request to `cluster`.
    pub(super) fn of(
        cluster: &Cluster,
        decision: &RouteDecision,
        origin: &Origin<'_>,
        request: &RequestHead<'_>,
    ) -> Self {
        let mut affinity = Self::by_hash(cluster, origin, request);
        if let Some(rule) = &decision.rule
            && let Some(session) = &rule.session
        {
            affinity.session = Some((rule.clone(), Token::read(session, request.headers, now())));
        }
        affinity
    }

    fn by_hash(cluster: &Cluster, origin: &Origin<'_>, request: &RequestHead<'_>) -> Self {
        let Algorithm::Hash(key, _) = &cluster.balancer().settings().algorithm else { return Self::default() };
        match (hash::of_request(key, origin, request), key) {
            (None, HashKey::Cookie(cookie)) => match cookie.issue(rand::random()) {
                Some((hash, cookie)) => Self { hash: Some(hash), cookie: Some(cookie), session: None },
                None => Self::default(),
            },
            (hash, _) => Self { hash, ..Self::default() },
        }
    }

    /// The endpoint that the client's session is with.
    pub(super) fn endpoint(&self) -> Option<u64> {
        self.session.as_ref().and_then(|(_, token)| token.map(|token| token.endpoint))
    }

    /// Tells the client what to come back with, now that `taken` has answered.
    pub(super) fn of_answer(&mut self, headers: &mut HeaderMap, taken: &Taken) {
        let session = self.session.take();
        let told = session.and_then(|(rule, token)| {
            Token::write(rule.session.as_ref()?, token, token_of(&taken.workload, taken.port), now())
        });
        // A header map holds 32 768 at most: then the client is told nothing.
        for (name, value) in told.into_iter().chain(self.cookie.take().map(|cookie| (SET_COOKIE, cookie))) {
            let _ = headers.try_append(name, value);
        }
    }
}

/// In seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
