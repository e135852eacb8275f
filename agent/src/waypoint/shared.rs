//! What the sessions of a waypoint share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use culvert_core::mesh::Snapshot;
use tokio::sync::watch;

use super::gate::Gate;
use super::place::Own;
use super::upstream::{Setup, Upstreams};
use crate::hbone::buffers::Buffers;
use crate::identity::{CertificateStore, SystemClock, Trust};
use crate::proxy::limits::{MAX_CONNECTIONS, MAX_UNREAD};
use crate::proxy::live::{Admission, Connections};
use crate::proxy::recheck;
use crate::proxy::tunnels::Tunnels;
use crate::telemetry::Telemetry;
use crate::workers::Workers;

/// What every session has at hand.
pub struct Shared {
    /// Who this waypoint is.
    pub own: Own,
    /// The newest snapshot.
    pub mesh: Arc<ArcSwap<Snapshot>>,
    /// The waypoint's certificate, and whom the mesh trusts.
    pub certificates: CertificateStore,
    /// Where connections are counted and logged.
    pub telemetry: Telemetry,
    /// The threads that carry traffic.
    pub workers: Workers,
    /// Where requests and connections go.
    pub upstreams: Upstreams,
    /// Who may ask for what.
    pub gate: Gate,
    /// Tunnels of clients.
    pub(super) tunnels: Arc<Tunnels>,
    /// Live connections that carry no requests.
    pub(super) connections: Arc<Connections>,
    sessions: Counter,
    /// Tunnels of clients that each worker carries.
    carried: Box<[Counter]>,
    draining: watch::Receiver<bool>,
}

impl Shared {
    /// For a waypoint that is `own`; `draining` changes when it is about to end.
    pub(super) fn new(
        own: Own,
        mesh: Arc<ArcSwap<Snapshot>>,
        certificates: CertificateStore,
        telemetry: Telemetry,
        workers: Workers,
        draining: watch::Receiver<bool>,
    ) -> Arc<Self> {
        let buffers = Buffers::new(MAX_UNREAD);
        let upstreams = Upstreams::new(Setup {
            mesh: mesh.clone(),
            own: own.workload.clone(),
            identity: &own.identity,
            certificates: &certificates,
            workers: &workers,
            buffers: buffers.clone(),
            telemetry: &telemetry,
        });
        let gate = Gate::new(mesh.clone(), Arc::new(upstreams.clone()), Arc::new(SystemClock));
        let tunnels = Tunnels::new(own.workload.uid.clone(), &certificates, &own.identity, buffers);
        Arc::new(Self {
            mesh,
            certificates,
            telemetry,
            upstreams,
            gate,
            tunnels,
            connections: Arc::default(),
            sessions: Counter::default(),
            carried: (0..workers.count()).map(|_| Counter::default()).collect(),
            workers,
            draining,
            own,
        })
    }

    /// Turns to `true` when nothing new is to begin: what is under way may finish.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.clone()
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.sessions.count()
    }

    /// Takes a place for a session, if there is one.
    pub(super) fn enter(&self) -> Option<Counted> {
        self.sessions.enter_below(MAX_CONNECTIONS)
    }

    /// The worker that carries the fewest tunnels, and a place on it.
    pub(super) fn assign(&self) -> (usize, Counted) {
        let least = self.carried.iter().enumerate().min_by_key(|(_, carried)| carried.count());
        let (at, carried) = least.unwrap_or((0, &self.sessions));
        (at, carried.enter())
    }

    /// Ends every connection that `snapshot` does not allow any more; returns how many.
    pub(super) fn recheck(&self, snapshot: &Snapshot) -> usize {
        recheck::end_unless(&self.connections, |admission| match admission {
            Admission::Waypoint(through) => through.is_allowed(snapshot),
            // Of pods, which are none of a waypoint's.
            Admission::Inbound { .. } | Admission::Outbound { .. } => false,
        })
    }

    /// Ends the tunnels to and from peers that would not be let in under `trust`; returns how many.
    pub(super) fn vet(&self, trust: &Trust) -> usize {
        let tunnels = self.tunnels.list().into_iter().chain(self.upstreams.tunnels());
        tunnels.filter(|tunnel| tunnel.vet(trust)).count()
    }
}

/// Counts what there is of something.
#[derive(Clone, Debug, Default)]
struct Counter(Arc<AtomicUsize>);

/// One of them, until dropped.
#[derive(Debug)]
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counter {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn enter(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.0.clone())
    }

    /// Unless there are `limit` already.
    fn enter_below(&self, limit: usize) -> Option<Counted> {
        let counted = self.enter();
        // Who comes at the same time may be refused too early by one, never too late.
        (self.count() <= limit).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_place_beyond_the_limit() {
        let counter = Counter::default();
        let (first, _second) = (counter.enter_below(2).unwrap(), counter.enter_below(2).unwrap());
        assert!(counter.enter_below(2).is_none());
        assert_eq!(counter.count(), 2);
        drop(first);
        assert!(counter.enter_below(2).is_some());
    }
}
