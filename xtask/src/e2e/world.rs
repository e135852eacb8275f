//! The cluster, its nodes, and the pods that are to be taken into the mesh.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::kube::{BUSYBOX, ControlPlane, KubeNode, Services};
use culvert_tests::{Capture, Topology, eventually};
use serde_json::Value;

use crate::image::Built;
use crate::setup;

/// How long anything may take that Kubernetes does in seconds on an idle machine.
pub(super) const LIMIT: Duration = Duration::from_secs(120);
/// What the pods serve, and what must never be seen on a wire.
pub(super) const SECRET: &str = "the-secret-of-the-shop";
pub(super) const PORT: u16 = 8080;
/// The namespace that is labelled.
pub(super) const SHOP: &str = "shop";
/// One that never is.
pub(super) const OUTSIDE: &str = "outside";

/// Everything; ended in this order.
pub(super) struct World {
    services: Option<Services>,
    pub(super) nodes: Vec<KubeNode>,
    pub(super) topology: Topology,
    pub(super) cluster: ControlPlane,
    /// The first address of the Service `shop/web`.
    pub(super) service: SocketAddr,
    /// Its addresses of both families.
    pub(super) both: [SocketAddr; 2],
    /// What is installed.
    pub(super) built: Built,
}

impl World {
    /// Nodes with pods that serve, and pods to call from: `shop/client` and `shop/neighbour` on n1, `shop/web` on n2,
    /// `outside/legacy` on n1.
    pub(super) fn start(built: Built) -> Result<Self> {
        let mut cluster = ControlPlane::start_dual_stack()?;
        cluster.start_scheduler()?;
        let topology = Topology::new(2)?;
        let parts = setup::node_packages();
        let nodes = [1, 2].map(|number| KubeNode::start(&cluster, &topology, number, &parts));
        let nodes = nodes.into_iter().collect::<Result<Vec<_>>>()?;
        let services = Services::start(&cluster, &topology)?;
        for namespace in [SHOP, OUTSIDE] {
            cluster.namespace(namespace)?;
        }
        let pods = [(SHOP, "client", "n1"), (SHOP, "neighbour", "n1"), (SHOP, "web", "n2"), (OUTSIDE, "legacy", "n1")];
        let documents: Vec<_> = pods.iter().map(|(namespace, name, node)| pod(namespace, name, node)).collect();
        cluster.apply(&documents.join("---\n"))?;
        cluster.apply(&service("web"))?;
        let found = cluster.get(&format!("/api/v1/namespaces/{SHOP}/services/web"))?.success()?;
        let both = both_families(list(&found["spec"]["clusterIPs"])).context("the Service has not both families")?;
        let world = Self { services: Some(services), nodes, topology, cluster, service: both[0], both, built };
        for (namespace, name, _) in pods {
            world.await_running(namespace, name)?;
        }
        Ok(world)
    }

    /// The node with this number (from 1).
    pub(super) fn node(&self, number: usize) -> &KubeNode {
        &self.nodes[number - 1]
    }

