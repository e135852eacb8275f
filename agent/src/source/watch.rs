//! The thread that watches a directory.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use culvert_core::mesh::Change;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};

use super::{PIECE, Scanner, Status, Update};

/// How long nothing may happen before the directory is looked at: a copy of many files is one change.
const QUIET: Duration = Duration::from_millis(60);
/// How long a look is put off at most while things keep happening.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often the directory is looked at without being told: inotify says nothing of network file systems, or of what
/// happens behind a link to elsewhere.
const RESCAN: Duration = Duration::from_secs(2);
/// The same, where nothing is ever told.
const RESCAN_BLIND: Duration = Duration::from_millis(500);

pub(super) fn spawn(
    directory: PathBuf,
    scanner: Scanner,
    updates: mpsc::Sender<Update>,
    status: watch::Sender<Arc<Status>>,
) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("source".to_owned());
    thread.spawn(move || run(&directory, scanner, &updates, &status)).map(drop)
}

fn run(directory: &Path, mut scanner: Scanner, updates: &mpsc::Sender<Update>, status: &watch::Sender<Arc<Status>>) {
    let (told, events) = channel();
    let mut watcher = None;
    let mut watched = None;
    let mut is_first = true;
    let (mut whole, mut incomplete) = (true, None);
    loop {
        // Watch before looking, so that nothing happens unseen in between. The watch of a directory that was removed
        // is gone for good: a new one has to be made.
        let identity = std::fs::metadata(directory).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if watcher.is_none() || watched != identity {
            watcher = start_watching(directory, &told);
            watched = identity;
        }
        let mut pieces = Pieces { updates, next: Vec::new(), settled: !is_first };
        scanner.scan(|change| pieces.push(change));
        is_first = false;
        let seen = scanner.status();
        if (seen.is_whole(), seen.incomplete()) != (whole, incomplete.clone()) {
            (whole, incomplete) = (seen.is_whole(), seen.incomplete());
            pieces.settled = false;
        }
        let is_gone = seen.problem.is_some();
        // Before whoever follows acts on the changes: what they do with pods that are missing depends on it.
        publish(seen, status);
        pieces.settle(whole, incomplete.clone());
        if is_gone {
            watcher = None;
        }
        let wait = match (scanner.is_unsettled(), &watcher) {
            (true, _) => QUIET,
            (false, Some(_)) => RESCAN,
            (false, None) => RESCAN_BLIND,
        };
        if wait_for_change(&events, wait).is_err() || updates.is_closed() {
            return;
        }
    }
}

/// Sends changes in pieces. What nobody takes any more is dropped.
struct Pieces<'a> {
    updates: &'a mpsc::Sender<Update>,
    next: Vec<Change>,
    /// Whether everything that was said before is settled.
    settled: bool,
}

impl Pieces<'_> {
    fn push(&mut self, change: Change) {
        self.settled = false;
        self.next.push(change);
        if self.next.len() == PIECE {
            let changes = std::mem::replace(&mut self.next, Vec::with_capacity(PIECE));
            let _ = self.updates.blocking_send(Update { changes, ..Update::default() });
        }
    }

    fn settle(self, whole: bool, incomplete: Option<Arc<str>>) {
        if !self.settled {
            let _ = self.updates.blocking_send(Update { changes: self.next, settled: true, whole, incomplete });
        }
    }
}

fn start_watching(directory: &Path, told: &Sender<()>) -> Option<RecommendedWatcher> {
    let told = told.clone();
    let notify = move |event: notify::Result<notify::Event>| {
        // Reading a file is an event, too, and would have the directory read for ever.
        if event.map_or(true, |event| !event.kind.is_access()) {
            let _ = told.send(());
        }
    };
    let mut watcher = notify::recommended_watcher(notify).ok()?;
    watcher.watch(directory, RecursiveMode::Recursive).ok()?;
    Some(watcher)
}

/// Waits until something has happened and then nothing for a moment, at most for `wait`.
fn wait_for_change(events: &Receiver<()>, wait: Duration) -> Result<(), RecvTimeoutError> {
    match events.recv_timeout(wait) {
        Ok(()) => {}
        Err(RecvTimeoutError::Timeout) => return Ok(()),
        Err(error) => return Err(error),
    }
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        match events.recv_timeout(QUIET) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Says what is new, one line for each mistake.
fn publish(new: Status, status: &watch::Sender<Arc<Status>>) {
    let old = status.borrow().clone();
    if *old == new {
        return;
    }
    if old.problem != new.problem {
        match &new.problem {
            Some(problem) => tracing::error!("{problem}"),
            None => tracing::info!("the configuration directory is back"),
        }
    }
    let known: Vec<_> = old.errors().collect();
    for error in new.errors().filter(|error| !known.contains(error)) {
        tracing::warn!("{error}");
    }
    if new.incomplete() != old.incomplete() {
        match new.incomplete() {
            Some(why) => tracing::error!("connections to the node's pods are refused: policies may be missing: {why}"),
            None => tracing::info!("every file has been read: connections are decided by policy again"),
        }
    }
    for file in new.files.iter().filter(|file| file.stale) {
        if !old.files.iter().any(|known| known.path == file.path && known.stale) {
            tracing::warn!("{}: broken: the {} objects that it held stay as they were", file.path, file.objects);
        }
    }
    status.send_replace(Arc::new(new));
}
