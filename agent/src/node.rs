//! The role `node`: everything the node agent is made of, put together.
//!
//! This file is the agent's life: what it is built of, what it runs, and how it ends. `objects` follows the mesh, `shown`
//! is what the admin endpoints show, `ending` the end.

mod ending;
mod objects;
mod shown;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use arc_swap::ArcSwap;
use culvert_core::enrolment::EnrolmentRules;
use culvert_core::mesh::{Mesh, Snapshot};
use tokio::sync::{mpsc, watch};

use crate::admin;
use crate::bypass::Destinations;
use crate::ca::Asker;
use crate::charge::Charge;
use crate::cluster::Cluster;
use crate::cni;
use crate::cni::lifecycle::Lifecycle;
use crate::config::NodeConfig;
use crate::enrolment::{self, Announcer, Identities, Pods, States};
use crate::identity::{CertificateStore, StoreOptions};
use crate::proxy::control::Proxies;
use crate::proxy::pod::Shared;
use crate::redirect::{self, Redirect};
use crate::role;
use crate::source::{Reader, Source};
use crate::telemetry::Telemetry;
use crate::telemetry::logging::LogHandle;
use crate::workers::Workers;

use ending::Ending;
use objects::Followers;

/// A node agent that is ready to run: configuration read, programs loaded, ports bound.
pub struct Node {
    config: NodeConfig,
    redirect: Arc<Redirect>,
    certificates: CertificateStore,
    source: Source,
    telemetry: Telemetry,
    endpoints: Vec<admin::Bound>,
    cluster: Option<Cluster>,
    cni: Option<cni::AgentSide>,
    log: LogHandle,
}

