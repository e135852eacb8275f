//! What the proxies of one pod share.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_core::identity::Identity;
use culvert_core::mesh::Snapshot;
use culvert_core::policy::{Call, Decision, authorize};
use culvert_core::workload::{Workload, WorkloadUid};
use tokio::sync::watch;

use super::accept::{Incoming, accept};
use super::baggage::OwnBaggage;
use super::limits::{MAX_CONNECTIONS, MAX_UNREAD};
use super::live::{Admission, Connections, EndReason, Flow};
use super::recheck::is_allowed;
use super::tunnels::Tunnels;
use super::{inbound, on_trial, outbound, plaintext};
use crate::dns::PodDns;
use crate::enrolment::ProxyPod;
use crate::hbone::buffers::Buffers;
use crate::hbone::client::Pool;
use crate::hbone::vetted::Vetted;
use crate::identity::CertificateStore;
use crate::redirect::PodNetns;
use crate::telemetry::{ConnectionRecord, Direction, Telemetry};
use crate::workers::Workers;

/// How long it takes at the most to reset what has not finished in time.
const ENDING: Duration = Duration::from_secs(1);

/// What every pod's proxies share: the mesh, the certificates, the workers.
#[derive(Clone)]
pub struct Shared {
    /// The newest snapshot.
    pub mesh: Arc<ArcSwap<Snapshot>>,
    /// The certificates of the node.
    pub certificates: CertificateStore,
    /// Where connections are counted and logged.
    pub telemetry: Telemetry,
    /// The threads that carry traffic.
    pub workers: Workers,
}

/// The proxies of one pod. They run until [`PodProxy::stop`].
pub struct PodProxy {
    pod: Arc<Pod>,
    stop: watch::Sender<bool>,
}

/// What they share.
pub(super) struct Pod {
    pub(super) shared: Shared,
    pub(super) workload: WorkloadUid,
    pub(super) identity: Arc<Identity>,
    pub(super) netns: Arc<PodNetns>,
    pub(super) connections: Arc<Connections>,
    pub(super) pool: Pool,
    pub(super) home: usize,
    /// Tunnels that peers have opened to us.
    pub(super) tunnels: Arc<Tunnels>,
    /// What serves the pod in place of this.
    successor: OnceLock<Arc<Pod>>,
    baggage: OwnBaggage,
}

impl PodProxy {
    /// Starts the proxies on the pod's listeners.
    pub fn start(shared: Shared, pod: ProxyPod) -> Self {
        let ProxyPod { workload, identity, netns, listeners, .. } = pod;
        let home = shared.workers.assign();
        let buffers = Buffers::new(MAX_UNREAD);
        let (origin, workers) = (netns.clone(), shared.workers.clone());
        let pool = Pool::new(origin, &shared.certificates, &identity, workers, home, buffers.clone());
        let tunnels = Tunnels::new(workload.clone(), &shared.certificates, &identity, buffers);
        let pod = Arc::new(Pod {
            shared,
            workload,
            identity,
            netns,
            connections: Arc::default(),
            pool,
            home,
            tunnels,
            successor: OnceLock::new(),
            baggage: OwnBaggage::new(),
        });
        let (stop, stopped) = watch::channel(false);
        let worker = pod.shared.workers.get(home).clone();
        let serve = |listener, serve: fn(&Arc<Pod>, Incoming)| {
            let (pod, stopped) = (pod.clone(), stopped.clone());
            worker.spawn(async move { accept(listener, stopped, |incoming| serve(pod.newest(), incoming)).await });
        };
        serve(listeners.outbound, outbound::serve);
        serve(listeners.hbone, inbound::serve);
        serve(listeners.plaintext, plaintext::serve);
        if let Some(listeners) = listeners.dns {
            let (mesh, metrics) = (pod.shared.mesh.clone(), pod.shared.telemetry.dns().clone());
            let dns = PodDns::new(mesh, pod.workload.clone(), pod.netns.clone(), metrics);
            dns.serve(listeners, &worker, stopped.clone());
        }
        Self { pod, stop }
    }

