//! A mesh of two nodes for the datapath's suites: agents of their own processes, a server in every pod.

#![allow(dead_code, reason = "each suite uses a part of it")]

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_tests::http::{self, Server};
use culvert_tests::{Agent, AgentConfig, ConfigDir, Place, Pod, Topology, objects};

/// Where every pod serves.
pub(crate) const PORT: u16 = 8080;
/// How long a call may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);
/// How long an agent may take to start, unoptimized and on a busy machine.
pub(crate) const START: Duration = Duration::from_secs(30);

/// Pods in `shop`, which is in the mesh, and in `outside`, which is not.
pub(crate) struct Mesh {
    // Before the topology: they end when their place still exists.
    pub(crate) servers: Vec<Server>,
    pub(crate) directory: ConfigDir,
    pub(crate) config: AgentConfig,
    pub(crate) topology: Topology,
}

impl Mesh {
    /// Pods as `(node, Kubernetes namespace, name)`, each with a server that says `NAME saw ADDRESS`.
    pub(crate) fn new(pods: &[(u8, &str, &str)]) -> Result<Self> {
        let mut topology = Topology::new(2)?;
        let mut servers = Vec::new();
        for (node, namespace, name) in pods {
            let pod = topology.add_pod(*node, namespace, name)?;
            servers.push(Server::start(&pod.place(), SocketAddr::new([0, 0, 0, 0].into(), PORT), name)?);
            servers.push(Server::start(&pod.place(), SocketAddr::new(pod.ipv6(), PORT), name)?);
        }
        let directory = ConfigDir::create(&topology.scope().directory().join("mesh"))?;
        let mut config = AgentConfig::new(directory.path())?;
        config.arguments = ["--workers", "1", "--drain-seconds", "3"].map(Into::into).to_vec();
        let mesh = Self { servers, directory, config, topology };
        mesh.directory.write("nodes", &mesh.topology.nodes().iter().map(objects::node).collect::<Vec<_>>())?;
        mesh.write_pods(|_, object| Some(object))?;
        mesh.enrol(true)?;
        Ok(mesh)
    }

    /// Writes the pods anew, each as `edit` has it.
    pub(crate) fn write_pods(&self, edit: impl Fn(&Pod, String) -> Option<String>) -> Result<()> {
        let pods = self.topology.pods().iter();
        let written: Vec<_> = pods.filter_map(|pod| edit(pod, objects::pod(pod, pod.name()))).collect();
        self.directory.write("pods", &written)
    }

    /// Whether `shop` is in the mesh.
    pub(crate) fn enrol(&self, ambient: bool) -> Result<()> {
        let namespaces = [objects::namespace("shop", ambient), objects::namespace("outside", false)];
        self.directory.write("namespaces", &namespaces)
    }

    /// Which traffic `shop` takes.
    pub(crate) fn mtls(&self, mode: &str) -> Result<()> {
        self.directory.write("mtls", &[objects::peer_authentication("shop", mode)])
    }

    /// The node's agent, ready.
    pub(crate) fn agent(&self, node: u8) -> Result<Agent> {
        let mut agent = self.start(node)?;
        agent.wait_ready(START)?;
        Ok(agent)
    }

    /// The node's agent, just started.
    pub(crate) fn start(&self, node: u8) -> Result<Agent> {
        Agent::start(&self.topology, self.topology.node(node), &self.config)
    }

    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.topology.pod(name)
    }
}

/// What `place` hears from a server.
pub(crate) fn ask(place: &Place, to: SocketAddr) -> Result<String> {
    Ok(place.run(|| http::get(to, "/", LIMIT))?.with_context(|| format!("to {to}"))?.body)
}

/// What a client in `from` hears from `to`, where it expects to be seen as itself, on both families.
pub(crate) fn reaches(from: &Pod, to: &Pod) -> Result<()> {
    for (own, ip) in from.addresses().into_iter().zip(to.addresses()) {
        let said = ask(&from.place(), at(ip))?;
        ensure!(said == format!("{} saw {own}\n", to.name()), "{} asked {ip}: {said}", from.name());
    }
    Ok(())
}

/// How long it took the kernel to refuse a connection; an error when it was not refused.
pub(crate) fn refused(place: &Place, to: SocketAddr) -> Result<Duration> {
    let started = Instant::now();
    match place.run(|| TcpStream::connect_timeout(&to, LIMIT))? {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(started.elapsed()),
        result => anyhow::bail!("{to} is not refused: {result:?}"),
    }
}

/// What the programs of an agent's node have counted.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Counts(BTreeMap<String, u64>);

impl Counts {
    pub(crate) fn of(agent: &Agent) -> Result<Self> {
        let report: serde_json::Value = serde_json::from_str(&agent.admin("/redirection")?.body)?;
        let counters = report.get("counters").and_then(|counters| counters.as_array()).context("no counters")?;
        let each = counters
            .iter()
            .filter_map(|counter| Some((counter.get("reason")?.as_str()?.to_owned(), counter.get("value")?.as_u64()?)));
        Ok(Self(each.collect()))
    }

    /// What has been counted since `before`, without what has not.
    pub(crate) fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        let grown = self.0.iter().map(|(reason, value)| (reason.clone(), value - before.0.get(reason).unwrap_or(&0)));
        grown.filter(|(_, value)| *value > 0).collect()
    }
}

/// For comparison with [`Counts::since`].
pub(crate) fn counts<const N: usize>(expected: [(&str, u64); N]) -> BTreeMap<String, u64> {
    expected.into_iter().map(|(reason, value)| (reason.to_owned(), value)).collect()
}

pub(crate) fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, PORT)
}

/// How many connections an agent has carried, by the reporter it was and whether they were encrypted.
pub(crate) fn carried(agent: &Agent, reporter: &str, security: &str) -> Result<f64> {
    let labels = [("reporter", reporter), ("connection_security_policy", security)];
    agent.metric("istio_tcp_connections_opened_total", &labels)
}
