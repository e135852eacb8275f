//! One resource, for as long as the agent runs: listed once, watched from there on, and listed again when the API
//! server no longer knows where the watch was.
//!
//! This is the work of `kube::runtime::watcher`, which is not used: it reads each page into one text and then into
//! typed objects, so that one bad object fails the whole page for ever, and memory follows the size of the page. Pages
//! rather than streamed lists (`sendInitialEvents`): a server that does not know those ignores the wish without a word,
//! and there is nothing left to gain once a page is cut into objects as it arrives.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use rand::Rng as _;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::definitions::Presence;
use super::request::{self, Address, Failure, Form, Head};
use super::resource::Resource;
use super::sink::{Closed, Piece, Sink};
use super::split::Cut;
use super::status::Board;

/// How long a watch is asked for; the API server ends it then, and it is asked for again. Drawn anew each time, so that
/// a thousand agents do not come back together.
const WATCH_SECONDS: std::ops::Range<u64> = 300..600;
/// A watch that lived this long was a good one.
const GOOD_WATCH: Duration = Duration::from_secs(5);
/// How long an answer that the resource is not there is believed where its definitions cannot be watched.
const ABSENT: Duration = Duration::from_secs(60);
/// The first pause after a failure, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Within which time everyone tries again once one has found that the API server is back.
const RETURN_WITHIN: Duration = Duration::from_millis(300);

/// Follows one resource.
pub(super) struct Follower {
    pub(super) client: Client,
    /// What it is called in the status.
    pub(super) name: Arc<str>,
    /// The paths of its versions, the best first.
    pub(super) versions: Vec<(&'static str, String)>,
    pub(super) form: Form,
    /// Whether it is there, where that is not certain.
    pub(super) presence: Option<watch::Receiver<Presence>>,
    pub(super) sink: Sink,
    pub(super) board: Arc<Board>,
    /// Told by whoever finds that the API server is back.
    pub(super) is_back: Arc<Notify>,
}

impl Follower {
    /// One for `resource`.
    pub(super) fn new(
        resource: &Resource,
        client: Client,
        presence: Option<watch::Receiver<Presence>>,
        sink: Sink,
        board: Arc<Board>,
        is_back: Arc<Notify>,
    ) -> Self {
        let versions = resource.versions.iter().map(|version| (*version, resource.path(version))).collect();
        Self { client, name: resource.name().into(), versions, form: Form::Whole, presence, sink, board, is_back }
    }

    /// Follows it until nobody wants it any more.
    pub(super) async fn run(mut self) {
        let mut pauses = Pauses::default();
        while let Ok(failure) = self.list_and_watch(&mut pauses).await {
            match failure {
                End::Again => {}
                End::Failed(verb, failure) => {
                    let pause = pauses.after(&failure);
                    self.fail(verb, &failure);
                    if matches!(failure, Failure::Forbidden(_)) {
                        self.sink.refused();
                    }
                    self.pause(pause, matches!(failure, Failure::Unreachable(_))).await;
                }
            }
        }
    }

    /// Lists and then watches until something happens that asks for a new list.
    async fn list_and_watch(&mut self, pauses: &mut Pauses) -> Result<End, Closed> {
        let presence = match &mut self.presence {
            None => None,
            Some(presence) => {
                let known = presence.wait_for(|presence| *presence != Presence::Unknown).await;
                Some(known.map_err(|_| Closed)?.clone())
            }
        };
        if let (Some(Presence::Absent), Some(changes)) = (&presence, &mut self.presence) {
            self.sink.nothing().await?;
            self.board.absent(&self.name);
            let _ = changes.wait_for(|presence| *presence != Presence::Absent).await;
            return Ok(End::Again);
        }
        for (version, path) in &self.versions {
            let address = Address { path, form: self.form };
            match list(&self.client, address, &mut self.sink).await? {
                Ok(resource_version) => {
                    pauses.reset();
                    self.board.listed(&self.name, version);
                    self.is_back.notify_waiters();
                    return self.watch(version, &path.clone(), resource_version, presence, pauses).await;
                }
                Err(Failure::NotFound) => {}
                Err(failure) => return Ok(End::Failed("list", failure)),
            }
        }
        self.not_found(presence).await
    }

    /// No version of it is served. While an API server starts it says so of everything that is custom; so this is
    /// believed where the definition is known to be absent, or can be asked for by nobody and nothing is lost.
    async fn not_found(&mut self, presence: Option<Presence>) -> Result<End, Closed> {
        if presence == Some(Presence::Unreadable) && self.board.objects(&self.name) == 0 {
            self.sink.nothing().await?;
            self.board.absent(&self.name);
            let pause = ABSENT.mul_f64(rand::rng().random_range(0.8..1.2));
            self.pause(pause, true).await;
            return Ok(End::Again);
        }
        Ok(End::Failed("list", Failure::NotFound))
    }

