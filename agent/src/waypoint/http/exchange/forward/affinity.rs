//! Which endpoint a client's requests keep to, by a hash of what they have in common.

use culvert_core::route::request::{Origin, RequestHead};
use culvert_core::traffic::hash;
use culvert_core::traffic::policy::{Algorithm, HashKey};
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};

use crate::waypoint::upstream::Cluster;

/// What keeps a client's requests together.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    pub(super) hash: Option<u64>,
    /// For a client that has none yet.
    cookie: Option<HeaderValue>,
}

impl Affinity {
    /// Of a request to `cluster`.
    pub(super) fn of(cluster: &Cluster, origin: &Origin<'_>, request: &RequestHead<'_>) -> Self {
        let Algorithm::Hash(key, _) = &cluster.balancer().settings().algorithm else { return Self::default() };
        match (hash::of_request(key, origin, request), key) {
            (None, HashKey::Cookie(cookie)) => match cookie.issue(rand::random()) {
                Some((hash, cookie)) => Self { hash: Some(hash), cookie: Some(cookie) },
                None => Self::default(),
            },
            (hash, _) => Self { hash, cookie: None },
        }
    }

    /// Tells the client what to come back with.
    pub(super) fn of_answer(&mut self, headers: &mut HeaderMap) {
        if let Some(cookie) = self.cookie.take() {
            // A header map holds 32 768 at most: then there is no cookie.
            let _ = headers.try_append(SET_COOKIE, cookie);
        }
    }
}
