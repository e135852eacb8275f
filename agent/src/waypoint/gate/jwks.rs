//! The keys of issuers that are elsewhere: fetched once for all requests, and again before anybody has to wait.
//!
//! One task for each place fetches, so that however many requests want its keys it is asked once at a time. Keys that
//! were had stay good while their place does not answer: an issuer that is down must not shut out whoever has a token.
//! A place that has never answered is asked less and less often, and nobody waits for it meanwhile.

mod address;
mod client;
mod fetch;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_core::authentication::KeySource;
use culvert_core::authentication::keys::KeySet;
use culvert_core::mesh::Snapshot;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use self::fetch::Fetcher;
use super::reach::Reach;
use crate::telemetry::PeerLine;

/// How old keys become before they are fetched again, as in Istio.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// How long a place is left alone after it was asked, whoever sends tokens that its keys have not signed.
const RENEW: Duration = Duration::from_secs(30);
/// How soon a place that has failed is asked again; twice as long each time, up to the last.
const BACK_OFF: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// After how many refreshes that nobody asked between the keys are forgotten: their rule may be gone.
const IDLE: u32 = 2;
/// The most places that are remembered. They are written in objects, so more is unusual.
const MAX_PLACES: usize = 1024;

/// Fetches a key set; `Err` says why not, in one line.
pub(super) trait Fetch: Send + Sync {
    /// The keys there are now.
    fn fetch(&self, source: KeySource, within: Duration) -> BoxFuture<'static, Result<KeySet, String>>;
}

/// The key sets that are known. Clones are one.
#[derive(Clone)]
pub(super) struct Keys(Arc<Inner>);

struct Inner {
    fetch: Arc<dyn Fetch>,
    /// Read by every request with a token, and written when there is a new place.
    places: ArcSwap<HashMap<Place, Arc<Entry>>>,
    start: Instant,
}

/// Where keys are, as [`KeySource`] has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Place {
    Url(Arc<str>),
    Discovery(Arc<str>),
}

impl Place {
    /// `None` for keys that are not elsewhere.
    fn of(source: &KeySource) -> Option<Self> {
        match source {
            KeySource::Inline(_) => None,
            KeySource::Url(url) => Some(Self::Url(url.clone())),
            KeySource::Discovery(issuer) => Some(Self::Discovery(issuer.clone())),
        }
    }
}

/// What is known of a place.
struct Entry {
    known: watch::Sender<Known>,
    /// Wakes the task before it is time.
    renew: Notify,
    /// When somebody last wanted the keys, in milliseconds since the start.
    wanted: AtomicU64,
}

impl Entry {
    /// Waits until `due`, or until somebody asks and the place has been left alone for long enough.
    async fn rest(&self, due: Instant) {
        loop {
            tokio::select! {
                () = sleep_until(due) => return,
                // Whoever asked while the last answer was on its way has had it.
                () = self.renew.notified() => if self.may_be_renewed() { return },
            }
        }
    }

    fn may_be_renewed(&self) -> bool {
        self.known.borrow().asked.is_some_and(|asked| asked.elapsed() >= RENEW)
    }
}

#[derive(Clone, Debug, Default)]
struct Known {
    keys: Option<Arc<KeySet>>,
    /// When the place was last asked and has answered, or failed to; `None` while it never has.
    asked: Option<Instant>,
}

impl Keys {
    /// No keys yet. `mesh` says which servers are in the mesh, and `reach` goes to those.
    pub(super) fn new(mesh: Arc<ArcSwap<Snapshot>>, reach: Arc<dyn Reach>) -> Self {
        Self::with(Arc::new(Arc::new(Fetcher::new(mesh, reach))))
    }

    pub(super) fn with(fetch: Arc<dyn Fetch>) -> Self {
        Self(Arc::new(Inner { fetch, places: ArcSwap::default(), start: Instant::now() }))
    }

    /// The keys of `source`, if they were had already.
    pub(super) fn known(&self, source: &KeySource) -> Option<Arc<KeySet>> {
        let places = self.0.places.load();
        let entry = places.get(&Place::of(source)?)?;
        entry.wanted.store(self.0.millis(), Ordering::Relaxed);
        let known = entry.known.borrow();
        known.keys.clone()
    }

    /// The keys of `source`, waited for where they never were asked for: `within` at the most.
    pub(super) async fn want(&self, source: &KeySource, within: Duration) -> Option<Arc<KeySet>> {
        let mut known = self.entry(source, within)?.known.subscribe();
        let answered = timeout(within, known.wait_for(|known| known.asked.is_some())).await;
        answered.ok()?.ok()?.keys.clone()
    }