    /// A pod, as the API server has it.
    pub(super) fn pod(&self, namespace: &str, name: &str) -> Result<Value> {
        self.cluster.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))?.success()
    }

    /// Where a pod serves.
    pub(super) fn address(&self, namespace: &str, name: &str) -> Result<SocketAddr> {
        let pod = self.pod(namespace, name)?;
        let address = pod["status"]["podIP"].as_str().context("a pod without an address")?.parse()?;
        Ok(SocketAddr::new(address, PORT))
    }

    /// The same for both families, IPv4 first.
    pub(super) fn addresses(&self, namespace: &str, name: &str) -> Result<[SocketAddr; 2]> {
        let pod = self.pod(namespace, name)?;
        let addresses = both_families(list(&pod["status"]["podIPs"]).map(|one| &one["ip"]));
        addresses.with_context(|| format!("{namespace}/{name} has not both families: {}", pod["status"]["podIPs"]))
    }

    /// Waits until a pod is Running and Ready.
    pub(super) fn await_running(&self, namespace: &str, name: &str) -> Result<()> {
        eventually(LIMIT, &format!("{namespace}/{name} to run"), || {
            let pod = self.pod(namespace, name).ok()?;
            is_ready(&pod).then_some(())
        })
    }

    /// The node that a pod is on.
    pub(super) fn node_of(&self, namespace: &str, name: &str) -> Result<&KubeNode> {
        let pod = self.pod(namespace, name)?;
        let node = self.nodes.iter().find(|node| pod["spec"]["nodeName"] == node.name());
        node.with_context(|| format!("{namespace}/{name} is on no node"))
    }

    /// Runs a shell command in a pod; what it printed, if it succeeded.
    pub(super) fn shell(&self, namespace: &str, name: &str, script: &str) -> Result<Option<String>> {
        let node = self.node_of(namespace, name)?;
        let done = node.exec(&self.cluster, namespace, name, &["/bin/sh", "-c", script])?;
        Ok(done.status.success().then_some(done.stdout))
    }

    /// One call from a pod: whether it was answered with the secret.
    pub(super) fn call(&self, namespace: &str, name: &str, to: SocketAddr) -> Result<bool> {
        let answer = self.shell(namespace, name, &fetch(to))?;
        Ok(answer.is_some_and(|answer| answer.contains(SECRET)))
    }

    /// Waits until calls are answered, or refused.
    pub(super) fn await_call(&self, namespace: &str, name: &str, to: SocketAddr, answered: bool) -> Result<()> {
        let what = format!("{namespace}/{name} to be {} by {to}", if answered { "answered" } else { "refused" });
        eventually(LIMIT, &what, || (self.call(namespace, name, to).ok()? == answered).then_some(()))
    }

    /// What crosses the wire between the nodes.
    pub(super) fn capture_wire(&self) -> Result<Capture> {
        let (one, two) = (self.topology.node(1), self.topology.node(2));
        Capture::start(self.topology.scope(), one, &one.wire_to(two))
    }

    /// What crosses the bridge of n1's pods.
    pub(super) fn capture_bridge(&self) -> Result<Capture> {
        Capture::start(self.topology.scope(), self.topology.node(1), self.node(1).bridge())
    }

    pub(super) fn label(&self, namespace: &str, label: &str) -> Result<()> {
        self.cluster.kubectl(&["label", "--overwrite", "namespace", namespace, label]).map(drop)
    }

    /// The pods of a namespace with this `app` label.
    pub(super) fn pods_of(&self, namespace: &str, app: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{app}");
        match self.cluster.get(&path)?.success()?["items"].take() {
            Value::Array(pods) => Ok(pods),
            _ => Ok(Vec::new()),
        }
    }

    pub(super) fn look_around(&self) {
        println!("\nkubectl --kubeconfig {}", self.cluster.kubeconfig().display());
        for node in &self.nodes {
            println!("{}: {:?}", node.name(), node.machine().command("/bin/bash"));
        }
        println!("Ctrl-C ends everything.");
    }

    /// What is likely to tell why something failed: the pods, and the ends of the logs of Culvert's own.
    pub(super) fn diagnosis(&self) -> String {
        let mut text = self.cluster.kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"]).unwrap_or_default();
        text += &self.cluster.kubectl(&["get", "events", "--all-namespaces"]).unwrap_or_default();
        for app in ["culvert-node", "culvert-controller"] {
            for pod in self.pods_of(super::install::NAMESPACE, app).unwrap_or_default() {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                let node = self.nodes.iter().find(|node| pod["spec"]["nodeName"] == node.name());
                let log = node.and_then(|node| node.log(&self.cluster, super::install::NAMESPACE, name).ok());
                let log = log.unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                text += &format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
        text
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It asks the API server.
        self.services.take();
    }
}

/// The name of the ready agent of a node.
pub(super) fn agent_on(world: &World, node: &str) -> Result<String> {
    let pods = world.pods_of(super::install::NAMESPACE, "culvert-node")?;
    let agent = pods.iter().find(|pod| pod["spec"]["nodeName"] == node && is_ready(pod));
    let agent = agent.with_context(|| format!("{node} has no ready agent"))?;
    Ok(agent["metadata"]["name"].as_str().unwrap_or_default().to_owned())
}

pub(super) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
    ready && pod["metadata"]["deletionTimestamp"].is_null()
}

/// A pod that serves the secret.
pub(super) fn pod(namespace: &str, name: &str, node: &str) -> String {
    format!(
        "\
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{app: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {BUSYBOX}
    imagePullPolicy: Never
    command: [/bin/sh, -c]
    args: ['mkdir -p /tmp/www && echo {SECRET} >/tmp/www/index.html && exec httpd -f -p {PORT} -h /tmp/www']
"
    )
}

/// The shell command that fetches what a pod serves. Not wget: Debian's static busybox crashes in the C library's
/// resolver, even for an address.
pub(super) fn fetch(to: SocketAddr) -> String {
    format!(r"printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 {} {}", to.ip(), to.port())
}

/// Where something serves that has an address of each family, IPv4 first.
fn both_families<'a>(addresses: impl Iterator<Item = &'a Value>) -> Option<[SocketAddr; 2]> {
    let mut addresses: Vec<IpAddr> = addresses.filter_map(|one| one.as_str()?.parse().ok()).collect();
    addresses.sort();
    let &[v4 @ IpAddr::V4(_), v6 @ IpAddr::V6(_)] = addresses.as_slice() else { return None };
    Some([v4, v6].map(|address| SocketAddr::new(address, PORT)))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn service(name: &str) -> String {
    format!(
        "\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {SHOP}}}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {{app: {name}}}
  ports: [{{name: http, port: {PORT}, targetPort: {PORT}}}]
"
    )
}

/// Fails with what was expected.
pub(super) fn must(fact: bool, what: &str) -> Result<()> {
    ensure!(fact, "{what}");
    Ok(())
}
