//! Names of DNS ServiceEntries, by the node's resolver.
//!
//! The system's resolver takes a thread for each question, for half a minute where no server answers, and cannot be told
//! to stop. So each name is asked for once at a time, whoever waits for it; failures are remembered as well as answers;
//! and few names are asked for at once.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use smallvec::SmallVec;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// How long an answer is used. The system's resolver does not tell the records' own time.
const KEEP: Duration = Duration::from_secs(10);
/// How long a failure is.
const KEEP_FAILURE: Duration = Duration::from_secs(5);
/// How long a connection waits for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Names that are remembered or waited for; they come from ServiceEntries, so more is unusual.
const MAX_NAMES: usize = 4096;
/// Names that are asked for at once, a thread each.
const MAX_LOOKUPS: usize = 16;

pub(crate) type Addresses = SmallVec<[SocketAddr; MAX_ADDRESSES]>;

/// The addresses of `host`, by the node's resolver. `asked` counts what is asked for, known already or not.
///
/// # Errors
/// What the resolver says, or that it took more than 5 s.
pub(crate) async fn resolve(host: &Arc<str>, port: u16, asked: &Counter) -> io::Result<Addresses> {
    static NODE: LazyLock<Resolver> =
        LazyLock::new(|| Resolver::new(|host, port| Ok((host, port).to_socket_addrs()?.take(MAX_ADDRESSES).collect())));
    asked.inc();
    NODE.resolve(host, port).await
}

type LookUp = dyn Fn(&str, u16) -> io::Result<Addresses> + Send + Sync;

/// `None` until there is one.
type Answering = watch::Receiver<Option<Answer>>;

struct Resolver {
    /// Blocks.
    look_up: Arc<LookUp>,
    lookups: Arc<Semaphore>,
    /// By name and port.
    names: Mutex<HashMap<(Arc<str>, u16), Answering>>,
}

/// What the resolver said, and until when that is used.
#[derive(Clone)]
struct Answer {
    until: Instant,
    found: Result<Addresses, (io::ErrorKind, Arc<str>)>,
}

