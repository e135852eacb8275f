//! From a request's tokens to who it is.

use std::sync::Arc;

use culvert_core::authentication::keys::KeySet;
use culvert_core::authentication::verify::{self, Refusal, Verdict, authenticate, wanted};
use culvert_core::authentication::{Authenticated, JwtRule, KeySource};
use http::request::Parts;
use smallvec::SmallVec;

use super::{Request, refusal, set_path};
use crate::signatures::AwsLc;
use crate::waypoint::http::reply::LocalReply;

/// The key sets that are needed for one request, and had.
type Had = SmallVec<[(KeySource, Option<Arc<KeySet>>); 2]>;

impl Request<'_> {
    /// Reads the request's token, and makes of the request what the rule that accepts it says. `None` if it has none.
    pub(super) async fn authenticate(&self, head: &mut Parts) -> Result<Option<Box<Authenticated>>, Box<LocalReply>> {
        let mut had = Had::new();
        for rule in self.wanted(head) {
            let keys = match self.gate.keys.known(&rule.keys) {
                Some(keys) => Some(keys),
                None => Box::pin(self.gate.keys.want(&rule.keys, rule.timeout)).await,
            };
            had.push((rule.keys.clone(), keys));
        }
        let mut verdict = self.judge(head, &had);
        if verdict == Verdict::Refused(Refusal::Signature) && self.renew(head, &mut had).await {
            verdict = self.judge(head, &had);
        }
        match verdict {
            Verdict::Nobody => Ok(None),
            Verdict::Refused(refusal) => {
                tracing::debug!(source = %self.session.client_address, "refused: {refusal}");
                Err(refusal::unauthenticated(&refusal, head))
            }
            Verdict::Somebody(accepted) => {
                if let Some(place) = accepted.strip {
                    let path = head.uri.path_and_query().map(|path| path.as_str().to_owned()).unwrap_or_default();
                    if let Some(without) = place.remove(&mut head.headers, &path) {
                        // It was a path, and is one without a part of its query.
                        let _ = set_path(head, without);
                    }
                }
                for (name, value) in accepted.headers {
                    head.headers.append(name, value);
                }
                Ok(Some(Box::new(accepted.authenticated)))
            }
        }
    }

    /// Asks for the keys again by which no signature was found to be good: the issuer may have new ones. Whether it has.
    async fn renew(&self, head: &Parts, had: &mut Had) -> bool {
        let mut renewed = false;
        for rule in self.wanted(head) {
            let Some((_, keys)) = had.iter_mut().find(|(source, keys)| *source == rule.keys && keys.is_some()) else {
                continue;
            };
            let newer = Box::pin(self.gate.keys.renew(&rule.keys, rule.timeout)).await;
            if newer.is_some() && newer != *keys {
                *keys = newer;
                renewed = true;
            }
        }
        renewed
    }

    /// The rules whose keys are elsewhere, as far as they are about the request's tokens.
    fn wanted(&self, head: &Parts) -> Vec<&JwtRule> {
        match self.guard.has_remote_keys {
            true => wanted(&self.guard.authentications, &self.asked(head)),
            // Tokens are taken apart only once.
            false => Vec::new(),
        }
    }

    fn judge(&self, head: &Parts, had: &Had) -> Verdict {
        let remote = |source: &KeySource| had.iter().find(|(known, _)| known == source)?.1.clone();
        authenticate(&self.guard.authentications, &self.asked(head), &remote, &AwsLc)
    }

    fn asked<'h>(&self, head: &'h Parts) -> verify::Request<'h> {
        let query = head.uri.query().unwrap_or_default();
        verify::Request { headers: &head.headers, query, now: self.gate.now() }
    }
}
