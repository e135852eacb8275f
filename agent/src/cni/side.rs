//! The agent's side as a whole: bound with the agent's other ports, or, where another agent answers, once that is
//! replaced; run once the mesh can be asked.

use std::sync::Arc;

use anyhow::Context as _;
use culvert_core::enrolment::EnrolmentRules;
use tokio::sync::watch;

use super::server::{Context, Server};
use super::{Paths, cache, credentials, entry, install, keep};
use crate::cluster::Cluster;
use crate::telemetry::Telemetry;

/// The agent's side of the CNI plugin.
#[derive(Debug)]
pub struct AgentSide {
    server: Server,
    paths: Paths,
    problem: watch::Sender<keep::Problem>,
}

impl AgentSide {
    /// With `at_once`, binds the socket: a plugin that asks before the mesh is known waits. Needs a tokio runtime.
    ///
    /// # Errors
    /// The socket's directory cannot be made or written.
    pub fn new(paths: Paths, at_once: bool) -> anyhow::Result<Self> {
        let server = Server::new(&paths.cni_socket, at_once)
            .with_context(|| format!("--cni-socket {}", paths.cni_socket.display()))?;
        let (problem, _) = watch::channel(Some("it is being installed".to_owned()));
        Ok(Self { server, paths, problem })
    }

    /// Answers the plugin, installs it and keeps it installed, until the runtime ends.
    pub fn start(self, context: Context, node: String, cluster: Option<Cluster>, telemetry: Telemetry) {
        let Self { server, paths, problem } = self;
        let rules: Arc<EnrolmentRules> = context.rules.clone();
        tokio::spawn(cache::keep(context.snapshots.clone(), rules.clone(), node, paths.state_dir.clone()));
        if let Some(cluster) = cluster {
            let state_dir = paths.state_dir.clone();
            tokio::spawn(async move {
                match credentials::Server::find().await {
                    Ok(server) => credentials::keep(cluster, server, state_dir).await,
                    Err(error) => tracing::warn!("the CNI plugin has no credentials: {error:#}"),
                }
            });
        }
        let entry = entry(&paths, &rules);
        tokio::spawn(keep::keep(paths, entry, problem, context.turns.clone()));
        tokio::spawn(async move { server.serve(context, &telemetry).await });
    }

    /// Tells what keeps new pods from starting, or from being in the mesh before their first packet: one line each.
    pub fn problems(&self) -> impl Fn() -> Vec<String> + Send + Sync + 'static {
        let (installation, socket) = (self.problem.subscribe(), self.server.problem());
        move || {
            let installation =
                installation.borrow().as_ref().map(|why| format!("the CNI plugin is not installed: {why}"));
            let socket = socket.borrow().as_ref().map(|why| format!("the CNI plugin is not answered: {why}"));
            installation.into_iter().chain(socket).collect()
        }
    }
}

/// Removes the plugin from the node, whatever can be removed; the rest is logged.
pub fn remove(paths: &Paths) {
    if let Err(error) = install::uninstall(paths) {
        tracing::warn!("the CNI plugin is not removed entirely: {error}; run `culvert cni uninstall` on the node");
    }
}