/// What the parts of a running agent share.
struct Serving {
    mesh: Arc<ArcSwap<Snapshot>>,
    proxies: Proxies,
    states: States,
    charge: Charge,
    /// Whether the mesh has been known once.
    loaded: watch::Sender<bool>,
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
        let authority = config.authority.open(Asker::Node)?;
        let certificates = CertificateStore::new(authority, StoreOptions::default());
        let cluster = match config.config_dir {
            Some(_) => None,
            None => Some(Cluster::connect().await?),
        };
        let directory = config.config_dir.as_deref();
        let source = Source::open(directory, cluster.as_ref(), Reader::Node, Some(&config.state_dir))?;
        let telemetry = Telemetry::new(role::access_log(&config.traffic, &config.log));
        let endpoints = admin::bind_all(config.endpoints.addresses()).await?.into();
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
    /// The process is out of threads or descriptors, or a part of the agent has ended by a bug.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let rules = Arc::new(self.config.enrolment.rules()?);
        let serving = self.serving()?;
        let (quit, mut quitting) = mpsc::channel::<()>(1);
        let state = self.admin_state(&serving, quit);
        for endpoint in std::mem::take(&mut self.endpoints) {
            tokio::spawn(endpoint.serve(state.clone()));
        }
        self.register_metrics();
        tokio::spawn(role::release_memory(serving.loaded.subscribe()));
        let lifecycle = self.cluster.clone().map(|cluster| Lifecycle::new(cluster, self.config.daemonset.clone()));
        let lifecycle = Arc::new(lifecycle);
        tokio::spawn(begin(lifecycle.clone()));
        let (announcer, saver) = (self.announcer(), self.source.saver());
        let proxies = serving.proxies.clone();
        let trust = tokio::spawn(role::follow_trust(self.certificates.clone(), move |trust| proxies.vet(trust)));
        let following = tokio::spawn(serving.charge.clone().follow());
        let ending = Ending {
            redirect: self.redirect.clone(),
            proxies: serving.proxies.clone(),
            lifecycle,
            announcer: announcer.clone(),
            saver,
            paths: self.config.cni.then(|| cni_paths(&self.config)),
            state_dir: self.config.state_dir.clone(),
            telemetry: self.telemetry.clone(),
        };
        let enrolment = self.enrol(serving, rules, announcer);
        let outcome = tokio::select! {
            () = enrolment => Err(anyhow!("the task that follows what is configured ended, which is a bug")),
            // Nobody would end what is not trusted any more.
            _ = trust => Err(anyhow!("the task that follows whom to trust ended, which is a bug")),
            () = stop => {
                tracing::info!("stopping: connections may finish");
                Ok(())
            }
            _ = quitting.recv() => {
                tracing::info!("stopping on request: connections may finish");
                Ok(())
            }
        };
        following.abort();
        ending.end().await;
        outcome
    }

    fn serving(&self) -> anyhow::Result<Serving> {
        let workers = Workers::start(self.config.traffic.worker_count()).context("worker threads")?;
        let mesh = Arc::new(ArcSwap::new(Mesh::new().snapshot()));
        let shared = Shared {
            mesh: mesh.clone(),
            certificates: self.certificates.clone(),
            telemetry: self.telemetry.clone(),
            workers,
        };
        Ok(Serving {
            mesh,
            proxies: Proxies::new(shared, self.config.traffic.drain_seconds),
            states: States::default(),
            charge: Charge::new(self.redirect.clone()),
            loaded: watch::Sender::new(false),
        })
    }

    fn announcer(&self) -> Announcer {
        match &self.cluster {
            Some(cluster) => Announcer::start(cluster.clone(), self.config.node_name.clone()),
            None => Announcer::silent(),
        }
    }

    /// Follows the objects, and takes pods in and lets them go as they say. Ends when nobody follows them any more.
    async fn enrol(self, serving: Serving, rules: Arc<EnrolmentRules>, announcer: Announcer) {
        let Serving { mesh, proxies, states, charge, loaded } = serving;
        let mut until_loaded = loaded.subscribe();
        let (snapshots, followed) = watch::channel(mesh.load_full());
        let (tell, told) = mpsc::channel(64);
        let state = self.mesh(&rules);
        let pods = self.cluster.clone().map(Pods::new);
        let plugin = cni::server::Context {
            rules,
            state_dir: self.config.state_dir.clone(),
            snapshots: followed.clone(),
            states: states.clone(),
            mesh: tell,
            pods: pods.clone().zip(self.source.ahead()),
            turns: charge.subscribe(),
        };
        let context = enrolment::Context {
            redirect: self.redirect.clone(),
            certificates: self.certificates.clone(),
            proxies: proxies.clone(),
            states,
            turns: charge.subscribe(),
            identities: Identities::default(),
            announcer,
            pods,
        };
        let destinations = Destinations::new(self.redirect, &self.config.node_name);
        let certificates = self.certificates;
        let followers = Followers { certificates, proxies, destinations, charge, mesh, snapshots, loaded };
        tokio::spawn(objects::follow(self.source, told, state, followers));
        // Not on the empty mesh: it wants none of the pods that an earlier agent left enrolled.
        if until_loaded.wait_for(|loaded| *loaded).await.is_err() {
            return;
        }
        // A plugin that asked before has waited in the socket's queue.
        if let Some(cni) = self.cni {
            cni.start(plugin, self.config.node_name.clone(), self.cluster, self.telemetry);
        }
        enrolment::run(followed, self.config.node_name, Arc::new(context)).await;
    }

    /// The mesh, of which nothing is known yet but what the plugin was told before.
    fn mesh(&self, rules: &EnrolmentRules) -> Mesh {
        let mut mesh = Mesh::with_rules(rules.clone()).for_node(&self.config.node_name);
        if self.cluster.is_some() {
            mesh = mesh.without_named_netns();
        }
        if self.config.cni {
            for (pod, sandbox) in cni::sandboxes::load(&self.config.state_dir) {
                mesh.set_sandbox(pod, Some(sandbox));
            }
        }
        mesh
    }
}

async fn begin(lifecycle: Arc<Option<Lifecycle>>) {
    if let Some(lifecycle) = &*lifecycle {
        lifecycle.begin().await;
    }
}

/// Where the CNI plugin's files are.
fn cni_paths(config: &NodeConfig) -> cni::Paths {
    cni::Paths::new(&config.cni_directories, &config.state_dir)
}