    async fn watch(
        &mut self,
        version: &'static str,
        path: &str,
        mut from: String,
        presence: Option<Presence>,
        pauses: &mut Pauses,
    ) -> Result<End, Closed> {
        loop {
            let limit = Duration::from_secs(rand::rng().random_range(WATCH_SECONDS));
            let address = Address { path, form: self.form };
            let started = Instant::now();
            let ended = match request::watch(&self.client, address, &from, limit).await {
                Ok(mut events) => {
                    self.board.watching(&self.name, version);
                    self.is_back.notify_waiters();
                    // The server ends it in time; if it does not, it is not to be relied on.
                    let overdue = tokio::time::sleep(limit + Duration::from_secs(30));
                    tokio::pin!(overdue);
                    loop {
                        tokio::select! {
                            events = events.next() => match events {
                                Ok(Some(events)) => match self.take(events, &mut from).await? {
                                    None => pauses.reset(),
                                    Some(failure) => break Some(failure),
                                },
                                // Cut off, perhaps by a load balancer that had enough: asking again tells more.
                                Ok(None) | Err(Failure::Unreachable(_)) => break None,
                                Err(failure) => break Some(failure),
                            },
                            () = &mut overdue => break None,
                            () = changed(&mut self.presence, &presence) => return Ok(End::Again),
                        }
                    }
                }
                Err(failure) => Some(failure),
            };
            if started.elapsed() >= GOOD_WATCH {
                pauses.reset();
            }
            match ended {
                // The usual end. A watch that is cut ends like this, too.
                None => {
                    let pause = pauses.next();
                    self.pause(pause, false).await;
                }
                Some(Failure::Gone) => return Ok(End::Again),
                Some(failure @ (Failure::NotFound | Failure::Garbled(_))) => return Ok(End::Failed("watch", failure)),
                Some(failure) => {
                    let pause = pauses.after(&failure);
                    self.fail("watch", &failure);
                    self.pause(pause, matches!(failure, Failure::Unreachable(_))).await;
                }
            }
        }
    }

    /// Hands on `events`, and remembers from where the watch can go on.
    async fn take(&mut self, events: Vec<Cut>, from: &mut String) -> Result<Option<Failure>, Closed> {
        let mut objects = Vec::with_capacity(events.len());
        let mut failure = None;
        for event in events {
            let Cut::Object(json) = &event else {
                objects.push(event);
                continue;
            };
            match request::head(json) {
                Ok(Head::Object { is_bookmark, version }) => {
                    *from = version;
                    if !is_bookmark {
                        objects.push(event);
                    }
                }
                Ok(Head::Error(error)) | Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        if !objects.is_empty() {
            self.sink.send(Piece::Events(objects)).await?;
        }
        Ok(failure)
    }

    fn fail(&self, verb: &'static str, failure: &Failure) {
        self.board.failed(&self.name, verb, failure);
    }

    /// Waits; for a moment only, if `until_back` and the API server is found to be back.
    async fn pause(&self, pause: Duration, until_back: bool) {
        let changed = async {
            self.is_back.notified().await;
            let moment = RETURN_WITHIN.mul_f64(rand::rng().random_range(0.0..1.0));
            tokio::time::sleep(moment).await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed, if until_back => {}
        }
    }
}

/// Why a resource is listed again.
enum End {
    /// It is time to.
    Again,
    /// This failed.
    Failed(&'static str, Failure),
}

/// Lists everything at `address`; the version from where to watch.
async fn list(client: &Client, address: Address<'_>, sink: &mut Sink) -> Result<Result<String, Failure>, Closed> {
    let mut next: Option<String> = None;
    loop {
        let mut page = match request::list(client, address, next.as_deref()).await {
            Ok(page) => page,
            Err(failure) => return Ok(Err(failure)),
        };
        if next.is_none() {
            sink.send(Piece::Begin).await?;
        }
        loop {
            match page.next().await {
                Ok(Some(objects)) if objects.is_empty() => {}
                Ok(Some(objects)) => sink.send(Piece::Objects(objects)).await?,
                Ok(None) => break,
                Err(failure) => return Ok(Err(failure)),
            }
        }
        let meta = match page.finish() {
            Ok(meta) => meta,
            Err(failure) => return Ok(Err(failure)),
        };
        match meta.next.filter(|next| !next.is_empty()) {
            Some(token) => next = Some(token),
            None => {
                sink.send(Piece::End).await?;
                return Ok(Ok(meta.resource_version));
            }
        }
    }
}

/// Resolves when the definition of the resource is another than `known`.
async fn changed(presence: &mut Option<watch::Receiver<Presence>>, known: &Option<Presence>) {
    let other = match presence {
        Some(presence) => presence.wait_for(|presence| Some(presence) != known.as_ref()).await.is_ok(),
        None => false,
    };
    if !other {
        std::future::pending::<()>().await;
    }
}

/// How long to wait before the next try: twice as long each time, and a part of it by chance.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
}

impl Pauses {
    fn reset(&mut self) {
        self.failures = 0;
    }

    fn next(&mut self) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16)).min(LONGEST_PAUSE);
        self.failures += 1;
        pause.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// At least as long as the server asks for, within reason.
    fn after(&mut self, failure: &Failure) -> Duration {
        let asked = match failure {
            Failure::Refused { retry_after: Some(asked), .. } => (*asked).min(LONGEST_PAUSE),
            _ => Duration::ZERO,
        };
        self.next() + asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let mut pauses = Pauses::default();
        let drawn: Vec<Duration> = (0..40).map(|_| pauses.next()).collect();
        assert!(drawn[0] <= FIRST_PAUSE && drawn[1] > FIRST_PAUSE.mul_f64(0.9));
        assert!(drawn.iter().all(|pause| *pause <= LONGEST_PAUSE));
        assert!(drawn[30..].iter().any(|pause| *pause != drawn[39]), "no chance in {drawn:?}");
        pauses.reset();
        assert!(pauses.next() <= FIRST_PAUSE);
        let asked = Failure::Refused { code: 429, message: String::new(), retry_after: Some(Duration::from_secs(7)) };
        assert!(pauses.after(&asked) >= Duration::from_secs(7));
    }
}
