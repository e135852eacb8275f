//! HTTP/2 to an endpoint: connections that carry many requests at a time.
//!
//! Requests share a connection until it has as many as the endpoint, or the DestinationRule, lets it have; then another
//! is dialled. However many ask while there is none, one is dialled for them.

mod dial;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_core::traffic::policy::ConnectionPool;
use hyper::client::conn::http2::SendRequest;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::dial::Dial;
use super::dial::Behalf;
use super::endpoint::Endpoint;
use super::error::ConnectFailure;
use crate::waypoint::body::Body;

/// A connection.
pub(super) struct Conn {
    sender: SendRequest<Body>,
    /// Requests under way.
    active: AtomicU32,
    /// Requests so far.
    served: AtomicU32,
    /// How many the endpoint allows at a time.
    allowed: Arc<AtomicUsize>,
    behalf: Behalf,
    worker: usize,
    opened: Instant,
    idle_since: Mutex<Instant>,
}

/// The place of a request on a connection.
pub(super) struct Ticket {
    conn: Arc<Conn>,
    endpoint: Arc<Endpoint>,
}

/// The connections of one worker to one endpoint.
#[derive(Default)]
pub(super) struct Lane(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    conns: Vec<Arc<Conn>>,
    waiting: VecDeque<Waiter>,
    /// Connections that there are, or that are dialled; some may take no new request.
    open: usize,
    /// One is dialled.
    dialling: bool,
}

struct Waiter {
    tell: oneshot::Sender<Result<Ticket, ConnectFailure>>,
    behalf: Behalf,
}

impl Conn {
    fn is_usable(&self, pool: &ConnectionPool, now: Instant) -> bool {
        let most = pool.max_requests_per_connection;
        let is_old = |age| now.saturating_duration_since(self.opened) >= age;
        !self.sender.is_closed()
            && (most == 0 || self.served.load(Ordering::Relaxed) < most)
            && !pool.max_connection_duration.is_some_and(is_old)
    }

    fn is_idle_for_too_long(&self, pool: &ConnectionPool, now: Instant) -> bool {
        let since = *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        let idle_for = now.saturating_duration_since(since);
        self.active.load(Ordering::Relaxed) == 0 && pool.http_idle.is_some_and(|limit| idle_for >= limit)
    }

    fn has_room(&self, pool: &ConnectionPool) -> bool {
        let wanted = pool.max_concurrent_streams.map_or(usize::MAX, |streams| streams as usize);
        let most = self.allowed.load(Ordering::Relaxed).min(wanted);
        (self.active.load(Ordering::Relaxed) as usize) < most
    }
}

impl Ticket {
    pub(super) fn sender(&self) -> SendRequest<Body> {
        self.conn.sender.clone()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.conn.active.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.conn.idle_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
        released(&self.endpoint, self.conn.worker);
    }
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets every connection end when its requests have.
    pub(super) fn clear(&self) {
        let conns = std::mem::take(&mut self.lock().conns);
        drop(conns);
    }

    /// Closes what is idle for too long, and what may carry nothing more.
    pub(super) fn expire(&self, pool: &ConnectionPool, now: Instant) {
        let mut inner = self.lock();
        let (kept, over) = std::mem::take(&mut inner.conns)
            .into_iter()
            .partition(|conn| conn.is_usable(pool, now) && !conn.is_idle_for_too_long(pool, now));
        inner.conns = kept;
        drop(inner);
        drop::<Vec<Arc<Conn>>>(over);
    }
}

/// A place on a connection of this worker's, if one has room.
pub(super) fn take(endpoint: &Arc<Endpoint>, behalf: &Behalf) -> Option<Ticket> {
    let mut inner = endpoint.http2.here().1.lock();
    let (ticket, over) = inner.take(endpoint, behalf);
    drop(inner);
    drop(over);
    ticket
}

/// Waits for a place, for which a connection is dialled unless there are as many as there may be.
pub(super) async fn wait(endpoint: &Arc<Endpoint>, behalf: &Behalf) -> Result<Ticket, ConnectFailure> {
    let told = queue(endpoint, behalf);
    told.await.unwrap_or_else(|_| Err(ConnectFailure::new("the waypoint stops")))
}

/// A place among those who wait.
fn queue(endpoint: &Arc<Endpoint>, behalf: &Behalf) -> oneshot::Receiver<Result<Ticket, ConnectFailure>> {
    let (worker, lane) = endpoint.http2.here();
    let (tell, told) = oneshot::channel();
    let mut inner = lane.lock();
    inner.waiting.push_back(Waiter { tell, behalf: behalf.clone() });
    let next = inner.next(endpoint);
    drop(inner);
    next.follow(endpoint, worker);
    told
}

