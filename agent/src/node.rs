//! The role `node`: everything the node agent is made of, put together.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use culvert_core::mesh::{Mesh, Snapshot};
use tokio::sync::{mpsc, watch};

use crate::admin::{self, AdminState, Endpoint, Report};
use crate::bypass::Destinations;
use crate::charge::{Charge, taken_after};
use crate::cluster::Cluster;
use crate::cni;
use crate::cni::lifecycle::Lifecycle;
use crate::cni::server::Told;
use crate::config::NodeConfig;
use crate::enrolment::{self, Announcer, Identities, Pods, States};
use crate::identity::{CertificateStore, StoreOptions, TrustDomains};
use crate::proxy::control::Proxies;
use crate::proxy::pod::Shared;
use crate::redirect::{self, Redirect};
use crate::source::kube::Kube;
use crate::source::{self, Directory, Source, View};
use crate::telemetry::logging::LogHandle;
use crate::telemetry::{AccessLog, Kind, Sample, Telemetry};
use crate::workers::Workers;

/// When charge of the node's pods is tried for again after it could not be taken.
const CHARGE_AGAIN: std::time::Duration = std::time::Duration::from_secs(1);
/// When the pods that were there at the start are served, after their objects are known.
const STARTED_AFTER: std::time::Duration = std::time::Duration::from_secs(1);
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
    cluster: Option<Cluster>,
    cni: Option<cni::AgentSide>,
    log: LogHandle,
}

