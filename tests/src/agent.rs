//! A `culvert node` on a node of the topology.

use std::ffi::OsString;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cgroup::Cgroup;
pub use crate::daemon::binary;
use crate::daemon::{Daemon, METRICS, PORT, READINESS, loopback};
use crate::topology::{Node, Topology};

/// How to start an agent: what stays the same when it is started again.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The `culvert` binary.
    pub binary: PathBuf,
    /// `--config-dir`, unless there is a kubeconfig.
    pub config: PathBuf,
    /// The API server to read from; its address must be reachable on the node.
    pub kubeconfig: Option<PathBuf>,
    /// The port of its admin endpoint, and 20 and 21 above it those of metrics and readiness.
    pub port: u16,
    /// Whether its cgroup is below the one whose hooks it sees, as its container's is on a node where cgroup v2 is alone.
    pub among_pods: bool,
    /// `--ca-dir`: shared by the agents of one mesh. Empty for a CA service, which the arguments name.
    pub ca: PathBuf,
    /// Further arguments.
    pub arguments: Vec<OsString>,
    /// Further environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Log to a file `NODE.log` in this directory, not to the harness: for measurements.
    pub log_directory: Option<PathBuf>,
}

/// A running agent; killed when dropped. Its pins stay, as they would on a node, until the topology goes.
#[derive(Debug)]
pub struct Agent {
    daemon: Daemon,
    // Removed after the process that started in it.
    _cgroup: Cgroup,
}

impl AgentConfig {
    /// The agent of this build, on a directory of YAML; the CA is kept beside that directory.
    ///
    /// # Errors
    /// When the binary is not built.
    pub fn new(config: &Path) -> Result<Self> {
        Ok(Self::with_binary(binary("culvert")?, config))
    }

    /// The same with another binary.
    pub fn with_binary(binary: PathBuf, config: &Path) -> Self {
        Self {
            binary,
            config: config.to_path_buf(),
            kubeconfig: None,
            port: PORT,
            among_pods: false,
            ca: config.with_extension("ca"),
            arguments: Vec::new(),
            environment: Vec::new(),
            log_directory: None,
        }
    }
}

impl Agent {
    /// Starts the agent of a node; it need not be ready yet.
    pub fn start(topology: &Topology, node: &Node, config: &AgentConfig) -> Result<Self> {
        let pins = topology.scope().pin_directory(node.name())?;
        let cgroup = topology.scope().agent_cgroup(&format!("{}-{}", node.name(), config.port))?;
        // The harness's own cgroup is above both the agents' and, of other kinds than those, the pods'.
        let pods = cgroup.path().parent().filter(|_| config.among_pods).unwrap_or(node.kubepods()).to_path_buf();
        let place = node.place();
        let mut command = place.clone().in_cgroup(cgroup.path()).command(&config.binary)?;
        command.args(["node", "--node-name", node.name()]);
        match &config.kubeconfig {
            Some(kubeconfig) => command.env("KUBECONFIG", kubeconfig),
            None => command.arg("--config-dir").arg(&config.config),
        };
        if !config.ca.as_os_str().is_empty() {
            command.arg("--ca-dir").arg(&config.ca);
        }
        command.arg("--cgroup").arg(pods).arg("--pin-dir").arg(&pins);
        // Each its own, as each node has its own.
        command.env("CULVERT_STATE_DIR", topology.scope().directory().join(format!("{}.state", node.name())));
        for (flag, above) in [("--admin-addr", 0), ("--metrics-addr", METRICS), ("--readiness-addr", READINESS)] {
            if config.port != PORT {
                command.arg(flag).arg(loopback(config.port + above).to_string());
            }
        }
        command.args(&config.arguments).envs(config.environment.iter().cloned());
        let name = format!("culvert node {}", node.name());
        let log_file = config.log_directory.as_ref().map(|directory| directory.join(format!("{}.log", node.name())));
        Ok(Self { daemon: Daemon::spawn(&name, command, place, config.port, log_file)?, _cgroup: cgroup })
    }
}

impl Deref for Agent {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Agent {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}