/// A connection is gone, or did not come about: who waits gets another.
pub(super) fn closed(endpoint: &Arc<Endpoint>, worker: usize) {
    let mut inner = endpoint.http2.of(worker).lock();
    inner.open = inner.open.saturating_sub(1);
    let next = inner.next(endpoint);
    drop(inner);
    next.follow(endpoint, worker);
}

/// A place is free: whoever waits gets it.
fn released(endpoint: &Arc<Endpoint>, worker: usize) {
    let mut inner = endpoint.http2.of(worker).lock();
    if inner.waiting.is_empty() {
        return;
    }
    let grants = inner.grants(endpoint);
    let next = inner.next(endpoint);
    drop(inner);
    tell(grants);
    next.follow(endpoint, worker);
}

/// Hands out places. Those whom nobody wants any more come back by being dropped.
fn tell(grants: Vec<(Waiter, Ticket)>) {
    for (waiter, ticket) in grants {
        drop(waiter.tell.send(Ok(ticket)));
    }
}

impl Inner {
    /// A place, and what takes no more requests: to be dropped once the lock is released.
    fn take(&mut self, endpoint: &Arc<Endpoint>, behalf: &Behalf) -> (Option<Ticket>, Vec<Arc<Conn>>) {
        let (pool, now) = (endpoint.pool(), Instant::now());
        let is_over = |conn: &Arc<Conn>| !conn.is_usable(pool, now) || conn.is_idle_for_too_long(pool, now);
        let mut over = Vec::new();
        if self.conns.iter().any(is_over) {
            (over, self.conns) = std::mem::take(&mut self.conns).into_iter().partition(is_over);
        }
        let with_room =
            self.conns.iter().find(|conn| conn.has_room(pool) && endpoint.serves_alike(&conn.behalf, behalf));
        let ticket = with_room.map(|conn| {
            conn.active.fetch_add(1, Ordering::Relaxed);
            conn.served.fetch_add(1, Ordering::Relaxed);
            Ticket { conn: conn.clone(), endpoint: endpoint.clone() }
        });
        (ticket, over)
    }

    /// Places for as many of those who wait as there is room for.
    fn grants(&mut self, endpoint: &Arc<Endpoint>) -> Vec<(Waiter, Ticket)> {
        let mut grants = Vec::new();
        let mut left = VecDeque::new();
        while let Some(waiter) = self.waiting.pop_front() {
            if waiter.tell.is_closed() {
                continue;
            }
            // What takes no more requests is closed by the next request that looks, or in time.
            let (ticket, over) = self.take(endpoint, &waiter.behalf);
            self.conns.extend(over);
            match ticket {
                Some(ticket) => grants.push((waiter, ticket)),
                None => left.push_back(waiter),
            }
        }
        self.waiting = left;
        grants
    }

    /// What to do for those who wait.
    fn next(&mut self, endpoint: &Endpoint) -> Next {
        match self.dial(endpoint) {
            Some(dial) => Next::Dial(dial),
            None if self.dialling || self.waiting.is_empty() => Next::Nothing,
            None => {
                // One that only others may use stands in the way.
                let useless = self.conns.iter().position(|conn| conn.active.load(Ordering::Relaxed) == 0);
                useless.map_or(Next::Nothing, |at| Next::Close(self.conns.remove(at)))
            }
        }
    }

    /// Whether to dial for those who wait: nobody does yet, and there may be one more connection. The first of a lane
    /// there always may be, or its requests would wait for ever.
    fn dial(&mut self, endpoint: &Endpoint) -> Option<Dial> {
        if self.dialling || self.waiting.is_empty() {
            return None;
        }
        self.waiting.retain(|waiter| !waiter.tell.is_closed());
        let waiter = self.waiting.front()?;
        let counts = &endpoint.cluster.counts;
        match self.open {
            0 => counts.take_first_connection(),
            _ => counts.take_connection(endpoint.pool()).ok()?,
        }
        self.open += 1;
        self.dialling = true;
        Some(Dial(waiter.behalf.clone()))
    }
}

/// What is to be done once the lock is released.
enum Next {
    Nothing,
    Dial(Dial),
    /// When it is closed, there is room for another.
    Close(#[allow(dead_code, reason = "dropping it is what closes it")] Arc<Conn>),
}

impl Next {
    fn follow(self, endpoint: &Arc<Endpoint>, worker: usize) {
        if let Self::Dial(dial) = self {
            dial.spawn(endpoint, worker);
        }
    }
}
