//! What is measured: a topology, and the mesh on it, if any.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_tests::{Agent, AgentConfig, Cgroup, ConfigDir, Nginx, Process, Scope, Topology, eventually, objects};
use nix::sys::signal::Signal;

use super::traffic;
use crate::run::target;

/// What requests go to.
pub(super) const HTTP: u16 = 8080;
/// What iperf3 listens on.
pub(super) const IPERF: u16 = 5201;

const READY: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(10);

/// Who takes part.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// No mesh.
    Direct,
    /// This build.
    Culvert,
    /// This build, and a server outside the mesh whose network is bypassed.
    Bypass,
    /// Another mesh, started by a shell command.
    Peer { name: String, command: String },
}

/// A running contender. Fields are dropped in this order.
pub(super) struct Contender {
    name: String,
    proxies: Proxies,
    _iperf: Process,
    _nginx: Nginx,
    pub(super) topology: Topology,
}

enum Proxies {
    None,
    Agents(Vec<Agent>),
    Peer { process: Process, cgroup: Cgroup },
}

impl Kind {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Direct => "direct",
            Self::Culvert => "culvert",
            Self::Bypass => "bypass",
            Self::Peer { name, .. } => name,
        }
    }
}

impl Contender {
    pub(super) fn start(kind: &Kind) -> Result<Self> {
        let mut topology = Topology::new(2)?;
        topology.add_pod(1, "bench", "client")?;
        topology.add_pod(2, "bench", "server")?;
        let server = topology.pod("server");
        let nginx = Nginx::start(topology.scope(), server, HTTP, "text")?;
        let mut iperf = server.place().command("iperf3")?;
        iperf.args(["-s", "--forceflush", "-p", &IPERF.to_string()]);
        let mut iperf = Process::spawn("iperf3", iperf)?;
        iperf.wait_for_line(LIMIT, "iperf3 to listen", |line| line.contains("listening"))?;
        let config = config(&topology)?;
        let proxies = match kind {
            Kind::Direct => Proxies::None,
            Kind::Culvert => Proxies::Agents(start_agents(&topology, &config)?),
            Kind::Bypass => {
                bypass(&topology, &config)?;
                Proxies::Agents(start_agents(&topology, &config)?)
            }
            Kind::Peer { name, command } => start_peer(&topology, &config, name, command)?,
        };
        Ok(Self { name: kind.name().to_owned(), proxies, _iperf: iperf, _nginx: nginx, topology })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn server(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.topology.pod("server").ipv4(), port)
    }

    /// The first connection makes certificates and tunnels: it is nobody's measurement.
    pub(super) fn warm_up(&self) -> Result<()> {
        eventually(READY, "the first answer", || traffic::request(self, "keepalive", 1, 0.2).ok())
            .with_context(|| format!("nothing gets through {}", self.name))
            .map(drop)
    }

    /// Processor time all proxies have used, in seconds.
    pub(super) fn cpu(&self) -> f64 {
        self.pids().into_iter().map(cpu_of).sum()
    }

    fn pids(&self) -> Vec<u32> {
        match &self.proxies {
            Proxies::None => Vec::new(),
            Proxies::Agents(agents) => agents.iter().map(|agent| agent.pid()).collect(),
            Proxies::Peer { cgroup, .. } => pids_below(cgroup.path()),
        }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Proxies::Peer { process, .. } = &mut self.proxies {
            let _ = process.signal(Signal::SIGTERM);
            let _ = process.wait(LIMIT);
        }
    }
}

/// The agents of this build, one on each node, ready.
pub(super) fn start_agents(topology: &Topology, config: &ConfigDir) -> Result<Vec<Agent>> {
    let mut agent = AgentConfig::with_binary(release("culvert"), config.path());
    agent.log_directory = Some(topology.scope().directory().to_path_buf());
    topology
        .nodes()
        .iter()
        .map(|node| {
            let mut agent = Agent::start(topology, node, &agent)?;
            agent.wait_ready(READY)?;
            Ok(agent)
        })
        .collect()
}

