//! The role `waypoint`: the proxy that routes and authorizes what is asked of the services that are bound to it.
//!
//! Clients' nodes open tunnels to it, as they do to pods, and ask for the address that their pod dialled. What is HTTP is
//! routed request by request, anything else connection by connection; either goes on through tunnels of the waypoint's own
//! identity. It needs no privilege, and knows nothing of network namespaces.
//!
//! | module | what it is for |
//! |---|---|
//! | `objects` | following what is known of the mesh |
//! | [`place`] | who this waypoint is: its workload and identity |
//! | [`shared`] | what its sessions share |
//! | `listen`, `inbound` | tunnels in, and the judgement of what they are asked for |
//! | [`session`] | what is known of a connection before its first byte |
//! | [`protocol`] | what it speaks, told by its first bytes |
//! | `stream` | connections that carry no requests |
//! | [`gate`] | who may do what: providers, tokens, policies |
//! | [`upstream`] | from where a request or connection goes to the bytes at an endpoint |
//! | `reach` | the servers that the gate asks |
//! | [`http`], [`body`] | requests, and the bodies of requests and answers |
//! | `ending`, `shown` | its end, and what the admin endpoints show |

pub mod body;
mod ending;
pub mod gate;
pub mod http;
mod inbound;
mod listen;
mod objects;
pub mod place;
pub mod protocol;
mod reach;
pub mod session;
pub mod shared;
mod shown;
mod stream;
pub mod upstream;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use culvert_core::mesh::{Mesh, Snapshot};
use tokio::sync::{mpsc, watch};

use self::ending::Ending;
use self::listen::Listener;
use self::objects::Followers;
use self::place::Placement;
use self::shared::Shared;
use crate::admin;
use crate::ca::Asker;
use crate::cluster::Cluster;
use crate::config::WaypointConfig;
use crate::identity::{CertificateStore, StoreOptions};
use crate::role;
use crate::source::{Reader, Source};
use crate::telemetry::Telemetry;
use crate::telemetry::logging::LogHandle;
use crate::workers::Workers;

pub use self::stream::Through;

/// A waypoint that is ready to run: configuration read, ports bound.
pub struct Waypoint {
    config: WaypointConfig,
    source: Source,
    certificates: CertificateStore,
    telemetry: Telemetry,
    endpoints: [admin::Bound; 3],
    listeners: Vec<Listener>,
    log: LogHandle,
}

/// What is there from the start, and what comes to be.
#[derive(Clone)]
struct Coming {
    /// The newest snapshot, for whoever asks.
    mesh: Arc<ArcSwap<Snapshot>>,
    /// Whether there has been one.
    loaded: watch::Sender<bool>,
    placement: Arc<Placement>,
    /// Once the waypoint knows who it is.
    shared: Arc<OnceLock<Arc<Shared>>>,
    /// Whether it is about to end: from then on it is not ready.
    stopping: watch::Sender<bool>,
    /// Whether nothing new begins any more, a moment later.
    draining: watch::Sender<bool>,
}

impl Waypoint {
    /// Opens the CA and the source of objects, and binds the ports. Needs a tokio runtime.
    ///
    /// # Errors
    /// What is missing, with the cure; nothing is left bound.
    pub async fn build(config: WaypointConfig, log: LogHandle) -> anyhow::Result<Self> {
        let authority = config.authority.open(Asker::Itself)?;
        let certificates = CertificateStore::new(authority, StoreOptions::default());
        let cluster = match config.config_dir {
            Some(_) => None,
            None => Some(Cluster::connect().await?),
        };
        // It has no disk of its own.
        let source = Source::open(config.config_dir.as_deref(), cluster.as_ref(), Reader::Waypoint, None)?;
        let telemetry = Telemetry::new(role::access_log(&config.traffic, &config.log));
        let endpoints = admin::bind_all(config.endpoints.addresses()).await?;
        let listeners = listen::bind_all(&config.listen_on())?;
        Ok(Self { config, source, certificates, telemetry, endpoints, listeners, log })
    }

