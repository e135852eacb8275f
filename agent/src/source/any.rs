//! A source, whichever it is: from here on nobody knows.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;

use super::kube::{Ahead, Health, Kube, Saver};
use super::{Directory, Reader, Status, Update};
use crate::admin::{ReadinessCheck, Report};
use crate::cluster::{Cluster, NOT_CONFIGURED};
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
    /// The files of `directory`, or else the objects of `cluster` that `reader` has a use for. What is needed for the next
    /// start is kept in `state_dir`, if that is given. Needs a tokio runtime.
    ///
    /// # Errors
    /// When there is neither, or the directory cannot be read.
    pub fn open(
        directory: Option<&Path>,
        cluster: Option<&Cluster>,
        reader: Reader,
        state_dir: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let kept = |name: &str| state_dir.map(|state_dir| state_dir.join(name));
        match (directory, cluster) {
            (Some(directory), _) => {
                let directory = Directory::open(directory, kept(super::FILES)).context("--config-dir")?;
                Ok(Self::Directory(directory))
            }
            (None, Some(cluster)) => Ok(Self::Kube(Kube::open(cluster, reader, kept(super::OBJECTS)))),
            (None, None) => anyhow::bail!(NOT_CONFIGURED),
        }
    }

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

    /// Not content until `loaded`: then the objects have been complete once.
    pub fn loading(&self, loaded: watch::Receiver<bool>) -> ReadinessCheck {
        let view = self.clone();
        Arc::new(move || {
            if *loaded.borrow() {
                return Vec::new();
            }
            let missing = view.missing();
            if missing.is_empty() { vec!["the configuration has not been read yet".to_owned()] } else { missing }
        })
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
