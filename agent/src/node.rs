//! The role `node`: everything the node agent is made of, put together.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use culvert_core::mesh::{Mesh, Snapshot};
use tokio::sync::{mpsc, watch};

use crate::admin::{self, AdminState, Endpoint, Report};
use crate::cluster::Cluster;
use crate::config::NodeConfig;
use crate::enrolment::{self, Identities, States};
use crate::identity::{CertificateStore, StoreOptions, TrustDomains};
use crate::proxy::control::Proxies;
use crate::proxy::pod::Shared;
use crate::redirect::{self, Redirect};
use crate::source::kube::Kube;
use crate::source::{Directory, Source, View};
use crate::telemetry::logging::LogHandle;
use crate::telemetry::{AccessLog, Kind, Sample, Telemetry};
use crate::workers::Workers;

/// The file of the state directory that holds the objects which were read last.
const OBJECTS: &str = "objects";
/// How long an agent that ends waits for them to be written.
const SAVE_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

/// A node agent that is ready to run: configuration read, programs loaded, ports bound.
pub struct Node {
    config: NodeConfig,
    redirect: Arc<Redirect>,
    certificates: CertificateStore,
    source: Source,
    telemetry: Telemetry,
    endpoints: [admin::Bound; 3],
    log: LogHandle,
}

impl Node {
    /// Loads the programs, opens the CA and the source of objects, and binds the ports. Needs a tokio runtime.
    ///
    /// # Errors
    /// What is missing, with the cure; nothing is left bound.
    pub async fn build(config: NodeConfig, log: LogHandle) -> anyhow::Result<Self> {
        let programs = redirect::Config { cgroup: config.cgroup.clone(), pin_path: config.pin_dir.clone() };
        let redirect = Arc::new(Redirect::load(programs)?);
        let authority = config.authority.open()?;
        let certificates = CertificateStore::new(authority, StoreOptions::default());
        let source = match &config.config_dir {
            Some(directory) => Source::Directory(Directory::open(directory).context("--config-dir")?),
            None => Source::Kube(Kube::open(&Cluster::connect().await?, Some(config.state_dir.join(OBJECTS)))),
        };
        let access_log = if config.access_log { AccessLog::stdout(config.log_format) } else { AccessLog::off() };
        let telemetry = Telemetry::new(access_log);
        let endpoints = [
            admin::bind(Endpoint::Admin, config.admin_addr).await?,
            admin::bind(Endpoint::Metrics, config.metrics_addr).await?,
            admin::bind(Endpoint::Readiness, config.readiness_addr).await?,
        ];
        Ok(Self { config, redirect, certificates, source, telemetry, endpoints, log })
    }

    /// The addresses of the admin, metrics and readiness endpoints.
    pub fn addresses(&self) -> [SocketAddr; 3] {
        [self.endpoints[0].address(), self.endpoints[1].address(), self.endpoints[2].address()]
    }

    /// Serves until `stop` resolves or someone asks `/quitquitquit`, then lets connections finish. The pods stay
    /// captured: until an agent runs again, their traffic is refused rather than sent in the clear.
    ///
    /// # Errors
    /// The process is out of threads or descriptors.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let workers = Workers::start(self.config.worker_count()).context("worker threads")?;
        let mesh = Arc::new(ArcSwap::new(Mesh::new().snapshot()));
        let shared = Shared {
            mesh: mesh.clone(),
            certificates: self.certificates.clone(),
            telemetry: self.telemetry.clone(),
            workers,
        };
        let proxies = Proxies::new(shared, self.config.drain_seconds);
        let states = States::default();
        let (snapshots, followed) = watch::channel(mesh.load_full());
        let (loaded, is_loaded) = watch::channel(false);
        let mut until_loaded = is_loaded.clone();
        let (quit, mut quitting) = mpsc::channel::<()>(1);