/// A binary of the release build.
pub(super) fn release(name: &str) -> PathBuf {
    target().join("release").join(name)
}

/// A namespace in the mesh, its pods, and what a careful namespace has: STRICT, and a policy that names callers.
pub(super) fn config(topology: &Topology) -> Result<ConfigDir> {
    let config = ConfigDir::create(&topology.scope().directory().join("mesh"))?;
    config.write("nodes", &topology.nodes().iter().map(objects::node).collect::<Vec<_>>())?;
    config.write("namespaces", &[objects::namespace("bench", true)])?;
    config.write("pods", &topology.pods().iter().map(|pod| objects::pod(pod, pod.name())).collect::<Vec<_>>())?;
    let callers = "\
action: ALLOW
rules:
- from:
  - source:
      principals: [cluster.local/ns/bench/sa/client]
";
    let policies =
        [objects::peer_authentication("bench", "STRICT"), objects::authorization_policy("bench", "callers", callers)];
    config.write("policies", &policies)?;
    Ok(config)
}

/// Takes the server out of the mesh, and what goes to its network out of its clients' capture.
fn bypass(topology: &Topology, config: &ConfigDir) -> Result<()> {
    let server = topology.pod("server");
    let label = "  labels: {istio.io/dataplane-mode: none, ";
    let outside = objects::pod(server, server.name()).replace("  labels: {", label);
    config.write("pods", &[objects::pod(topology.pod("client"), "client"), outside])?;
    let options = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: culvert, namespace: istio-system}}\n\
         data: {{mesh: 'culvert: {{outboundBypass: {{cidrs: [{}/24]}}}}'}}\n",
        server.ipv4()
    );
    config.write("options", &[options])
}

fn start_peer(topology: &Topology, config: &ConfigDir, name: &str, command: &str) -> Result<Proxies> {
    let description = topology.scope().directory().join("topology.json");
    fs::write(&description, describe(topology, config, topology.scope()).to_string())?;
    let cgroup = topology.scope().agent_cgroup("peer")?;
    let mut shell = Command::new("sh");
    // The shell moves itself, so that all it starts is counted.
    shell.arg("-c").arg(format!("echo 0 > {}/cgroup.procs\n{command}", cgroup.path().display()));
    shell.env("CULVERT_BENCH_TOPOLOGY", &description);
    let mut process = Process::spawn(name, shell)?;
    process.wait_for_line(READY, "`ready`", |line| line.trim() == "ready")?;
    Ok(Proxies::Peer { process, cgroup })
}

fn describe(topology: &Topology, config: &ConfigDir, scope: &Scope) -> serde_json::Value {
    let nodes = topology.nodes().iter().map(|node| {
        serde_json::json!({
            "name": node.name(), "netns": node.netns().path(), "addresses": node.addresses(), "cgroup": node.kubepods(),
        })
    });
    let pods = topology.pods().iter().map(|pod| {
        serde_json::json!({
            "namespace": pod.namespace(), "name": pod.name(), "service_account": pod.name(), "node": pod.node(),
            "netns": pod.netns().path(), "addresses": pod.addresses(), "cgroup": pod.cgroup(),
        })
    });
    serde_json::json!({
        "config": config.path(), "directory": scope.directory(),
        "nodes": nodes.collect::<Vec<_>>(), "pods": pods.collect::<Vec<_>>(),
    })
}

fn pids_below(cgroup: &Path) -> Vec<u32> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        pids.extend(pids_below(&entry.path()));
    }
    pids
}

/// User and system time of a process and its ended threads: proc_pid_stat(5), fields 14 and 15, in ticks of 10 ms.
pub(super) fn cpu_of(pid: u32) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the name in parentheses, and may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / TICKS_PER_SECOND
}