    /// The addresses of the admin, metrics and readiness endpoints, and where tunnels arrive.
    pub fn addresses(&self) -> ([SocketAddr; 3], Vec<SocketAddr>) {
        let endpoints = [0, 1, 2].map(|at: usize| self.endpoints[at].address());
        (endpoints, self.listeners.iter().map(Listener::address).collect())
    }

    /// Serves until `stop` resolves or someone asks `/quitquitquit`, then lets requests and connections finish.
    ///
    /// # Errors
    /// The process is out of threads or descriptors, or a part of the waypoint has ended by a bug.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let workers = Workers::start(self.config.traffic.worker_count()).context("worker threads")?;
        let coming = Coming {
            mesh: Arc::new(ArcSwap::new(Mesh::new().snapshot())),
            loaded: watch::Sender::new(false),
            placement: Arc::new(Placement::new(&self.config)),
            shared: Arc::default(),
            stopping: watch::Sender::new(false),
            draining: watch::Sender::new(false),
        };
        let (quit, mut quitting) = mpsc::channel::<()>(1);
        let state = shown::admin_state(&self, &coming, quit);
        shown::register_metrics(&self, &coming);
        for endpoint in self.endpoints {
            tokio::spawn(endpoint.serve(state.clone()));
        }
        tokio::spawn(role::release_memory(coming.loaded.subscribe()));
        let vetted = coming.shared.clone();
        let vet = move |trust: &_| vetted.get().map_or(0, |shared| shared.vet(trust));
        let trust = tokio::spawn(role::follow_trust(self.certificates.clone(), vet));

        // No node's: a waypoint enrols nobody.
        let mesh = Mesh::with_rules(self.config.enrolment.rules()?).for_node("");
        let (snapshots, followed) = watch::channel(coming.mesh.load_full());
        let followers = Followers { certificates: self.certificates.clone(), coming: coming.clone(), snapshots };
        let following = tokio::spawn(objects::follow(self.source, mesh, followers));
        let (certificates, telemetry) = (self.certificates, self.telemetry.clone());
        let serving = serve(self.listeners, coming.clone(), followed, certificates, telemetry, workers);
        let outcome = tokio::select! {
            never = serving => match never {},
            _ = following => Err(anyhow!("the task that follows what is configured ended, which is a bug")),
            // Nobody would end what is not trusted any more.
            _ = trust => Err(anyhow!("the task that follows whom to trust ended, which is a bug")),
            () = stop => {
                tracing::info!("stopping: requests and connections may finish");
                Ok(())
            }
            _ = quitting.recv() => {
                tracing::info!("stopping on request: requests and connections may finish");
                Ok(())
            }
        };
        Ending { coming, telemetry: self.telemetry, within: self.config.traffic.drain_seconds }.end().await;
        outcome
    }
}

/// Takes tunnels, once it is known who the waypoint is and it can prove so.
async fn serve(
    listeners: Vec<Listener>,
    coming: Coming,
    mut followed: watch::Receiver<Arc<Snapshot>>,
    certificates: CertificateStore,
    telemetry: Telemetry,
    workers: Workers,
) -> std::convert::Infallible {
    let own = coming.placement.find(&mut followed).await;
    // Renewal says why, when this takes its time.
    while certificates.fetch(&own.identity).await.is_err() {
        tokio::time::sleep(place::AGAIN).await;
    }
    tracing::info!(workload = %own.workload.uid, identity = %own.identity, "serving");
    let mesh = coming.mesh.clone();
    let shared = Shared::new(own, mesh, certificates, telemetry, workers, coming.draining.subscribe());
    let shared = coming.shared.get_or_init(|| shared).clone();
    listen::accept_all(listeners, &shared);
    std::future::pending().await
}
