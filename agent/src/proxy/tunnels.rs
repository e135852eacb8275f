//! The tunnels that peers open to one proxy: how many there may be, their handshakes, and their end.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_core::identity::Identity;
use culvert_core::workload::WorkloadUid;
use tokio::runtime::Handle;

use super::accept::Incoming;
use super::limits::Gate;
use super::served::Served;
use crate::hbone::buffers::Buffers;
use crate::hbone::server::{self, Peer};
use crate::hbone::tunnel::{Accept, TunnelError, abort};
use crate::hbone::vetted::Vetted;
use crate::identity::{CertificateHandle, CertificateStore, Clock, Trust, TrustWatch};
use crate::telemetry::PeerLine;

/// What takes tunnels for one workload.
pub(crate) struct Tunnels {
    workload: WorkloadUid,
    certificate: CertificateHandle,
    clock: Arc<dyn Clock>,
    trust: TrustWatch,
    handshakes: Arc<Gate>,
    places: Arc<Gate>,
    served: Arc<Served>,
    buffers: Arc<Buffers>,
}

impl Tunnels {
    /// For `workload`, which speaks as `identity`. What they hold unread counts in `buffers`.
    pub(crate) fn new(
        workload: WorkloadUid,
        certificates: &CertificateStore,
        identity: &Identity,
        buffers: Arc<Buffers>,
    ) -> Arc<Self> {
        let trust = certificates.trust();
        Arc::new(Self {
            workload,
            certificate: certificates.handle(identity),
            clock: certificates.clock().clone(),
            handshakes: Gate::handshakes(),
            places: Gate::tunnels(),
            served: Served::new(trust.clone()),
            trust,
            buffers,
        })
    }

    /// Takes a peer's connection through its handshake and serves the tunnel, on `worker`. `judge` makes the judge of its
    /// streams, of who the peer is, where it dialled from and what it dialled.
    pub(crate) fn serve<A: Accept + 'static>(
        self: &Arc<Self>,
        worker: &Handle,
        incoming: Incoming,
        judge: impl FnOnce(Peer, SocketAddr, SocketAddr) -> A + Send + 'static,
    ) {
        let Some(certificate) = self.certificate.current() else {
            if PeerLine::TunnelRefused.may_be_written() {
                tracing::warn!(workload = %self.workload, peer = %incoming.remote, "tunnel refused: there is no certificate yet");
            }
            return;
        };
        let from = incoming.remote.ip();
        let (handshaking, place) = match (self.handshakes.enter(from), self.places.enter(from)) {
            (Ok(handshaking), Ok(place)) => (handshaking, place),
            (Err(full), _) | (_, Err(full)) => {
                abort(&incoming.socket);
                PeerLine::TunnelFull.happened();
                if full.is_news() {
                    tracing::warn!(workload = %self.workload, peer = %incoming.remote, "tunnel refused: {full}");
                }
                return;
            }
        };
        let this = self.clone();
        worker.spawn(async move {
            let Incoming { socket, remote, local } = incoming;
            let seen = Trust { bundle: certificate.trust.clone(), ..this.trust.now() };
            let (config, now) = (certificate.server.clone(), this.clock.now());
            let judge = |peer| judge(peer, remote, local);
            let accepted = server::accept(socket, config, &seen.domains, now, &this.buffers, judge).await;
            drop(handshaking);
            match accepted {
                Ok((tunnel, vetted)) => {
                    let _serving = this.served.enter(vetted, &seen);
                    this.tell(remote, tunnel.await);
                }
                Err(error) if PeerLine::TunnelRefused.may_be_written() => {
                    tracing::warn!(workload = %this.workload, peer = %remote, "tunnel refused: {error}");
                }
                Err(_) => {}
            }
            drop(place);
        });
    }

    /// Says GOAWAY to every peer, and to those whose handshake is still to end.
    pub(crate) fn drain(&self) {
        self.served.drain();
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.served.len()
    }

    /// Those that are open, to be vetted.
    pub(crate) fn list(&self) -> Vec<Vetted> {
        self.served.tunnels()
    }

    fn tell(&self, remote: SocketAddr, ended: Result<(), TunnelError>) {
        match ended {
            Ok(()) => {}
            // A peer may go away as it likes; what it sends has rules.
            Err(error @ (TunnelError::Io(_) | TunnelError::Closed)) => {
                tracing::debug!(peer = %remote, %error, "tunnel ended");
            }
            Err(error) if PeerLine::TunnelEnded.may_be_written() => {
                tracing::warn!(workload = %self.workload, peer = %remote, "tunnel ended: {error}");
            }
            Err(_) => {}
        }
    }
}
