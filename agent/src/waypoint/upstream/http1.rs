//! HTTP/1.1 to an endpoint: connections that carry a request at a time, kept for the next one.
//!
//! Of those that are idle the last one used is taken first, so that the others can go. Where there is none, a request
//! waits for whichever comes first: one that is dialled for it, or one that another request is done with.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_core::traffic::policy::ConnectionPool;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use smallvec::SmallVec;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::dial::Behalf;
use super::endpoint::Endpoint;
use super::error::ConnectFailure;
use super::place::{Of, Open};
use super::stream::{Kept, Stream};
use crate::waypoint::body::Body;

/// What is asked for in TLS.
const ALPN: &[u8] = b"http/1.1";

/// A connection that carries nothing just now, or one request.
pub(super) struct Conn {
    pub(super) sender: SendRequest<Body>,
    pub(super) kept: Kept,
    /// How many requests it has carried.
    pub(super) served: u32,
    behalf: Behalf,
    worker: usize,
    opened: Instant,
    idle_since: Instant,
}

/// The connections of one worker to one endpoint.
#[derive(Default)]
pub(super) struct Lane(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// The last one used is the last.
    idle: Vec<Conn>,
    waiting: VecDeque<Waiter>,
    /// Connections that there are, or that are dialled.
    open: usize,
    /// Connections that are dialled.
    dialling: usize,
}

struct Waiter {
    tell: oneshot::Sender<Result<Conn, ConnectFailure>>,
    behalf: Behalf,
}

impl Conn {
    /// Whether it carries no further request, by its limits.
    fn is_spent(&self, pool: &ConnectionPool, now: Instant) -> bool {
        let most = pool.max_requests_per_connection;
        let is_old = |age| now.saturating_duration_since(self.opened) >= age;
        (most > 0 && self.served >= most) || pool.max_connection_duration.is_some_and(is_old)
    }