        let read_mesh = mesh.clone();
        let mut dump = admin::mesh_members(Arc::new(move || read_mesh.load_full()), self.certificates.clone());
        let (view, saver) = (self.source.view(), self.source.saver());
        dump.push(view.report());
        let state = AdminState {
            config: dump,
            connections: {
                let proxies = proxies.clone();
                Report::new(move || proxies.connections())
            },
            redirection: redirection(&self.redirect, &states, &self.config.node_name),
            readiness: readiness(&states, is_loaded, view.clone()),
            notes: {
                let view = view.clone();
                Arc::new(move || view.notes())
            },
            telemetry: self.telemetry.clone(),
            log: self.log,
            shutdown: Arc::new(move || {
                // Full means that it has been asked already.
                let _ = quit.try_send(());
            }),
        };
        for endpoint in self.endpoints {
            tokio::spawn(endpoint.serve(state.clone()));
        }
        let programs = self.redirect.clone();
        self.telemetry.register_samples(
            "culvert_redirection",
            "What the eBPF programs captured, passed, refused or gave up on",
            Kind::Counter,
            move || programs.counters().into_iter().map(sample).collect(),
        );
        self.certificates.register_metrics(&self.telemetry);
        view.register_metrics(&self.telemetry);
        let state = Mesh::new().for_node(&self.config.node_name);
        tokio::spawn(follow_objects(
            self.source,
            state,
            mesh,
            snapshots,
            loaded,
            self.certificates.clone(),
            proxies.clone(),
        ));
        tokio::spawn(follow_trust(self.certificates.clone(), proxies.clone()));
        let context = enrolment::Context {
            redirect: self.redirect,
            certificates: self.certificates,
            proxies: proxies.clone(),
            states,
            is_whole: Box::new(move || view.is_whole()),
            identities: Identities::default(),
        };
        let enrolment = async {
            // Not on the empty mesh: it wants none of the pods that an earlier agent left enrolled.
            if until_loaded.wait_for(|loaded| *loaded).await.is_ok() {
                enrolment::run(followed, self.config.node_name, Arc::new(context)).await;
            }
        };
        tokio::select! {
            () = enrolment => {}
            () = stop => tracing::info!("stopping: connections may finish"),
            _ = quitting.recv() => tracing::info!("stopping on request: connections may finish"),
        }
        proxies.stop_all().await;
        if let Some(saver) = saver {
            // The disk may be what is wrong.
            let _ = tokio::time::timeout(SAVE_WITHIN, saver.save()).await;
        }
        self.telemetry.access_log().flush(std::time::Duration::from_secs(1));
        Ok(())
    }
}

/// Takes in what the source says, and has everyone look at the result once it is whole.
async fn follow_objects(
    mut source: Source,
    mut state: Mesh,
    mesh: Arc<ArcSwap<Snapshot>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    loaded: watch::Sender<bool>,
    certificates: CertificateStore,
    proxies: Proxies,
) {
    while let Some(update) = source.next().await {
        for finding in state.stage(update.changes) {
            tracing::warn!("{finding}");
        }
        if !update.settled {
            continue;
        }
        let snapshot = state.publish();
        let options = snapshot.options();
        let trusted = TrustDomains::new(options.trust_domain.clone(), options.trust_domain_aliases.iter().cloned());
        if *certificates.trust_domains() != trusted {
            certificates.set_trust_domains(trusted);
        }
        mesh.store(snapshot.clone());
        let ended = proxies.recheck(&snapshot);
        if ended > 0 {
            tracing::info!(ended, "connections closed: what allowed them has changed");
        }
        snapshots.send_replace(snapshot);
        loaded.send_replace(true);
    }
}

/// Ends connections of peers whose certificates are revoked.
async fn follow_trust(certificates: CertificateStore, proxies: Proxies) {
    let mut trust = certificates.trust();
    while trust.changed().await.is_ok() {
        let bundle = trust.borrow_and_update().clone();
        let ended = proxies.revoke(&bundle);
        if ended > 0 {
            tracing::warn!(ended, "connections closed: the peer's certificate was revoked");
        }
    }
}

/// `/redirection`: the pods as enrolment sees them and as the programs do.
fn redirection(redirect: &Arc<Redirect>, states: &States, node: &str) -> Report {
    let (redirect, states, node) = (redirect.clone(), states.clone(), node.to_owned());
    Report::new(move || {
        serde_json::json!({
            "node": node,
            "pods": states.list(),
            "programs": redirect.report(),
            "counters": redirect.counters(),
        })
    })
}

fn sample(counter: redirect::Counter) -> Sample {
    let labels = vec![("event", counter.name.to_owned()), ("reason", counter.reason.to_owned())];
    Sample { labels, value: counter.value }
}

fn readiness(states: &States, loaded: watch::Receiver<bool>, view: View) -> Vec<admin::ReadinessCheck> {
    let states = states.clone();
    vec![
        Arc::new(move || {
            if *loaded.borrow() {
                return Vec::new();
            }
            let missing = view.missing();
            if missing.is_empty() { vec!["the configuration has not been read yet".to_owned()] } else { missing }
        }),
        Arc::new(move || states.not_ready()),
    ]
}
