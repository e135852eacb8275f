//! The proxies of every pod of the node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use culvert_core::mesh::Snapshot;

use super::live::LiveReport;
use super::pod::{Pod, PodProxy, Shared};
use super::recheck::recheck;
use crate::enrolment::{ProxyControl, ProxyPod};
use crate::identity::Trust;

/// The proxies of every pod. Clones are one.
#[derive(Clone)]
pub struct Proxies {
    shared: Shared,
    drain: Duration,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    /// The proxies of each pod, by its uid.
    serving: HashMap<String, Arc<PodProxy>>,
    /// Those that let finish what they carry, for as long as anything of them is left: it stays subject to policy and
    /// to whom the mesh trusts.
    stopping: Vec<Weak<Pod>>,
}

impl Proxies {
    /// No proxies yet. Connections get `drain` to finish when their pod leaves.
    pub fn new(shared: Shared, drain: Duration) -> Self {
        Self { shared, drain, known: Arc::default() }
    }

    /// Asks again whether each live connection is allowed; returns how many were ended.
    pub fn recheck(&self, snapshot: &Snapshot) -> usize {
        self.all().iter().map(|pod| recheck(snapshot, &pod.workload, &pod.connections)).sum()
    }

    /// Ends the tunnels to and from peers that would not be let in under `trust`; returns how many. Verifies every
    /// chain, which takes some 0.1 ms for each: for a thread that may be kept busy.
    pub fn vet(&self, trust: &Trust) -> usize {
        self.all().iter().flat_map(|pod| pod.all_tunnels()).filter(|tunnel| tunnel.vet(trust)).count()
    }

    /// Every live connection, for `/connections`.
    pub fn connections(&self) -> Vec<LiveReport> {
        self.all().iter().flat_map(|pod| pod.connections.report()).collect()
    }

    /// Stops all proxies at once. The pods stay captured.
    pub async fn stop_all(&self) {
        let drain = self.drain;
        let stops: Vec<_> = {
            let known = self.known();
            let stopping = known.stopping.iter().filter_map(Weak::upgrade);
            let finishing = stopping.map(|pod| tokio::spawn(async move { pod.finish(drain).await }));
            let serving = known.serving.values().cloned();
            finishing.chain(serving.map(|pod| tokio::spawn(async move { pod.stop(drain).await }))).collect()
        };
        for stop in stops {
            // A panic in it has been reported by the runtime.
            let _ = stop.await;
        }
    }

    fn all(&self) -> Vec<Arc<Pod>> {
        let known = self.known();
        let serving = known.serving.values().map(|proxy| proxy.pod().clone());
        serving.chain(known.stopping.iter().filter_map(Weak::upgrade)).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Takes out the proxies of a pod that are about to stop.
    fn take(&mut self, uid: &str) -> Option<Arc<PodProxy>> {
        let taken = self.serving.remove(uid);
        self.stop(taken.as_ref());
        taken
    }

    fn stop(&mut self, proxy: Option<&Arc<PodProxy>>) {
        self.stopping.retain(|pod| pod.strong_count() > 0);
        self.stopping.extend(proxy.map(|proxy| Arc::downgrade(proxy.pod())));
    }
}

impl ProxyControl for Proxies {
    fn start(&self, pod: ProxyPod) {
        let uid = pod.uid.clone();
        let proxy = Arc::new(PodProxy::start(self.shared.clone(), pod));
        let earlier = {
            let mut known = self.known();
            let earlier = known.serving.insert(uid, proxy.clone());
            known.stop(earlier.as_ref());
            earlier
        };
        let counts = self.shared.telemetry.proxies();
        counts.started.inc();
        match earlier {
            Some(earlier) => {
                counts.stopped.inc();
                earlier.leave_to(&proxy);
                let drain = self.drain;
                tokio::spawn(async move { earlier.stop(drain).await });
            }
            None => {
                counts.active.inc();
            }
        }
    }

    async fn stop(&self, uid: &str) {
        let Some(pod) = self.known().take(uid) else { return };
        pod.stop(self.drain).await;
        let counts = self.shared.telemetry.proxies();
        counts.active.dec();
        counts.stopped.inc();
    }
}
