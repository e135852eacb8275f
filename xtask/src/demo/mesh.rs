//! The demo's mesh: which pods, which objects, which policies.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use culvert_tests::agent::binary;
use culvert_tests::{Agent, AgentConfig, ConfigDir, Nginx, Process, Topology, objects};

/// What the server's pod listens on.
pub(super) const PORT: u16 = 8080;
/// What its Service listens on.
pub(super) const SERVICE_PORT: u16 = 80;
/// In every answer, and in a header of every request from within the mesh: what must not be seen on the wire.
pub(super) const SECRET: &str = "the-order-book-of-the-shop";

const READY: Duration = Duration::from_secs(30);

/// Everything that runs. Fields are dropped in this order: servers and agents before what they run in.
pub(super) struct Mesh {
    pub(super) agents: [Agent; 2],
    _server: Nginx,
    pub(super) config: ConfigDir,
    pub(super) service: [IpAddr; 2],
    pub(super) topology: Topology,
}

/// `(node, namespace, name)`: each pod has the service account of its name; `shop` is in the mesh.
const PODS: [(u8, &str, &str); 4] =
    [(1, "shop", "frontend"), (1, "shop", "batch"), (2, "shop", "orders"), (2, "outside", "legacy")];

impl Mesh {
    pub(super) fn start() -> Result<Self> {
        let mut topology = Topology::new(2)?;
        for (node, namespace, name) in PODS {
            topology.add_pod(node, namespace, name)?;
        }
        let config = ConfigDir::create(&topology.scope().directory().join("mesh"))?;
        let service = [IpAddr::from([10, 96, 0, 10]), IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10])];
        config.write("nodes", &topology.nodes().iter().map(objects::node).collect::<Vec<_>>())?;
        config.write("namespaces", &[objects::namespace("shop", true), objects::namespace("outside", false)])?;
        config.write("pods", &topology.pods().iter().map(|pod| objects::pod(pod, pod.name())).collect::<Vec<_>>())?;
        let ports = [("http", SERVICE_PORT, PORT)];
        config.write("services", &[objects::service("shop", "orders", &service, "orders", &ports)])?;
        config.write("policies", &policies(&["frontend", "backoffice"]))?;

        let server = Nginx::start(topology.scope(), topology.pod("orders"), PORT, SECRET)?;
        let agent = AgentConfig::new(config.path())?;
        // Both create the CA directory when it is empty: the first is given the time to.
        let mut first = Agent::start(&topology, topology.node(1), &agent)?;
        first.wait_ready(READY)?;
        let mut second = Agent::start(&topology, topology.node(2), &agent)?;
        second.wait_ready(READY)?;
        Ok(Self { agents: [first, second], _server: server, config, service, topology })
    }

    /// Takes the frontend out of the policy that allows it.
    pub(super) fn deny_frontend(&self) -> Result<()> {
        self.config.write("policies", &policies(&["backoffice"]))
    }

    /// A curl that reads a slow answer and writes it out as it comes.
    pub(super) fn slow_reader(&self, path: &str) -> Result<Process> {
        let mut command = self.topology.pod("frontend").place().command("curl")?;
        command.args(["--silent", "--show-error", "--no-buffer", "--max-time", "60"]);
        command.arg(format!("http://{}:{SERVICE_PORT}{path}", self.service[0]));
        Process::spawn("curl", command)
    }

    /// What `culvertctl simulate` says of a call.
    pub(super) fn foretell(&self, from: &str, to: &str) -> Result<serde_json::Value> {
        let pod = self.topology.pod(from);
        let output = std::process::Command::new(binary("culvertctl")?)
            .args(["simulate", "--config-dir"])
            .arg(self.config.path())
            .args(["--from", &format!("{}/{from}", pod.namespace()), "--to", to, "-o", "json"])
            .output()?;
        serde_json::from_slice(&output.stdout).map_err(|_| {
            anyhow::anyhow!(
                "culvertctl simulate: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })
    }
}

/// STRICT mutual TLS; who may call orders; and one that may not, whoever else allows it.
fn policies(allowed: &[&str]) -> [String; 3] {
    let allowed: Vec<_> = allowed.iter().map(|account| format!("cluster.local/ns/shop/sa/{account}")).collect();
    let callers = format!(
        "\
selector:
  matchLabels: {{app: orders}}
action: ALLOW
rules:
- from:
  - source:
      principals: [{}]
  to:
  - operation:
      ports: [\"{PORT}\"]
",
        allowed.join(", ")
    );
    let batch = "\
action: DENY
rules:
- from:
  - source:
      principals: [cluster.local/ns/shop/sa/batch]
";
    [
        objects::peer_authentication("shop", "STRICT"),
        objects::authorization_policy("shop", "orders-callers", &callers),
        objects::authorization_policy("shop", "no-batch", batch),
    ]
}
