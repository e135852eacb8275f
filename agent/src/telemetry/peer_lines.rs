//! Lines of the log that strangers cause: at most [`PER_SECOND`] of each sort are written in a second, and one that
//! says how many were left out. A peer must not fill the disk of the node.
//!
//! Everything is counted, written or not: `culvert_peer_events_total{event}`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::samples::Sample;

/// How many lines of one sort are written in a second.
const PER_SECOND: u32 = 20;
const WINDOW: Duration = Duration::from_secs(1);

macro_rules! sorts {
    ($($(#[$doc:meta])* $sort:ident = $name:literal,)*) => {
        /// A sort of line that a peer can cause before it is let in, or because it is not.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum PeerLine { $($(#[$doc])* $sort,)* }

        impl PeerLine {
            /// All of them.
            const ALL: &'static [Self] = &[$(Self::$sort),*];

            /// What happened, in words.
            pub fn name(self) -> &'static str {
                match self { $(Self::$sort => $name,)* }
            }

            fn limit(self) -> &'static Limit {
                match self { $(Self::$sort => {
                    static LIMIT: LazyLock<Limit> = LazyLock::new(|| Limit::new($name));
                    &LIMIT
                })* }
            }
        }
    };
}

sorts! {
    /// A tunnel did not come about.
    TunnelRefused = "tunnel refused",
    /// A tunnel did not come about because its peer, or all together, had too many.
    TunnelFull = "tunnel over a limit",
    /// A tunnel was ended because its peer broke the rules.
    TunnelEnded = "tunnel ended",
    /// A CONNECT led nowhere.
    StreamRefused = "stream refused",
    /// A policy on trial was asked.
    DryRun = "dry run",
    /// An authorization provider gave no answer.
    ProviderFailed = "authorization provider failed",
    /// A key set was not to be had.
    KeySetRefused = "key set refused",
    /// Connections had to wait for descriptors or memory.
    Exhausted = "connections wait",
}

impl PeerLine {
    /// Counts the event, and says whether its line is to be written. If not, a line that says how many were left out
    /// is written when the second is over.
    pub fn may_be_written(self) -> bool {
        self.limit().admit()
    }

    /// Counts the event only, for lines that are bounded otherwise.
    pub fn happened(self) {
        self.limit().0.events.fetch_add(1, Ordering::Relaxed);
    }

    /// How often each has happened.
    pub(super) fn samples() -> Vec<Sample> {
        let each = Self::ALL.iter();
        each.map(|sort| Sample {
            labels: vec![("event", sort.name().to_owned())],
            value: sort.limit().0.events.load(Ordering::Relaxed),
        })
        .collect()
    }
}

/// Admits [`PER_SECOND`] lines each second.
#[derive(Clone)]
pub(super) struct Limit(Arc<Inner>);

struct Inner {
    name: &'static str,
    events: AtomicU64,
    window: Mutex<Window>,
}

#[derive(Default)]
struct Window {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Limit {
    /// For lines of this name.
    pub(super) fn new(name: &'static str) -> Self {
        Self(Arc::new(Inner { name, events: AtomicU64::new(0), window: Mutex::default() }))
    }

    /// Counts one, and says whether it is to be written.
    pub(super) fn admit(&self) -> bool {
        self.0.events.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut window = self.0.window.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match window.since {
            Some(since) if now.saturating_duration_since(since) < WINDOW => since,
            _ => {
                window.since = Some(now);
                window.lines = 0;
                now
            }
        };
        if window.lines < PER_SECOND {
            window.lines += 1;
            return true;
        }
        window.left_out += 1;
        if window.left_out == 1 {
            self.tell_at(since + WINDOW);
        }
        false
    }

    /// Has it said at `end` how many lines were left out. Outside of a runtime nobody can: only the counter tells.
    fn tell_at(&self, end: Instant) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let this = self.0.clone();
        runtime.spawn(async move {
            tokio::time::sleep_until(end).await;
            let left_out = std::mem::take(&mut this.window.lock().unwrap_or_else(PoisonError::into_inner).left_out);
            tracing::warn!(
                left_out,
                "{}: more lines of this sort were left out, {PER_SECOND} a second are written; look at what the peers do",
                this.name
            );
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::logging::LogFormat;
    use super::super::logging::testing::logged;
    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(test);
    }

    /// How many of `count` lines are admitted.
    fn admitted(limit: &Limit, count: u32) -> usize {
        (0..count).filter(|_| limit.admit()).count()
    }

    #[test]
    fn a_flood_is_written_as_so_many_lines_a_second_and_one_that_counts_the_rest() {
        let limit = Limit::new("flood");
        let log = logged(LogFormat::Text, "info", |_| {
            run(async {
                assert_eq!(admitted(&limit, 1000), PER_SECOND as usize);
                tokio::time::sleep(WINDOW / 2).await;
                assert_eq!(admitted(&limit, 50), 0);
                tokio::time::sleep(WINDOW).await;
                assert_eq!(admitted(&limit, 5), 5);
                tokio::time::sleep(WINDOW * 10).await;
            });
        });
        assert_eq!(log.lines().count(), 1, "{log}");
        assert!(log.contains("flood: more lines of this sort were left out") && log.contains("left_out=1030"), "{log}");
        assert_eq!(limit.0.events.load(Ordering::Relaxed), 1055);
    }

    #[test]
    fn a_flood_that_lasts_is_told_of_every_second() {
        let limit = Limit::new("lasting flood");
        let log = logged(LogFormat::Text, "info", |_| {
            run(async {
                for _ in 0..30 {
                    admitted(&limit, 100);
                    tokio::time::sleep(WINDOW / 10).await;
                }
                tokio::time::sleep(WINDOW).await;
            });
        });
        let told = log.lines().filter_map(|line| line.rsplit_once("left_out=")?.1.parse::<u32>().ok());
        let told: Vec<_> = told.collect();
        assert_eq!((told.len(), told.iter().sum()), (3, 3000 - 3 * PER_SECOND), "{log}");
    }

    #[test]
    fn what_comes_slowly_is_written_whole() {
        let limit = Limit::new("trickle");
        let log = logged(LogFormat::Text, "info", |_| {
            run(async {
                for _ in 0..200 {
                    assert!(limit.admit());
                    tokio::time::sleep(WINDOW / 10).await;
                }
            });
        });
        assert_eq!(log, "");
    }

    #[test]
    fn one_sort_does_not_silence_another() {
        run(async {
            while PeerLine::TunnelEnded.may_be_written() {}
            assert!(PeerLine::StreamRefused.may_be_written());
            let samples = PeerLine::samples();
            let ended = samples.iter().find(|sample| sample.labels[0].1 == "tunnel ended").unwrap();
            assert!(ended.value > u64::from(PER_SECOND), "{samples:?}");
        });
    }
}
