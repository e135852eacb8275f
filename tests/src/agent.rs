//! A `culvert node` on a node of the topology.

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::cgroup::Cgroup;
use crate::deadline::eventually;
use crate::http::{self, Response};
use crate::process::{Place, Process};
use crate::topology::{Node, Topology};

/// The agent's own default for its admin endpoint; those for metrics and readiness are 20 and 21 above it.
const PORT: u16 = 15000;
const METRICS: u16 = 20;
const READINESS: u16 = 21;
const ANSWER: Duration = Duration::from_secs(5);

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
    process: Process,
    log_file: Option<PathBuf>,
    place: Place,
    port: u16,
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
        let process = match &log_file {
            Some(file) => Process::spawn_writing_to(&name, command, file)?,
            None => Process::spawn(&name, command)?,
        };
        Ok(Self { process, log_file, place, port: config.port, _cgroup: cgroup })
    }

    /// Waits until it says that its enrolled pods are served.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let ready = eventually(limit, "the agent to be ready", || {
            if let Ok(Some(status)) = self.process.try_wait() {
                return Some(Err(status));
            }
            let answer = self.place.run(|| http::get(loopback(self.port + READINESS), "/healthz/ready", ANSWER));
            answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status == 200)).then_some(Ok(()))
        });
        match ready {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("the agent ended before it was ready, {status}: {}", self.log()),
            Err(error) => Err(error.context(format!("the agent's log:\n{}", self.log()))),
        }
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        match &self.log_file {
            Some(file) => std::fs::read_to_string(file).unwrap_or_default(),
            None => self.process.output(),
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// `GET` of the admin interface.
    pub fn admin(&self, path: &str) -> Result<Response> {
        self.place.run(|| http::get(loopback(self.port), path, ANSWER))?
    }

    /// `POST` to the admin interface.
    pub fn admin_post(&self, path: &str) -> Result<Response> {
        self.place.run(|| http::request("POST", loopback(self.port), path, ANSWER))?
    }

    /// The metrics page.
    pub fn metrics(&self) -> Result<String> {
        Ok(self.place.run(|| http::get(loopback(self.port + METRICS), "/metrics", ANSWER))??.body)
    }

    /// The sum of a metric over the series that carry all of these labels.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(sum(&self.metrics()?, name, labels))
    }

    /// Waits for a line of its log.
    pub fn wait_for_line(&mut self, limit: Duration, what: &str, is_it: impl Fn(&str) -> bool) -> Result<String> {
        self.process.wait_for_line(limit, what, is_it)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(limit)
    }
}

/// A binary of this build: beside the program that is running, or one directory up from a test.
///
/// # Errors
/// When it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell which program this is")?;
    let found = this.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not built: cargo build -p {name}"))
}

/// The sum of a metric's series that carry all of these labels, in the Prometheus text format.
fn sum(page: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let series = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        let labels = format!(",{labels},");
        let has = |label: &String| labels.contains(&format!(",{label},"));
        wanted.iter().all(has).then(|| value.split(' ').next()?.parse::<f64>().ok())?
    });
    series.fold(0.0, |sum, value| sum + value)
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_their_labels() {
        let page = "# TYPE opened counter\nopened_total{a=\"1\",b=\"x\"} 2\nopened_total{a=\"1\",b=\"y, z\"} 3\n\
                    opened_total{a=\"2\",b=\"x\"} 5\nup 1\nopened_total_more 9\n";
        assert_eq!(sum(page, "opened_total", &[]), 10.0);
        assert_eq!(sum(page, "opened_total", &[("a", "1")]), 5.0);
        assert_eq!(sum(page, "opened_total", &[("a", "1"), ("b", "y, z")]), 3.0);
        assert_eq!(sum(page, "up", &[]), 1.0);
    }
}