impl Node {
    /// Loads the programs, opens the CA and the source of objects, and binds the ports. Needs a tokio runtime.
    ///
    /// # Errors
    /// What is missing, with the cure; nothing is left bound.
    pub async fn build(config: NodeConfig, log: LogHandle) -> anyhow::Result<Self> {
        let programs = redirect::Config {
            cgroup: config.cgroup.clone(),
            host_netns: config.host_netns.clone(),
            pin_path: config.pin_dir.clone(),
        };
        let redirect = Arc::new(Redirect::load(programs)?);
        let authority = config.authority.open()?;
        let certificates = CertificateStore::new(authority, StoreOptions::default());
        let cluster = match config.config_dir {
            Some(_) => None,
            None => Some(Cluster::connect().await?),
        };
        let source = match (&cluster, &config.config_dir) {
            (Some(cluster), _) => Source::Kube(Kube::open(cluster, Some(config.state_dir.join(source::OBJECTS)))),
            (None, Some(directory)) => Source::Directory(
                Directory::open(directory, config.state_dir.join(source::FILES)).context("--config-dir")?,
            ),
            (None, None) => anyhow::bail!("--config-dir: not given"),
        };
        let access_log = if config.access_log { AccessLog::stdout(config.log_format) } else { AccessLog::off() };
        let telemetry = Telemetry::new(access_log);
        let endpoints = [
            admin::bind(Endpoint::Admin, config.admin_addr).await?,
            admin::bind(Endpoint::Metrics, config.metrics_addr).await?,
            admin::bind(Endpoint::Readiness, config.readiness_addr).await?,
        ];
        let cni = match config.cni {
            // As long as another agent serves the node's pods, it answers the plugin as well.
            true => Some(cni::AgentSide::new(cni_paths(&config), !redirect.is_anyone_in_charge())?),
            false => None,
        };
        Ok(Self { config, redirect, certificates, source, telemetry, endpoints, cluster, cni, log })
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
        tokio::spawn(release_memory(is_loaded.clone()));
        let (quit, mut quitting) = mpsc::channel::<()>(1);
        let charge = Charge::new(self.redirect.clone());

        let read_mesh = mesh.clone();
        let mut dump = admin::mesh_members(Arc::new(move || read_mesh.load_full()), self.certificates.clone());
        let (view, saver, ahead) = (self.source.view(), self.source.saver(), self.source.ahead());
        dump.push(view.report());
        let state = AdminState {
            config: dump,
            connections: {
                let proxies = proxies.clone();
                Report::new(move || proxies.connections())
            },
            redirection: redirection(&self.redirect, &states, &self.config.node_name),
            readiness: readiness(&states, is_loaded, view.clone(), self.cni.as_ref().map(cni::AgentSide::problems)),
            notes: {
                let view = view.clone();
                let states = states.clone();
                Arc::new(move || view.notes().into_iter().chain(states.notes()).collect())
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
        let rules = Arc::new(self.config.rules()?);
        let mut state = Mesh::with_rules((*rules).clone()).for_node(&self.config.node_name);
        if self.cluster.is_some() {
            state = state.without_named_netns();
        }
        let (tell, told) = mpsc::channel(64);
        if self.config.cni {
            for (pod, sandbox) in cni::sandboxes::load(&self.config.state_dir) {
                state.set_sandbox(pod, Some(sandbox));
            }
        }
        let followers = Followers {
            certificates: self.certificates.clone(),
            proxies: proxies.clone(),
            destinations: Destinations::new(self.redirect.clone(), &self.config.node_name),
            charge: charge.clone(),
        };
        tokio::spawn(follow_objects(self.source, told, state, mesh, snapshots, loaded, followers));
        let trust = tokio::spawn(follow_trust(self.certificates.clone(), proxies.clone()));
        let following = tokio::spawn(charge.clone().follow());
        let pods = self.cluster.clone().map(Pods::new);
        let announcer = match &self.cluster {
            Some(cluster) => Announcer::start(cluster.clone(), self.config.node_name.clone()),
            None => Announcer::silent(),
        };
        let lifecycle = self.cluster.clone().map(|cluster| Lifecycle::new(cluster, self.config.daemonset.clone()));
        let lifecycle = Arc::new(lifecycle);
        if lifecycle.is_some() {
            let lifecycle = lifecycle.clone();
            tokio::spawn(async move {
                if let Some(lifecycle) = &*lifecycle {
                    lifecycle.begin().await;
                }
            });
        }
        let context = enrolment::Context {
            redirect: self.redirect.clone(),
            certificates: self.certificates,
            proxies: proxies.clone(),
            states,
            turns: charge.subscribe(),
            identities: Identities::default(),
            announcer: announcer.clone(),
            pods: pods.clone(),
        };
        // Once there is a mesh: a plugin that asks before waits in the socket's queue.
        let plugin = {
            let (snapshots, states) = (followed.clone(), context.states.clone());
            let context = cni::server::Context {
                rules,
                state_dir: self.config.state_dir.clone(),
                snapshots,
                states,
                mesh: tell,
                pods: pods.zip(ahead),
                turns: charge.subscribe(),
            };
            let (cni, cluster, telemetry) = (self.cni, self.cluster, self.telemetry.clone());
            let node = self.config.node_name.clone();
            move || {
                if let Some(cni) = cni {
                    cni.start(context, node, cluster, telemetry);
                }
            }
        };
        let state_dir = self.config.state_dir.clone();
        let (node_name, paths) = (self.config.node_name.clone(), self.config.cni.then(|| cni_paths(&self.config)));
        let enrolment = async {
            // Not on the empty mesh: it wants none of the pods that an earlier agent left enrolled.
            if until_loaded.wait_for(|loaded| *loaded).await.is_ok() {
                plugin();
                enrolment::run(followed, node_name, Arc::new(context)).await;
            }
        };
        let mut failure = None;
        tokio::select! {
            () = enrolment => {}
            // Nobody would end what is not trusted any more.
            _ = trust => failure = Some(anyhow::anyhow!("the task that follows whom to trust ended, which is a bug")),
            () = stop => tracing::info!("stopping: connections may finish"),
            _ = quitting.recv() => tracing::info!("stopping on request: connections may finish"),
        }
        following.abort();
        let is_over = match &*lifecycle {
            Some(lifecycle) => lifecycle.is_over().await,
            None => false,
        };
        if is_over {
            release_all(&self.redirect);
            announcer.farewell().await;
        } else {
            // Whoever is there, or comes, need not wait for what this agent still carries.
            let redirect = self.redirect.clone();
            let _ = tokio::task::spawn_blocking(move || redirect.give_up_charge()).await;
        }
        proxies.stop_all().await;
        if is_over {
            if let Err(error) = self.redirect.uninstall() {
                tracing::warn!(%error, "not everything could be removed from this node");
            }
            if let Some(paths) = paths {
                cni::remove(&paths);
            }
            source::forget(&state_dir);
        } else if let Some(saver) = saver {
            // The disk may be what is wrong.
            let _ = tokio::time::timeout(SAVE_WITHIN, saver.save()).await;
        }
        self.redirect.retire();
        self.telemetry.access_log().flush(std::time::Duration::from_secs(1));
        failure.map_or(Ok(()), Err)
    }
}

/// Gives back what starting took of memory, once that is over.
async fn release_memory(mut is_loaded: watch::Receiver<bool>) {
    if is_loaded.wait_for(|loaded| *loaded).await.is_err() {
        return;
    }
    tokio::time::sleep(STARTED_AFTER).await;
    // A panic was reported by the runtime.
    if let Ok(Err(error)) = tokio::task::spawn_blocking(redirect::memory::release).await {
        tracing::debug!(%error, "the memory that starting took is not given back");
    }
}

/// Who looks at each new state of the mesh.
struct Followers {
    certificates: CertificateStore,
    proxies: Proxies,
    destinations: Destinations,
    charge: Charge,
}

/// New connections of pods go as if there were no mesh; those that are open may finish.
fn release_all(redirect: &Redirect) {
    for uid in redirect.captured() {
        if let Err(error) = redirect.release(&uid) {
            tracing::warn!(%error, "a pod stays captured");
        }
    }
}

/// Where the CNI plugin's files are.
fn cni_paths(config: &NodeConfig) -> cni::Paths {
    cni::Paths::new(&config.cni_directories, &config.state_dir)
}

/// Takes in what the source and the CNI plugin say, and has everyone look at the result once it is whole.
async fn follow_objects(
    mut source: Source,
    mut told: mpsc::Receiver<Told>,
    mut state: Mesh,
    mesh: Arc<ArcSwap<Snapshot>>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    loaded: watch::Sender<bool>,
    followers: Followers,
) {
    let Followers { certificates, proxies, mut destinations, charge } = followers;
    let mut turns = charge.subscribe();
    // The turn in which the programs were told last.
    let mut told_in = 0;
    let mut settled = false;
    let mut waiting = Vec::new();
    loop {
        let changes = tokio::select! {
            update = source.next() => {
                let Some(update) = update else { return };
                settled = update.settled;
                if settled {
                    state.set_completeness(update.whole, update.incomplete);
                }
                update.changes
            }
            Some(Told { pod, sandbox, seen }) = told.recv() => {
                state.set_sandbox(pod, sandbox);
                waiting.extend(seen);
                Vec::new()
            }
            () = tokio::time::sleep(CHARGE_AGAIN), if settled && turns.borrow().taken == 0 => Vec::new(),
            // The programs are told everything anew by who is in charge.
            _ = taken_after(&mut turns, told_in) => Vec::new(),
        };
        for finding in state.stage(changes) {
            tracing::warn!("{finding}");
        }
        if !settled {
            continue;
        }
        if turns.borrow().taken == 0
            && let Err(error) = charge.take().await
        {
            tracing::error!(%error, "cannot take charge of this node's pods; trying again in a moment");
            continue;
        }
        let snapshot = state.publish();
        let options = snapshot.options();
        let trusted = TrustDomains::new(options.trust_domain.clone(), options.trust_domain_aliases.iter().cloned());
        if *certificates.trust_domains() != trusted {
            certificates.set_trust_domains(trusted);
        }
        told_in = turns.borrow().taken;
        let touched = state.take_touched();
        mesh.store(snapshot.clone());
        // First: what is open must not wait until the programs have been told of thousands of destinations.
        let ended = proxies.recheck(&snapshot);
        if ended > 0 {
            tracing::info!(ended, "connections closed: what allowed them has changed");
        }
        // Before the pods are taken in that rely on it.
        let known = snapshot.clone();
        let follow = move || {
            destinations.follow(&known, touched);
            destinations
        };
        destinations = match tokio::task::spawn_blocking(follow).await {
            Ok(destinations) => destinations,
            // The runtime is being shut down, or it has reported a panic.
            Err(_) => return,
        };
        snapshots.send_replace(snapshot);
        loaded.send_replace(true);
        for seen in waiting.drain(..) {
            // Who has stopped waiting does not mind.
            let _ = seen.send(());
        }
    }
}

/// Ends the tunnels to and from peers that the mesh trusts no longer.
async fn follow_trust(certificates: CertificateStore, proxies: Proxies) {
    let mut watch = certificates.trust();
    while let Some(trust) = watch.changed().await {
        let proxies = proxies.clone();
        match tokio::task::spawn_blocking(move || proxies.vet(&trust)).await {
            Ok(0) => {}
            Ok(ended) => tracing::warn!(ended, "tunnels closed: their peers are not trusted any more"),
            // A panic was reported by the runtime. Without this task the agent ends.
            Err(_) => return,
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
            "outbound": redirect.outbound(),
            "counters": redirect.counters(),
        })
    })
}

fn sample(counter: redirect::Counter) -> Sample {
    let labels = vec![("event", counter.name.to_owned()), ("reason", counter.reason.to_owned())];
    Sample { labels, value: counter.value }
}

fn readiness(
    states: &States,
    loaded: watch::Receiver<bool>,
    view: View,
    plugin: Option<impl Fn() -> Vec<String> + Send + Sync + 'static>,
) -> Vec<admin::ReadinessCheck> {
    let states = states.clone();
    vec![
        Arc::new(move || plugin.as_ref().map(|problems| problems()).unwrap_or_default()),
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
