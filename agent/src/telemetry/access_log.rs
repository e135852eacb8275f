//! One line for each connection, as ztunnel writes them (target `access`): `connection opened` at debug, `connection
//! complete` at info or, with an `error`, at error, `connection failed` at warn where it was refused before anything
//! was known about it. And one for each request of a waypoint, at info, as Envoy writes them ([`super::request_line`]).
//!
//! Lines are made and written by a thread of their own. The data path hands over the record it has anyway, and never
//! waits: when the thread cannot keep up, lines are dropped, and counted. Of the connections that policy denies only so
//! many a second have a line: a peer must not fill the disk.

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use culvert_core::workload::Workload;
use tracing::Level;

use super::connection::{ConnectionInfo, Direction, Open, ResponseFlags, SecurityPolicy};
use super::line::Line;
use super::logging::LogFormat;
use super::peer_lines::Limit;
use super::request_line::RequestLine;

/// Records that wait to be written; each is a pointer here and about 300 bytes elsewhere.
const QUEUE: usize = 4096;

/// How long the writer lets records gather. A writer that sleeps is not woken by every record, which would cost the
/// data path a system call for each.
const GATHER: Duration = Duration::from_millis(20);

/// How much text is written at once.
const BATCH: usize = 64 << 10;

/// The level set for the target `access`, which also switches the log on and off while running.
pub(super) const TARGET: &str = "access";

/// Where the lines of closed connections go. Cloning is cheap.
#[derive(Clone)]
pub struct AccessLog(Option<Arc<Queue>>);

struct Queue {
    sender: SyncSender<Message>,
    enabled: fn(Level) -> bool,
    dropped: Arc<AtomicU64>,
    denied: Limit,
}

enum Message {
    Opened(SystemTime, Box<ConnectionInfo>),
    Closed(SystemTime, Box<Open>),
    Failed(SystemTime, Box<Failed>),
    Request(Box<RequestLine>),
    Flush(SyncSender<()>),
}

struct Failed {
    direction: Direction,
    source: SocketAddr,
    destination: SocketAddr,
    error: String,
}

impl AccessLog {
    /// No access log at all.
    pub fn off() -> Self {
        Self(None)
    }

    /// Lines on the standard output, among those of the log, at the levels set for the target `access`.
    pub fn stdout(format: LogFormat) -> Self {
        let enabled = |level| match level {
            Level::ERROR => tracing::enabled!(target: TARGET, Level::ERROR),
            Level::WARN => tracing::enabled!(target: TARGET, Level::WARN),
            Level::INFO => tracing::enabled!(target: TARGET, Level::INFO),
            Level::DEBUG => tracing::enabled!(target: TARGET, Level::DEBUG),
            _ => false,
        };
        Self::to(format, enabled, io::stdout())
    }

    /// Lines on `writer`, of the levels that `enabled` lets through.
    pub fn to(format: LogFormat, enabled: fn(Level) -> bool, writer: impl Write + Send + 'static) -> Self {
        Self::queued(format, enabled, writer, QUEUE)
    }

    pub(super) fn queued(
        format: LogFormat,
        enabled: fn(Level) -> bool,
        writer: impl Write + Send + 'static,
        queue: usize,
    ) -> Self {
        let (sender, receiver) = sync_channel(queue);
        let dropped = Arc::new(AtomicU64::new(0));
        let of_writer = dropped.clone();
        let spawned = thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(256 << 10)
            .spawn(move || write_all(&receiver, format, writer, &of_writer));
        match spawned {
            Ok(_) => Self(Some(Arc::new(Queue { sender, enabled, dropped, denied: Limit::new("connection denied") }))),
            Err(error) => {
                tracing::error!(%error, "no access log: its thread cannot be started; raise the limit of threads");
                Self(None)
            }
        }
    }

    /// How many lines were lost because they came faster than they could be written.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |queue| queue.dropped.load(Ordering::Relaxed))
    }

    /// Waits until everything handed over so far is written, at most `deadline`. Blocks: for the end of the process.
    pub fn flush(&self, deadline: Duration) {
        let Some(queue) = &self.0 else { return };
        let (done, wait) = sync_channel(1);
        if queue.sender.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(deadline);
        }
    }

    pub(super) fn opened(&self, info: &ConnectionInfo) {
        self.hand_over(Level::DEBUG, || Message::Opened(SystemTime::now(), Box::new(info.clone())));
    }

    pub(super) fn closed(&self, record: Box<Open>) {
        let is_denied = record.info.direction != Direction::Outbound && record.outcome.flags == ResponseFlags::Denied;
        if is_denied && self.0.as_ref().is_some_and(|queue| !queue.denied.admit()) {
            return;
        }
        self.hand_over(level_of(&record), || Message::Closed(SystemTime::now(), record));
    }

    pub(super) fn failed(&self, direction: Direction, source: SocketAddr, destination: SocketAddr, error: String) {
        let failed = || Box::new(Failed { direction, source, destination, error });
        self.hand_over(Level::WARN, || Message::Failed(SystemTime::now(), failed()));
    }

    /// Whether requests have lines now.
    pub fn takes_requests(&self) -> bool {
        self.0.as_ref().is_some_and(|queue| (queue.enabled)(Level::INFO))
    }

    /// A request of a waypoint is over.
    pub fn request(&self, line: Box<RequestLine>) {
        self.hand_over(Level::INFO, || Message::Request(line));
    }

    fn hand_over(&self, level: Level, message: impl FnOnce() -> Message) {
        let Some(queue) = &self.0 else { return };
        if !(queue.enabled)(level) {
            return;
        }
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.sender.try_send(message()) {
            queue.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "AccessLog" } else { "AccessLog(off)" })
    }
}

