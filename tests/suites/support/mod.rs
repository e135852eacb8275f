//! What the suites share: an authority to issue certificates from, an echoing application, Envoy, and HBONE peers that
//! are not ours.

#![allow(dead_code, reason = "each suite uses its part of it")]

pub(crate) mod authority;
pub(crate) mod echo;
pub(crate) mod envoy;
pub(crate) mod peer;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use culvert_tests::objects;
use culvert_tests::{Agent, AgentConfig, ConfigDir, Topology};

use authority::Authority;

/// Bounds each wait: a hang is a failure.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// One agent on `n1`; on `n2`, without an agent, the pods that play peers of another make.
pub(crate) struct Mesh {
    // Ended before the namespaces that it runs in.
    pub(crate) agent: Agent,
    pub(crate) directory: ConfigDir,
    pub(crate) authority: Authority,
    /// The agent's `--ca-dir`.
    pub(crate) ca: PathBuf,
    config: AgentConfig,
    pub(crate) topology: Topology,
}

impl Mesh {
    /// The pods are `(node, name)`, all of the namespace `shop` and STRICT; `policies` are further documents.
    pub(crate) fn start(pods: &[(u8, &str)], policies: &[String]) -> Result<Self> {
        Self::start_with(pods, policies, |_| {})
    }

    /// The same with other flags of the agent.
    pub(crate) fn start_with(
        pods: &[(u8, &str)],
        policies: &[String],
        flags: impl FnOnce(&mut AgentConfig),
    ) -> Result<Self> {
        let mut topology = Topology::new(2)?;
        for (node, name) in pods {
            topology.add_pod(*node, "shop", name)?;
        }
        let directory = ConfigDir::create(&topology.scope().directory().join("mesh"))?;
        write_objects(&topology, &directory)?;
        directory.write("peer-authentication", &[objects::peer_authentication("shop", "STRICT")])?;
        directory.write("policies", policies)?;
        let mut config = AgentConfig::new(directory.path())?;
        flags(&mut config);
        let mut agent = Agent::start(&topology, topology.node(1), &config)?;
        agent.wait_ready(LIMIT)?;
        let authority = Authority::open(&config.ca)?;
        Ok(Self { agent, directory, authority, ca: config.ca.clone(), config, topology })
    }

    /// Kills the agent and starts another in its place, as it was started first.
    pub(crate) fn restart_agent(&mut self) -> Result<()> {
        self.restart_agent_after(|_| Ok(()))
    }

    /// The same; `meanwhile` is done while there is none.
    pub(crate) fn restart_agent_after(&mut self, meanwhile: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        self.agent.kill()?;
        meanwhile(self)?;
        self.agent = Agent::start(&self.topology, self.topology.node(1), &self.config)?;
        self.agent.wait_ready(LIMIT)
    }
}

/// Writes the namespace, the nodes and the pods; a pod of `n2` is annotated as one whose own agent serves it.
pub(crate) fn write_objects(topology: &Topology, directory: &ConfigDir) -> Result<()> {
    let pod = |pod: &culvert_tests::Pod| {
        let yaml = objects::pod(pod, pod.name());
        match pod.node() {
            "n1" => yaml,
            _ => yaml.replace("annotations:\n", "annotations:\n    ambient.istio.io/redirection: enabled\n"),
        }
    };
    directory.write("namespace", &[objects::namespace("shop", true)])?;
    directory.write("nodes", &topology.nodes().iter().map(objects::node).collect::<Vec<_>>())?;
    directory.write("pods", &topology.pods().iter().map(pod).collect::<Vec<_>>())
}
