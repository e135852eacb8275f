//! A source, whichever it is: from here on nobody knows.

use std::sync::Arc;

use tokio::sync::watch;

use super::kube::{Ahead, Health, Kube, Saver};
use super::{Directory, Status, Update};
use crate::admin::Report;
use crate::telemetry::Telemetry;

/// Where objects come from.
#[derive(Debug)]
pub enum Source {
    /// A directory of YAML files.
    Directory(Directory),
    /// The Kubernetes API server.
    Kube(Kube),
}

/// How a source is doing. Cloning is cheap.
#[derive(Clone, Debug)]
pub enum View {
    /// Which files there are, and what is wrong with them.
    Files(watch::Receiver<Arc<Status>>),
    /// Where the watches stand.
    Watches(Health),
}

impl Source {
    /// The next piece. The first settled one completes all objects that are there, even if there are none. `None` once
    /// nothing more can come.
    pub async fn next(&mut self) -> Option<Update> {
        match self {
            Self::Directory(directory) => directory.next().await,
            Self::Kube(kube) => kube.next().await,
        }
    }

    /// How it is doing, now and later.
    pub fn view(&self) -> View {
        match self {
            Self::Directory(directory) => View::Files(directory.status()),
            Self::Kube(kube) => View::Watches(kube.health()),
        }
    }

    /// What has to be saved before the agent ends, if anything.
    pub fn saver(&self) -> Option<Saver> {
        match self {
            Self::Directory(_) => None,
            Self::Kube(kube) => Some(kube.saver()),
        }
    }

    /// Where objects are taken in that somebody asked for, if anyone can be asked.
    pub fn ahead(&self) -> Option<Ahead> {
        match self {
            Self::Directory(_) => None,
            Self::Kube(kube) => Some(kube.ahead()),
        }
    }
}

impl View {
    /// What keeps the objects from being complete for the first time, one line a reason.
    pub fn missing(&self) -> Vec<String> {
        match self {
            Self::Files(_) => Vec::new(),
            Self::Watches(health) => health.missing(),
        }
    }

    /// What has to be said of an agent that is ready.
    pub fn notes(&self) -> Vec<String> {
        match self {
            Self::Files(_) => Vec::new(),
            Self::Watches(health) => health.notes(),
        }
    }

    /// Its member of `/config_dump`.
    pub fn report(&self) -> (&'static str, Report) {
        match self.clone() {
            Self::Files(status) => ("files", Report::new(move || status.borrow().clone())),
            Self::Watches(health) => ("source", Report::new(move || health.status())),
        }
    }

    /// Adds its metrics.
    pub fn register_metrics(&self, telemetry: &Telemetry) {
        if let Self::Watches(health) = self {
            health.register_metrics(telemetry);
        }
    }
}
