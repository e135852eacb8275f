//! Names of DNS ServiceEntries.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use smallvec::SmallVec;
use tokio::time::Instant;

/// How long an answer is used. The system's resolver does not tell the records' own time.
const KEEP: Duration = Duration::from_secs(10);
/// How long to wait for one.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;
/// Names that are remembered; they come from ServiceEntries, so more is unusual.
const MAX_NAMES: usize = 4096;

type Answer = SmallVec<[SocketAddr; MAX_ADDRESSES]>;
/// Answers and when they came, by name and port.
type Answers = HashMap<(Arc<str>, u16), (Instant, Answer)>;

static ANSWERS: Mutex<Option<Answers>> = Mutex::new(None);

/// The addresses of `host`, by the node's resolver. `asked` counts what is asked for, known already or not.
///
/// # Errors
/// What the resolver says, or that it took more than 5 s.
pub(super) async fn resolve(host: &Arc<str>, port: u16, asked: &Counter) -> io::Result<Answer> {
    asked.inc();
    let key = (host.clone(), port);
    let now = Instant::now();
    let known = ANSWERS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert_default()
        .get(&key)
        .filter(|(at, _)| now - *at < KEEP)
        .map(|(_, answer)| answer.clone());
    if let Some(answer) = known {
        return Ok(answer);
    }
    let found = tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((&**host, port)))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    let answer: Answer = found.take(MAX_ADDRESSES).collect();
    let mut answers = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner);
    let answers = answers.get_or_insert_default();
    if answers.len() >= MAX_NAMES {
        answers.retain(|_, (at, _)| now - *at < KEEP);
    }
    if answers.len() < MAX_NAMES {
        answers.insert(key, (now, answer.clone()));
    }
    Ok(answer)
}