    fn is_stale(&self, pool: &ConnectionPool, now: Instant) -> bool {
        let idle_for = now.saturating_duration_since(self.idle_since);
        self.sender.is_closed() || self.is_spent(pool, now) || pool.http_idle.is_some_and(|limit| idle_for >= limit)
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes what is idle.
    pub(super) fn clear(&self) {
        let idle = std::mem::take(&mut self.lock().idle);
        drop(idle);
    }

    /// Closes what is idle for too long.
    pub(super) fn expire(&self, pool: &ConnectionPool, now: Instant) {
        let mut inner = self.lock();
        let (stale, idle) = std::mem::take(&mut inner.idle).into_iter().partition(|conn| conn.is_stale(pool, now));
        inner.idle = idle;
        drop(inner);
        drop::<Vec<Conn>>(stale);
    }
}

/// An idle connection of this worker's that is ready, if there is one that serves whose `behalf` it is on.
pub(super) fn take(endpoint: &Endpoint, behalf: &Behalf) -> Option<Conn> {
    let now = Instant::now();
    let mut stale = SmallVec::<[Conn; 4]>::new();
    let mut inner = endpoint.http1.here().1.lock();
    let mut found = None;
    for at in (0..inner.idle.len()).rev() {
        let conn = &inner.idle[at];
        if conn.is_stale(endpoint.pool(), now) {
            stale.push(inner.idle.remove(at));
        } else if conn.sender.is_ready() && endpoint.serves_alike(&conn.behalf, behalf) {
            found = Some(inner.idle.remove(at));
            break;
        }
    }
    drop(inner);
    found
}

/// Gives back a connection that has carried a request to its end: to who waits for one, or to be kept.
pub(super) fn give(endpoint: &Endpoint, mut conn: Conn) {
    let now = Instant::now();
    if conn.sender.is_closed() || conn.is_spent(endpoint.pool(), now) {
        return;
    }
    conn.idle_since = now;
    let mut inner = endpoint.http1.of(conn.worker).lock();
    while let Some(at) = inner.waiting.iter().position(|waiter| endpoint.serves_alike(&waiter.behalf, &conn.behalf)) {
        let Some(waiter) = inner.waiting.remove(at) else { break };
        match waiter.tell.send(Ok(conn)) {
            Ok(()) => return,
            Err(Ok(back)) => conn = back,
            Err(Err(_)) => return,
        }
    }
    inner.waiting.retain(|waiter| !waiter.tell.is_closed());
    // It stands in the way of others, who may not use it and are not dialled for.
    let is_useless = inner.waiting.len() > inner.dialling;
    // Looked at under the lock, so that whoever retires the endpoint finds what is put here.
    if !is_useless && !endpoint.is_retired() {
        inner.idle.push(conn);
    }
}

/// Waits for a connection, which is dialled unless there are as many as there may be.
pub(super) async fn wait(endpoint: &Arc<Endpoint>, behalf: &Behalf) -> Result<Conn, ConnectFailure> {
    match queue(endpoint, behalf) {
        Ok(conn) => Ok(conn),
        Err(told) => told.await.unwrap_or_else(|_| Err(ConnectFailure::new("the waypoint stops"))),
    }
}

type Told = oneshot::Receiver<Result<Conn, ConnectFailure>>;

/// A place among those who wait, or else a connection that nobody would tell of.
fn queue(endpoint: &Arc<Endpoint>, behalf: &Behalf) -> Result<Conn, Told> {
    let (worker, lane) = endpoint.http1.here();
    let (tell, told) = oneshot::channel();
    let mut inner = lane.lock();
    inner.waiting.push_back(Waiter { tell, behalf: behalf.clone() });
    if let Some(dial) = inner.dial(endpoint) {
        drop(inner);
        dial.spawn(endpoint, worker);
    } else if let Some(at) = inner.idle.iter().rposition(|conn| endpoint.serves_alike(&conn.behalf, behalf)) {
        // It is not ready yet, or it would have been taken; but it soon will be.
        inner.waiting.pop_back();
        return Ok(inner.idle.remove(at));
    } else if inner.waiting.len() > inner.dialling && !inner.idle.is_empty() {
        // One that only others may use stands in the way.
        let useless = inner.idle.remove(0);
        drop(inner);
        drop(useless);
    }
    Err(told)
}

/// A connection is gone, or did not come about: who waits gets another.
pub(super) fn closed(endpoint: &Arc<Endpoint>, worker: usize) {
    let mut inner = endpoint.http1.of(worker).lock();
    inner.open = inner.open.saturating_sub(1);
    let dial = inner.dial(endpoint);
    drop(inner);
    if let Some(dial) = dial {
        dial.spawn(endpoint, worker);
    }
}

impl Inner {
    /// Whether to dial for someone who waits: there are more of them than are dialled for, and there may be one more
    /// connection. The first of a lane there always may be, or its requests would wait for ever.
    fn dial(&mut self, endpoint: &Endpoint) -> Option<Dial> {
        if self.waiting.len() <= self.dialling {
            return None;
        }
        self.waiting.retain(|waiter| !waiter.tell.is_closed());
        let waiter = self.waiting.get(self.dialling)?;
        let counts = &endpoint.cluster.counts;
        match self.open {
            0 => counts.take_first_connection(),
            _ => counts.take_connection(endpoint.pool()).ok()?,
        }
        self.open += 1;
        self.dialling += 1;
        Some(Dial(waiter.behalf.clone()))
    }
}

/// A connection that may be made, and on whose behalf.
struct Dial(Behalf);

impl Dial {
    /// Makes the connection in a task of its own: who waits for it may find another first, or go away.
    fn spawn(self, endpoint: &Arc<Endpoint>, worker: usize) {
        let open = Open::taken(endpoint.clone(), Of::Http1(worker));
        // There is none only when the process ends.
        let Ok(runtime) = Handle::try_current() else { return };
        let endpoint = endpoint.clone();
        runtime.spawn(async move {
            let made = self.make(&endpoint, worker, open).await;
            endpoint.http1.of(worker).lock().dialling -= 1;
            match made {
                Ok(conn) => give(&endpoint, conn),
                Err((failure, open)) => {
                    fail(&endpoint, worker, &failure);
                    // Only now is somebody else dialled for.
                    drop(open);
                }
            }
        });
    }

    async fn make(
        self,
        endpoint: &Endpoint,
        worker: usize,
        open: Open,
    ) -> Result<Conn, (ConnectFailure, Option<Open>)> {
        let io = match endpoint.connect(&self.0, Some(ALPN)).await {
            Ok(io) => io,
            Err(failure) => return Err((failure, Some(open))),
        };
        let stream = Stream::new(io, open);
        let kept = stream.kept();
        let (sender, connection) = Builder::new()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| (ConnectFailure::new(error.to_string()), None))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to an endpoint ended");
            }
        });
        let now = Instant::now();
        Ok(Conn { sender, kept, served: 0, behalf: self.0, worker, opened: now, idle_since: now })
    }
}

/// Tells who waited for a connection that it could not be made; and the others too, if there is nothing else to wait
/// for.
fn fail(endpoint: &Endpoint, worker: usize, failure: &ConnectFailure) {
    let mut told = SmallVec::<[Waiter; 4]>::new();
    let mut inner = endpoint.http1.of(worker).lock();
    inner.waiting.retain(|waiter| !waiter.tell.is_closed());
    told.extend(inner.waiting.pop_front());
    // This one is still counted as open.
    if inner.open <= inner.dialling + 1 {
        while inner.waiting.len() > inner.dialling {
            told.extend(inner.waiting.pop_front());
        }
    }
    drop(inner);
    for waiter in told {
        // Whoever is gone does not want to know.
        let _ = waiter.tell.send(Err(failure.clone()));
    }
}