fn level_of(record: &Open) -> Level {
    if record.outcome.error.is_some() { Level::ERROR } else { Level::INFO }
}

/// The life of the writer's thread: until every sender is gone.
fn write_all(receiver: &Receiver<Message>, format: LogFormat, mut writer: impl Write, dropped: &AtomicU64) {
    let mut text = String::new();
    let mut told = 0;
    while let Ok(first) = receiver.recv() {
        let mut next = Some(first);
        // Gathers, writes, and lets more gather, until a pause brought nothing.
        while let Some(message) = next.take() {
            let done = add(&mut text, format, message);
            next = if done.is_none() && text.len() < BATCH { receiver.try_recv().ok() } else { None };
            if next.is_some() {
                continue;
            }
            tell_dropped(&mut text, format, dropped, &mut told);
            // A closed standard output is no reason to stop serving.
            let _ = writer.write_all(text.as_bytes()).and_then(|()| writer.flush());
            text.clear();
            text.shrink_to(BATCH);
            if let Some(done) = done {
                let _ = done.send(());
            }
            next = match receiver.try_recv() {
                Ok(message) => Some(message),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    thread::sleep(GATHER);
                    receiver.try_recv().ok()
                }
            };
        }
    }
}

fn tell_dropped(text: &mut String, format: LogFormat, dropped: &AtomicU64, told: &mut u64) {
    let now = dropped.load(Ordering::Relaxed);
    if now > *told {
        let mut line =
            Line::new(text, format, SystemTime::now(), Level::WARN, TARGET, "lines dropped: they come too fast");
        line.number("count", now - *told);
        line.end();
        *told = now;
    }
}

/// Adds the line of `message` to `text`; returns whom to tell once it is written.
fn add(text: &mut String, format: LogFormat, message: Message) -> Option<SyncSender<()>> {
    match message {
        Message::Opened(time, info) => {
            let mut line = Line::new(text, format, time, Level::DEBUG, TARGET, "connection opened");
            connection(&mut line, &info);
            line.end();
        }
        Message::Closed(time, record) => {
            let mut line = Line::new(text, format, time, level_of(&record), TARGET, "connection complete");
            connection(&mut line, &record.info);
            let (sent, received) = record.sent_and_received();
            line.number("bytes_sent", sent);
            line.number("bytes_recv", received);
            line.text("duration", &format!("{}ms", record.duration.as_millis()));
            line.optional_text("error", record.outcome.error.as_deref());
            line.end();
        }
        Message::Failed(time, failed) => {
            let mut line = Line::new(text, format, time, Level::WARN, TARGET, "connection failed");
            line.word("src.addr", failed.source);
            line.word("dst.addr", failed.destination);
            line.text("direction", failed.direction.as_str());
            line.text("error", &failed.error);
            line.end();
        }
        Message::Request(request) => request.write(text, format),
        Message::Flush(done) => return Some(done),
    }
    None
}

/// The fields that say who talks to whom; what is not known is left out.
fn connection(line: &mut Line<'_>, info: &ConnectionInfo) {
    let tls = info.security == SecurityPolicy::MutualTls;
    line.word("src.addr", info.source_addr);
    let source_identity = info.source_identity.as_deref().filter(|_| tls);
    peer(
        line,
        ["src.workload", "src.namespace", "src.identity", "src.cluster"],
        info.source.as_deref(),
        source_identity,
    );
    line.word("dst.addr", info.destination_addr);
    if let Some(target) = &info.hbone_target {
        line.word("dst.hbone_addr", target);
    }
    line.optional_text("dst.service", info.service.as_ref().map(|service| &*service.key.hostname));
    let destination_identity = info.destination_identity.as_deref().filter(|_| tls);
    peer(
        line,
        ["dst.workload", "dst.namespace", "dst.identity", "dst.cluster"],
        info.destination.as_deref(),
        destination_identity,
    );
    line.text("direction", info.direction.as_str());
}

fn peer(line: &mut Line<'_>, keys: [&str; 4], workload: Option<&Workload>, identity: Option<&Identity>) {
    let [name, namespace, identity_key, cluster] = keys;
    line.optional_text(name, workload.map(|w| &*w.name));
    line.optional_text(namespace, workload.map(|w| &*w.namespace));
    line.optional_text(identity_key, identity.map(Identity::to_string).as_deref());
    line.optional_text(cluster, workload.map(|w| &*w.cluster));
}