    /// The keys of `source`, asked for again unless they just were; `None` if that takes longer than `within`.
    pub(super) async fn renew(&self, source: &KeySource, within: Duration) -> Option<Arc<KeySet>> {
        let entry = self.entry(source, within)?;
        let mut known = entry.known.subscribe();
        known.mark_unchanged();
        if entry.may_be_renewed() {
            entry.renew.notify_one();
            timeout(within, known.changed()).await.ok()?.ok()?;
        }
        let known = known.borrow();
        known.keys.clone()
    }

    /// What is known of a place, and somebody who sees to it.
    fn entry(&self, source: &KeySource, within: Duration) -> Option<Arc<Entry>> {
        let place = Place::of(source)?;
        if let Some(entry) = self.0.places.load().get(&place) {
            entry.wanted.store(self.0.millis(), Ordering::Relaxed);
            return Some(entry.clone());
        }
        let fresh = Arc::new(Entry {
            known: watch::Sender::new(Known::default()),
            renew: Notify::new(),
            wanted: AtomicU64::new(self.0.millis()),
        });
        let before = self.0.places.rcu(|places| {
            let mut places = HashMap::clone(places);
            if places.len() < MAX_PLACES {
                places.entry(place.clone()).or_insert_with(|| fresh.clone());
            }
            places
        });
        if let Some(entry) = before.get(&place) {
            return Some(entry.clone());
        }
        if before.len() >= MAX_PLACES {
            if PeerLine::KeySetRefused.may_be_written() {
                tracing::warn!(
                    "keys refused: {} are not fetched, since those of {MAX_PLACES} places are known already",
                    name(source)
                );
            }
            return None;
        }
        tokio::spawn(self.clone().tend(source.clone(), place, within, fresh.clone()));
        Some(fresh)
    }

    /// Fetches the keys of a place for as long as somebody wants them.
    async fn tend(self, source: KeySource, place: Place, within: Duration, entry: Arc<Entry>) {
        // Whatever becomes of this task, nobody must wait for a place that nothing sees to.
        let _forget = Forget { keys: self.clone(), place };
        let mut failures: u32 = 0;
        let mut idle = 0;
        loop {
            let began = self.0.millis();
            let fetched = self.0.fetch.fetch(source.clone(), within).await;
            let wait = match &fetched {
                Ok(_) => REFRESH,
                Err(_) => BACK_OFF[0].saturating_mul(1 << failures.min(16)).min(BACK_OFF[1]),
            };
            failures = if fetched.is_ok() { 0 } else { failures + 1 };
            Self::note(&source, fetched, failures, &entry);
            entry.rest(Instant::now() + wait).await;
            // A failure is retried soon, whoever asks; what counts is time without anybody asking.
            let unwanted = entry.wanted.load(Ordering::Relaxed) < began;
            idle = if unwanted && wait == REFRESH {
                idle + 1
            } else if unwanted {
                idle
            } else {
                0
            };
            if idle >= IDLE {
                return;
            }
        }
    }

    /// Puts what was fetched in its place; what was had before stays where nothing was.
    fn note(source: &KeySource, fetched: Result<KeySet, String>, failures: u32, entry: &Entry) {
        let asked = Some(Instant::now());
        match fetched {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "keys of {} fetched", name(source));
                entry.known.send_replace(Known { keys: Some(Arc::new(keys)), asked });
            }
            Err(why) => {
                let kept = entry.known.borrow().keys.is_some();
                // The first says it; more of the same are counted.
                if PeerLine::KeySetRefused.may_be_written() && failures.is_power_of_two() {
                    let then = if kept { "those from before are used" } else { "its tokens are refused" };
                    tracing::warn!(failures, "keys refused: {}: {why}; until they can be had {then}", name(source));
                }
                entry.known.send_modify(|known| known.asked = asked);
            }
        }
    }
}

impl Inner {
    fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Lets go of a place when nobody sees to it any more.
struct Forget {
    keys: Keys,
    place: Place,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.keys.0.places.rcu(|places| {
            let mut places = HashMap::clone(places);
            places.remove(&self.place);
            places
        });
    }
}

/// Where keys are, for people.
fn name(source: &KeySource) -> String {
    match source {
        KeySource::Inline(_) => "the rule itself".to_owned(),
        KeySource::Url(url) => format!("jwksUri {url}"),
        KeySource::Discovery(issuer) => format!("issuer {issuer}"),
    }
}
