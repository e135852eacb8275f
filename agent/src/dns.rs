//! The DNS of enrolled pods: names of the mesh are answered, everything else goes to the server that the pod asked, as
//! the bytes that it came as.
//!
//! | module | what it is for |
//! |---|---|
//! | `datagrams`, `streams` | the pod's two listeners, UDP and TCP |
//! | `upstream` | questions to the server that the pod asked, from inside the pod |
//! | [`metrics`] | what is counted |
//!
//! While no agent runs, the pod's questions are refused at once: answered by others, names would lead past the mesh.

mod datagrams;
pub mod metrics;
mod streams;
mod upstream;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use culvert_core::dns::message::{self, Question, Request};
use culvert_core::dns::{Answer, resolve};
use culvert_core::mesh::Snapshot;
use culvert_core::workload::WorkloadUid;
use hickory_proto::op::ResponseCode;
use rand::Rng;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::proxy::accept::accept;
use crate::redirect::{DnsListeners, PodNetns};
use metrics::{Metrics, Protocol};

/// Questions of one pod that wait for a server; more are refused. Each costs a socket and a few kilobytes.
const MAX_WAITING: usize = 512;
/// Connections of one pod for DNS over TCP; more are reset.
const MAX_STREAMS: usize = 64;
/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What serves the DNS of one pod.
pub(crate) struct PodDns {
    mesh: Arc<ArcSwap<Snapshot>>,
    workload: WorkloadUid,
    netns: Arc<PodNetns>,
    metrics: Metrics,
    waiting: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
}

/// What becomes of a message.
enum Verdict {
    /// This is the answer.
    Answer(Vec<u8>),
    /// It goes to the server that was asked.
    Forward,
    /// Nothing.
    Ignore,
}

impl PodDns {
    /// Serves `workload`, which lives in `netns`.
    pub(crate) fn new(
        mesh: Arc<ArcSwap<Snapshot>>,
        workload: WorkloadUid,
        netns: Arc<PodNetns>,
        metrics: Metrics,
    ) -> Self {
        Self { mesh, workload, netns, metrics, waiting: Arc::default(), streams: Arc::default() }
    }

    /// Serves the listeners on `worker` until `stop` changes or its sender goes.
    pub(crate) fn serve(self, listeners: DnsListeners, worker: &Handle, stop: watch::Receiver<bool>) {
        let dns = Arc::new(self);
        let DnsListeners { udp, tcp, replies } = listeners;
        let (this, stopped, own) = (dns.clone(), stop.clone(), worker.clone());
        worker.spawn(async move {
            let serve = |incoming| streams::serve(&this, incoming, &own, stopped.clone());
            accept(tcp, stopped.clone(), serve).await;
        });
        worker.spawn(datagrams::serve(dns, udp, replies, stop));
    }

    /// Decides what becomes of a message that came by `protocol`.
    fn consider(&self, message: &[u8], protocol: Protocol) -> Verdict {
        match message::read(message) {
            Request::Noise => {
                self.metrics.malformed(protocol);
                Verdict::Ignore
            }
            Request::Malformed(answer) => {
                self.metrics.malformed(protocol);
                Verdict::Answer(answer)
            }
            Request::Other(kind) => {
                self.metrics.request(protocol, kind);
                Verdict::Forward
            }
            Request::Addresses(question) => {
                self.metrics.request(protocol, Some(question.record_type()));
                self.answer(&question, protocol)
            }
        }
    }

    fn answer(&self, question: &Question, protocol: Protocol) -> Verdict {
        let snapshot = self.mesh.load();
        // A pod that is leaving the mesh is answered as if it had left.
        let Some(client) = snapshot.workload(&self.workload) else { return Verdict::Forward };
        match resolve(&snapshot, client, &question.name, question.family) {
            Answer::Forward => Verdict::Forward,
            Answer::Known { alias_of, mut addresses } => {
                spread(&mut addresses);
                let limit = match protocol {
                    Protocol::Udp => question.payload(),
                    Protocol::Tcp => usize::from(u16::MAX),
                };
                question.answer(alias_of.as_deref(), &addresses, limit).map_or(Verdict::Ignore, Verdict::Answer)
            }
        }
    }
}

/// Has clients that take the first address take another each time.
fn spread(addresses: &mut [IpAddr]) {
    if addresses.len() > 1 {
        addresses.rotate_left(rand::rng().random_range(0..addresses.len()));
    }
}

/// What a client is told when its server does not answer.
fn failed(request: &[u8]) -> Vec<u8> {
    message::error(request, ResponseCode::ServFail)
}

/// One place among a limited number, given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let grow = |count| (count < limit).then_some(count + 1);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).ok()?;
        Some(Self(taken.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
