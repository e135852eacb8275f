//! A `culvert waypoint` in a pod of the topology.

use std::ffi::OsString;
use std::ops::{Deref, DerefMut};

use anyhow::Result;

use crate::agent::AgentConfig;
use crate::daemon::{Daemon, PORT};
use crate::topology::Pod;

/// A running waypoint; killed when dropped.
#[derive(Debug)]
pub struct Waypoint(Daemon);

impl Waypoint {
    /// Starts the waypoint of the Gateway that has the pod's name and namespace, in that pod, with the objects and the
    /// CA of the agents that `mesh` is the configuration of, and these further arguments. It need not be ready yet.
    pub fn start(pod: &Pod, mesh: &AgentConfig, arguments: &[&str]) -> Result<Self> {
        // Not in the pod's cgroup: what it dials is its own business.
        let place = crate::process::Place::netns(pod.netns().path());
        let mut command = place.command(&mesh.binary)?;
        command.args(["waypoint", "--gateway", &format!("{}/{}", pod.namespace(), pod.name())]);
        match &mesh.kubeconfig {
            Some(kubeconfig) => command.env("KUBECONFIG", kubeconfig),
            None => command.arg("--config-dir").arg(&mesh.config),
        };
        command.arg("--ca-dir").arg(&mesh.ca);
        command.args(arguments.iter().map(OsString::from)).envs(mesh.environment.iter().cloned());
        let name = format!("culvert waypoint {}/{}", pod.namespace(), pod.name());
        let log_file =
            mesh.log_directory.as_ref().map(|directory| directory.join(format!("waypoint-{}.log", pod.name())));
        Ok(Self(Daemon::spawn(&name, command, place, PORT, log_file)?))
    }
}

impl Deref for Waypoint {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

impl DerefMut for Waypoint {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.0
    }
}