impl Resolver {
    fn new(look_up: impl Fn(&str, u16) -> io::Result<Addresses> + Send + Sync + 'static) -> Self {
        Self { look_up: Arc::new(look_up), lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)), names: Mutex::default() }
    }

    async fn resolve(&self, host: &Arc<str>, port: u16) -> io::Result<Addresses> {
        let mut answer = self.ask(host, port)?;
        let answered = tokio::time::timeout(TIMEOUT, answer.wait_for(Option::is_some)).await;
        let answered = answered.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        match answered.map_err(io::Error::other)?.as_ref().map(|answer| &answer.found) {
            Some(Ok(addresses)) => Ok(addresses.clone()),
            Some(Err((kind, text))) => Err(io::Error::new(*kind, &**text)),
            None => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The answer that is known or on its way, or else the one to a question that is begun.
    fn ask(&self, host: &Arc<str>, port: u16) -> io::Result<Answering> {
        let key = (host.clone(), port);
        let now = Instant::now();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = names.get(&key).filter(|answer| is_of_use(answer, now)) {
            return Ok(answer.clone());
        }
        if names.len() >= MAX_NAMES {
            names.retain(|_, answer| is_of_use(answer, now));
        }
        if names.len() >= MAX_NAMES && !names.contains_key(&key) {
            return Err(io::Error::other(format!("{MAX_NAMES} other names are asked for")));
        }
        let (tell, answer) = watch::channel(None);
        names.insert(key, answer.clone());
        self.begin(host.clone(), port, tell);
        Ok(answer)
    }

    fn begin(&self, host: Arc<str>, port: u16, tell: watch::Sender<Option<Answer>>) {
        let (lookups, look_up) = (self.lookups.clone(), self.look_up.clone());
        tokio::spawn(async move {
            let permit = lookups.acquire_owned().await;
            let looked_up = tokio::task::spawn_blocking(move || {
                // For as long as the thread is taken, whoever still waits for it.
                let _permit = permit;
                look_up(&host, port)
            });
            let found = looked_up.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            let keep = if found.is_ok() { KEEP } else { KEEP_FAILURE };
            let found = found.map_err(|error| (error.kind(), error.to_string().into()));
            tell.send_replace(Some(Answer { until: Instant::now() + keep, found }));
        });
    }
}

/// Whether it is on its way, or has come and is not too old.
fn is_of_use(answer: &Answering, now: Instant) -> bool {
    match &*answer.borrow() {
        Some(answer) => now < answer.until,
        // Who asked is gone with the thread it ran on: nobody will say anything.
        None => answer.has_changed().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::advance;

    use super::*;

    const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 80);

    /// A resolver whose lookups each wait for a word on what to say, and the counts of those begun and under way.
    #[derive(Clone)]
    struct Scene {
        resolver: Arc<Resolver>,
        say: std::sync::mpsc::Sender<bool>,
        begun: Arc<AtomicUsize>,
        under_way: Arc<AtomicUsize>,
    }

    impl Scene {
        fn new() -> Self {
            let (say, said) = std::sync::mpsc::channel();
            let (begun, under_way) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let (said, counts) = (Mutex::new(said), (begun.clone(), under_way.clone()));
            let resolver = Resolver::new(move |_, _| {
                counts.0.fetch_add(1, Ordering::SeqCst);
                counts.1.fetch_add(1, Ordering::SeqCst);
                let known = said.lock().unwrap().recv().unwrap();
                counts.1.fetch_sub(1, Ordering::SeqCst);
                if known { Ok(SmallVec::from_iter([ADDRESS])) } else { Err(io::Error::other("no such name")) }
            });
            Self { resolver: Arc::new(resolver), say, begun, under_way }
        }

        fn ask(&self, host: &str) -> tokio::task::JoinHandle<io::Result<Addresses>> {
            let (resolver, host) = (self.resolver.clone(), host.into());
            tokio::spawn(async move { resolver.resolve(&host, 80).await })
        }

        async fn until_begun(&self, count: usize) {
            while self.begun.load(Ordering::SeqCst) < count {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_ask_for_a_name_it_is_looked_up_once_until_the_answer_is_too_old() {
        let scene = Scene::new();
        let askers: Vec<_> = (0..100).map(|_| scene.ask("a")).collect();
        scene.until_begun(1).await;
        scene.say.send(true).unwrap();
        for asker in askers {
            assert_eq!(asker.await.unwrap().unwrap()[..], [ADDRESS]);
        }
        assert_eq!(scene.begun.load(Ordering::SeqCst), 1);
        advance(KEEP).await;
        scene.say.send(true).unwrap();
        scene.ask("a").await.unwrap().unwrap();
        assert_eq!(scene.begun.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_does_not_resolve_is_asked_for_again_only_after_a_while() {
        let scene = Scene::new();
        scene.say.send(false).unwrap();
        for _ in 0..10 {
            assert!(scene.ask("a").await.unwrap().unwrap_err().to_string().contains("no such name"));
        }
        assert_eq!(scene.begun.load(Ordering::SeqCst), 1);
        advance(KEEP_FAILURE).await;
        scene.say.send(true).unwrap();
        scene.ask("a").await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told_and_the_next_waits_for_the_same_lookup() {
        let scene = Scene::new();
        let asker = scene.ask("a");
        scene.until_begun(1).await;
        advance(TIMEOUT).await;
        assert_eq!(asker.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        let next = scene.ask("a");
        tokio::task::yield_now().await;
        scene.say.send(true).unwrap();
        next.await.unwrap().unwrap();
        assert_eq!(scene.begun.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn few_names_are_looked_up_at_once() {
        let scene = Scene::new();
        let askers: Vec<_> = (0..4 * MAX_LOOKUPS).map(|n| scene.ask(&n.to_string())).collect();
        for done in 0..askers.len() {
            scene.until_begun((done + MAX_LOOKUPS).min(askers.len())).await;
            assert!(scene.under_way.load(Ordering::SeqCst) <= MAX_LOOKUPS);
            scene.say.send(true).unwrap();
        }
        for asker in askers {
            asker.await.unwrap().unwrap();
        }
    }
}
