//! The proxies of every pod of the node.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_core::mesh::Snapshot;

use super::live::LiveReport;
use super::pod::{PodProxy, Shared};
use super::recheck::recheck;
use crate::ca::TrustBundle;
use crate::enrolment::{ProxyControl, ProxyPod};

/// The proxies of every pod. Clones are one.
#[derive(Clone)]
pub struct Proxies {
    shared: Shared,
    drain: Duration,
    pods: Arc<Mutex<HashMap<String, Arc<PodProxy>>>>,
}

impl Proxies {
    /// No proxies yet. Connections get `drain` to finish when their pod leaves.
    pub fn new(shared: Shared, drain: Duration) -> Self {
        Self { shared, drain, pods: Arc::default() }
    }

    /// Asks again whether each live connection is allowed; returns how many were ended.
    pub fn recheck(&self, snapshot: &Snapshot) -> usize {
        self.all().iter().map(|pod| recheck(snapshot, pod.workload(), pod.connections())).sum()
    }

    /// Ends the tunnels to and from peers whose certificates are revoked; returns how many.
    pub fn revoke(&self, trust: &TrustBundle) -> usize {
        self.all().iter().map(|pod| pod.revoke(trust)).sum()
    }

    /// Every live connection, for `/connections`.
    pub fn connections(&self) -> Vec<LiveReport> {
        self.all().iter().flat_map(|pod| pod.connections().report()).collect()
    }

    /// Stops all proxies at once. The pods stay captured.
    pub async fn stop_all(&self) {
        let stops = self.all().into_iter().map(|pod| {
            let drain = self.drain;
            tokio::spawn(async move { pod.stop(drain).await })
        });
        for stop in stops.collect::<Vec<_>>() {
            // A panic in it has been reported by the runtime.
            let _ = stop.await;
        }
    }

    fn all(&self) -> Vec<Arc<PodProxy>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl ProxyControl for Proxies {
    fn start(&self, pod: ProxyPod) {
        let uid = pod.uid.clone();
        let proxy = Arc::new(PodProxy::start(self.shared.clone(), pod));
        let earlier = self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, proxy);
        let counts = self.shared.telemetry.proxies();
        counts.started.inc();
        match earlier {
            Some(earlier) => {
                counts.stopped.inc();
                let drain = self.drain;
                tokio::spawn(async move { earlier.stop(drain).await });
            }
            None => {
                counts.active.inc();
            }
        }
    }

    async fn stop(&self, uid: &str) {
        let Some(pod) = self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid) else { return };
        pod.stop(self.drain).await;
        let counts = self.shared.telemetry.proxies();
        counts.active.dec();
        counts.stopped.inc();
    }
}
