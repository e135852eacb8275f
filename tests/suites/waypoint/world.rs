//! Two nodes with agents, a waypoint in a pod, a client, servers.

#![allow(dead_code, reason = "each module uses a part of it")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_tests::http::{self, Response, Server};
use culvert_tests::{Agent, AgentConfig, ConfigDir, Pod, Topology, Waypoint, objects};

use crate::support::echo::Echo;

/// How long a call may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);
/// How long a process may take to start, unoptimized and on a busy machine.
const START: Duration = Duration::from_secs(30);
/// Where every server answers HTTP, and where it echoes.
const HTTP: u16 = 8080;
pub(crate) const ECHO: u16 = 9000;
/// Where tunnels arrive.
pub(crate) const HBONE: u16 = 15008;

/// The services, by their addresses and ports.
pub(crate) const CART_HTTP: &str = "10.96.0.1:80";
pub(crate) const CART_HTTP_V6: &str = "[fd00:96::1]:80";
pub(crate) const CART_ECHO: &str = "10.96.0.1:90";
pub(crate) const CART_ECHO_V6: &str = "[fd00:96::1]:90";
/// Of this port nothing is declared.
pub(crate) const CART_ANY: &str = "10.96.0.1:91";
pub(crate) const CART_TLS: &str = "10.96.0.1:443";
/// Not bound to the waypoint.
pub(crate) const BARE_ECHO: &str = "10.96.0.2:90";

/// `client` on node 1, `cart` and `other` on node 2, and the waypoint `wp` on node 1; all of the namespace `shop`. The
/// service `cart` is bound to the waypoint, `bare`, which is `other`, is not.
pub(crate) struct World {
    // Before the topology: they end when their place still exists.
    pub(crate) waypoint: Waypoint,
    pub(crate) near: Agent,
    pub(crate) far: Agent,
    servers: Vec<Server>,
    echoes: Vec<(String, Echo)>,
    pub(crate) directory: ConfigDir,
    pub(crate) config: AgentConfig,
    pub(crate) topology: Topology,
}

impl World {
    /// Everything is ready.
    pub(crate) fn new() -> Result<Self> {
        Self::with(&[], &[])
    }

    /// The same, with further documents and further arguments for the waypoint.
    pub(crate) fn with(documents: &[String], arguments: &[&str]) -> Result<Self> {
        let mut topology = Topology::new(2)?;
        for (node, name) in [(1, "client"), (2, "cart"), (2, "other"), (1, "wp")] {
            topology.add_pod(node, "shop", name)?;
        }
        let (mut servers, mut echoes) = (Vec::new(), Vec::new());
        for name in ["cart", "other"] {
            let pod = topology.pod(name);
            for ip in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), pod.ipv6()] {
                servers.push(Server::start(&pod.place(), SocketAddr::new(ip, HTTP), name)?);
            }
            let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), ECHO);
            echoes.push((name.to_owned(), Echo::start(&pod.place(), any)?));
        }
        let directory = ConfigDir::create(&topology.scope().directory().join("mesh"))?;
        write_objects(&topology, &directory)?;
        directory.write("documents", documents)?;
        let mut config = AgentConfig::new(directory.path())?;
        config.arguments = ["--workers", "1", "--drain-seconds", "3"].map(Into::into).to_vec();
        // Side by side, as each takes its time.
        let mut near = Agent::start(&topology, topology.node(1), &config)?;
        // It makes the CA, which two at once would do twice.
        near.wait_ready(START)?;
        let mut far = Agent::start(&topology, topology.node(2), &config)?;
        let arguments = [&["--workers", "1", "--drain-seconds", "5"][..], arguments].concat();
        let mut waypoint = Waypoint::start(topology.pod("wp"), &config, &arguments)?;
        far.wait_ready(START)?;
        waypoint.wait_ready(START)?;
        Ok(Self { waypoint, near, far, servers, echoes, directory, config, topology })
    }

    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.topology.pod(name)
    }

    /// `GET /` from the client.
    pub(crate) fn get(&self, to: &str) -> Result<Response> {
        let to: SocketAddr = to.parse()?;
        let answer = self.pod("client").run(|| http::get(to, "/", LIMIT))?;
        answer.with_context(|| format!("to {to}\n{}", self.logs()))
    }

    /// Runs `work` in the client, with the address of a service.
    pub(crate) fn in_client<T: Send>(&self, to: &str, work: impl FnOnce(SocketAddr) -> T + Send) -> Result<T> {
        let to = to.parse()?;
        self.pod("client").run(|| work(to))
    }

    /// How many connections have come to the echo of a pod.
    pub(crate) fn echoed(&self, name: &str) -> usize {
        self.echoes.iter().find(|(pod, _)| pod == name).map_or(0, |(_, echo)| echo.accepted())
    }

    /// How many connections have come to the servers of HTTP.
    pub(crate) fn answered(&self) -> usize {
        self.servers.iter().map(Server::accepted).sum()
    }

    /// Everything that was logged.
    pub(crate) fn logs(&self) -> String {
        let logs = [("near", self.near.log()), ("waypoint", self.waypoint.log()), ("far", self.far.log())];
        logs.iter().map(|(name, log)| format!("--- {name}\n{log}\n")).collect()
    }
}

/// Writes the objects that are always there.
fn write_objects(topology: &Topology, directory: &ConfigDir) -> Result<()> {
    directory.write("namespace", &[objects::namespace("shop", true)])?;
    directory.write("nodes", &topology.nodes().iter().map(objects::node).collect::<Vec<_>>())?;
    write_pods(topology, directory, |_, object| object)?;
    directory.write("waypoint", &objects::waypoint("shop", "wp", "service"))?;
    write_cart(directory, "wp")?;
    let [bare] = ["10.96.0.2"].map(|ip| ip.parse::<IpAddr>());
    let ports = [("tcp-echo", 90, ECHO), ("http", 80, HTTP)];
    directory.write("bare", &[objects::service("shop", "bare", &[bare?], "other", &ports)])
}

/// Writes the pods, each as `edit` has it.
pub(crate) fn write_pods(
    topology: &Topology,
    directory: &ConfigDir,
    edit: impl Fn(&Pod, String) -> String,
) -> Result<()> {
    let pod = |pod: &Pod| match pod.name() {
        "wp" => objects::waypoint_pod(pod),
        name => edit(pod, objects::pod(pod, name)),
    };
    directory.write("pods", &topology.pods().iter().map(pod).collect::<Vec<_>>())
}

/// Writes the service `cart`, bound to this waypoint.
pub(crate) fn write_cart(directory: &ConfigDir, waypoint: &str) -> Result<()> {
    let addresses: [IpAddr; 2] = ["10.96.0.1".parse()?, "fd00:96::1".parse()?];
    let ports = [("http", 80, HTTP), ("tcp-echo", 90, ECHO), ("any", 91, ECHO), ("tls", 443, ECHO)];
    let cart = objects::service("shop", "cart", &addresses, "cart", &ports);
    let label = format!("metadata:\n  labels: {{istio.io/use-waypoint: {waypoint}}}\n");
    directory.write("cart", &[cart.replacen("metadata:\n", &label, 1)])
}