    /// What its connections share.
    pub(super) fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Has `newer` take what waits in the listeners when this one stops.
    pub(super) fn leave_to(&self, newer: &Self) {
        // Only who replaces it, once, says so.
        let _ = self.pod.successor.set(newer.pod.clone());
    }

    /// Accepts nothing more, says GOAWAY to every peer, and waits until what is open has finished, `deadline` at the
    /// most; then ends it.
    pub async fn stop(&self, deadline: Duration) {
        self.stop.send_replace(true);
        self.pod.pool.drain();
        self.pod.tunnels.drain();
        self.pod.finish(deadline).await;
    }
}

impl Pod {
    /// Waits until what is open has finished and every peer has heard that, `deadline` at the most; then ends it.
    pub(super) async fn finish(&self, deadline: Duration) {
        if tokio::time::timeout(deadline, until(|| self.connections.is_empty() && !self.has_tunnels())).await.is_err() {
            self.connections.end_all(EndReason::Drained);
            // Those who serve them reset both their ends. If the process ended before, that would look like an orderly
            // end of what was cut short.
            let _ = tokio::time::timeout(ENDING, until(|| self.connections.is_empty())).await;
        }
    }

    fn has_tunnels(&self) -> bool {
        self.tunnels.len() > 0 || !self.pool.is_empty()
    }

    /// The tunnels from and to its peers, those that drain among them.
    pub(super) fn all_tunnels(&self) -> Vec<Vetted> {
        self.tunnels.list().into_iter().chain(self.pool.tunnels()).collect()
    }

    /// What serves the pod now: this, or what it has been replaced by.
    fn newest(self: &Arc<Self>) -> &Arc<Self> {
        let mut newest = self;
        while let Some(successor) = newest.successor.get() {
            newest = successor;
        }
        newest
    }

    /// The newest snapshot and this pod in it; `None` once the pod has left the mesh.
    pub(super) fn look(&self) -> Option<(arc_swap::Guard<Arc<Snapshot>>, Arc<Workload>)> {
        let snapshot = self.shared.mesh.load();
        let workload = snapshot.workload(&self.workload)?.clone();
        Some((snapshot, workload))
    }

    /// Decides an inbound call, made on behalf of `client` if its caller may say so, and says what policies on trial would have.
    pub(super) fn judge(
        &self,
        snapshot: &Snapshot,
        workload: &Workload,
        call: &Call<'_>,
        client: Option<&Identity>,
    ) -> Decision {
        let decision = authorize(snapshot, workload, call, client);
        on_trial::tell(&decision.dry_run, call.source_ip, call.destination);
        decision
    }

    /// Counts a connection that `seen` allows as open and puts it on the list of live ones.
    pub(super) fn admit(
        &self,
        seen: &Arc<Snapshot>,
        admission: Admission,
        direction: Direction,
        record: ConnectionRecord,
    ) -> Flow {
        let flow = self.connections.admit(admission, record, self.shared.telemetry.socket(direction));
        // A change between the decision and the listing has not found the connection on the list.
        let newest = self.shared.mesh.load();
        if !Arc::ptr_eq(&newest, seen)
            && let Some(workload) = newest.workload(&self.workload)
            && !flow.admission().is_some_and(|admission| is_allowed(&newest, workload, admission))
        {
            flow.end(EndReason::PolicyChanged);
        }
        flow
    }

    /// Whether the pod has as many live connections as it may.
    pub(super) fn is_full(&self) -> bool {
        self.connections.len() >= MAX_CONNECTIONS
    }

    /// The `baggage` that describes this pod to its peers.
    pub(super) fn baggage(&self, workload: &Arc<Workload>) -> Arc<str> {
        self.baggage.of(workload)
    }

    /// Which worker, counted from home, serves the next tunnel that a peer opens: a peer opens a second one when the
    /// first is busy, so they are best kept apart.
    pub(super) fn next_served(&self) -> usize {
        self.tunnels.len()
    }
}

async fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port that belongs to the proxy itself: a tunnel to it would lead back here.
pub(super) fn is_own_port(addr: SocketAddr) -> bool {
    addr.port() == culvert_core::address::HBONE_PORT
}
