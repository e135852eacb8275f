//! One endpoint of a cluster: what is known of it, and its connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use culvert_core::traffic::balance::{Candidate, State as Seen};
use culvert_core::traffic::outliers::Outcome;
use culvert_core::traffic::policy::ConnectionPool;
use tokio::time::Instant;

use super::cluster::State;
use super::dial::{Behalf, Dialler};
use super::http1;
use super::http2;
use super::tls::Tls;
use super::transport::Transport;
use super::worker::PerWorker;

/// The name of an endpoint, the same for as long as it belongs to its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId(u64);

/// How an endpoint does. Outlives changes of how it is spoken to.
#[derive(Debug)]
pub(super) struct Health {
    pub(super) id: EndpointId,
    /// Requests and connections that it was chosen for, and that are not over.
    active: AtomicU32,
    /// Left out by outlier detection.
    pub(super) ejected: AtomicBool,
    /// Something is counted against it.
    pub(super) troubled: AtomicBool,
    /// Since when it takes requests; `None` if it was there before the waypoint was.
    since: Option<Instant>,
}

/// An endpoint, as it is spoken to now.
pub(super) struct Endpoint {
    pub(super) candidate: Candidate,
    pub(super) transport: Transport,
    pub(super) settings: Arc<Settings>,
    pub(super) health: Arc<Health>,
    pub(super) cluster: Arc<State>,
    pub(super) dialler: Arc<Dialler>,
    pub(super) http1: PerWorker<http1::Lane>,
    pub(super) http2: PerWorker<http2::Lane>,
    /// It has left its cluster, or is spoken to in another way: what it carries finishes, and nothing is kept.
    retired: AtomicBool,
}

/// How every endpoint of a cluster is spoken to. Connections made by other settings carry nothing new.
#[derive(Debug, PartialEq)]
pub(super) struct Settings {
    pub(super) pool: Arc<ConnectionPool>,
    pub(super) connect_timeout: Duration,
    pub(super) tls: Option<Arc<Tls>>,
    /// The version of the PROXY protocol.
    pub(super) proxy_protocol: Option<u8>,
    /// The service, as peers are told of it.
    pub(super) host: Option<Arc<str>>,
}

impl Health {
    pub(super) fn new(since: Option<Instant>) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: EndpointId(NEXT.fetch_add(1, Ordering::Relaxed)),
            active: AtomicU32::new(0),
            ejected: AtomicBool::new(false),
            troubled: AtomicBool::new(false),
            since,
        })
    }

    /// Nothing is counted against it any more.
    pub(super) fn forgive(&self) {
        self.ejected.store(false, Ordering::Relaxed);
        self.troubled.store(false, Ordering::Relaxed);
    }

    /// What a choice depends on. `now` only where new endpoints warm up.
    pub(super) fn seen(&self, tried: &[EndpointId], now: Option<Instant>) -> Seen {
        Seen {
            active: self.active.load(Ordering::Relaxed),
            ejected: self.ejected.load(Ordering::Relaxed),
            tried: tried.contains(&self.id),
            age: now.zip(self.since).map(|(now, since)| now.saturating_duration_since(since)),
        }
    }
}

impl Endpoint {
    pub(super) fn new(
        candidate: Candidate,
        transport: Transport,
        settings: Arc<Settings>,
        health: Arc<Health>,
        cluster: Arc<State>,
        dialler: Arc<Dialler>,
    ) -> Arc<Self> {
        let workers = dialler.workers();
        Arc::new(Self {
            candidate,
            transport,
            settings,
            health,
            cluster,
            dialler,
            http1: PerWorker::new(workers, |_| http1::Lane::default()),
            http2: PerWorker::new(workers, |_| http2::Lane::default()),
            retired: AtomicBool::new(false),
        })
    }

    /// The limits of its connections.
    pub(super) fn pool(&self) -> &ConnectionPool {
        &self.settings.pool
    }

    /// Whether connections to it are as they would be made by these.
    pub(super) fn is_spoken_to_by(&self, candidate: &Candidate, transport: &Transport, settings: &Settings) -> bool {
        let (old, new) = (&self.candidate.workload, &candidate.workload);
        self.transport == *transport && *self.settings == *settings && (Arc::ptr_eq(old, new) || old == new)
    }

    /// Whether a connection that was made on behalf of one serves another: not where it has said whom it is for.
    pub(super) fn serves_alike(&self, one: &Behalf, another: &Behalf) -> bool {
        let names_addresses = self.settings.proxy_protocol.is_some();
        let names_client = matches!(self.transport, Transport::Hbone { .. });
        (!names_addresses || one.sides == another.sides) && (!names_client || one.principal == another.principal)
    }

    pub(super) fn enter(&self) {
        self.health.active.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn leave(&self) {
        self.health.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts how something ended there.
    pub(super) fn report(&self, outcome: Outcome) {
        if let Some(watch) = &*self.cluster.watch.load() {
            watch.record(&self.health, outcome);
        }
    }

    /// Keeps no connection from here on, but for those that carry something.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.http1.iter().for_each(http1::Lane::clear);
        self.http2.iter().for_each(http2::Lane::clear);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Acquire)
    }

    /// Closes connections that have been idle for too long, or have lived too long.
    pub(super) fn expire(&self, now: Instant) {
        self.http1.iter().for_each(|lane| lane.expire(self.pool(), now));
        self.http2.iter().for_each(|lane| lane.expire(self.pool(), now));
    }
}
