//! The directory of YAML that an agent reads, and the objects in it.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::topology::{Node, Pod};

/// A directory of YAML files. Written whole or not at all: an agent that watches it never reads half a file.
#[derive(Debug, Clone)]
pub struct ConfigDir {
    path: PathBuf,
}

impl ConfigDir {
    /// An empty directory at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path: path.to_path_buf() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes `NAME.yaml`, in place of what it held before.
    pub fn write(&self, name: &str, documents: &[String]) -> Result<()> {
        let hidden = self.path.join(format!(".{name}.part"));
        fs::write(&hidden, documents.join("---\n"))
            .and_then(|()| fs::rename(&hidden, self.path.join(format!("{name}.yaml"))))
            .with_context(|| format!("cannot write {name}.yaml in {}", self.path.display()))
    }

    /// Removes `NAME.yaml`.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.path.join(format!("{name}.yaml"))).with_context(|| format!("cannot remove {name}.yaml"))
    }
}

/// A Namespace, labelled for the mesh or not at all.
pub fn namespace(name: &str, ambient: bool) -> String {
    let labels = if ambient { "\n  labels: {istio.io/dataplane-mode: ambient}" } else { "" };
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}{labels}\n")
}

/// The Node object of a node.
pub fn node(node: &Node) -> String {
    let addresses = node.addresses().map(|address| format!("  - {{type: InternalIP, address: \"{address}\"}}\n"));
    let name = node.name();
    format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nstatus:\n  addresses:\n{}", addresses.concat())
}

/// The Pod object of a pod, running and ready, with an `app` label of its own name.
pub fn pod(pod: &Pod, service_account: &str) -> String {
    labelled_pod(pod, service_account, &[("app", pod.name())])
}

/// The Pod object of a pod, running and ready, with these labels.
pub fn labelled_pod(pod: &Pod, service_account: &str, labels: &[(&str, &str)]) -> String {
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    let [ipv4, ipv6] = pod.addresses();
    format!(
        "\
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  uid: {namespace}-{name}
  labels: {{{labels}}}
  annotations:
    culvert.dev/netns: {netns}
spec:
  nodeName: {node}
  serviceAccountName: {service_account}
  containers: [{{name: app, image: app}}]
status:
  phase: Running
  conditions: [{{type: Ready, status: \"True\"}}]
  podIP: {ipv4}
  podIPs: [{{ip: {ipv4}}}, {{ip: \"{ipv6}\"}}]
",
        name = pod.name(),
        namespace = pod.namespace(),
        labels = labels.join(", "),
        netns = pod.netns().path().display(),
        node = pod.node(),
    )
}

/// A Service with these cluster IPs that selects by the `app` label; ports are `(name, port, target port)`.
pub fn service(namespace: &str, name: &str, addresses: &[IpAddr], app: &str, ports: &[(&str, u16, u16)]) -> String {
    let quoted: Vec<_> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    let families: Vec<_> = addresses.iter().map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
    let ports: String = ports
        .iter()
        .map(|(name, port, target)| {
            format!("  - {{name: {name}, port: {port}, targetPort: {target}, protocol: TCP}}\n")
        })
        .collect();
    let first = quoted.first().map_or("None", String::as_str);
    format!(
        "\
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
spec:
  clusterIP: {first}
  clusterIPs: [{addresses}]
  ipFamilies: [{families}]
  selector: {{app: {app}}}
  ports:
{ports}",
        addresses = quoted.join(", "),
        families = families.join(", "),
    )
}

/// The Pod of a waypoint, behind the Service of the Gateway that has its name: not captured, as the controller makes it.
pub fn waypoint_pod(pod: &Pod) -> String {
    let labels = [("gateway.networking.k8s.io/gateway-name", pod.name()), ("istio.io/dataplane-mode", "none")];
    labelled_pod(pod, pod.name(), &labels)
}

/// The Gateway of a waypoint for this traffic (`service`, `workload`, `all`) and its own namespace, and its Service, which
/// selects [`waypoint_pod`].
pub fn waypoint(namespace: &str, name: &str, serves: &str) -> [String; 2] {
    let gateway = format!(
        "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{istio.io/waypoint-for: {serves}}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
"
    );
    let service = format!(
        "\
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{gateway.networking.k8s.io/gateway-name: {name}}}
spec:
  clusterIP: None
  selector: {{gateway.networking.k8s.io/gateway-name: {name}}}
  ports: [{{name: mesh, port: 15008}}]
"
    );
    [gateway, service]
}

/// A PeerAuthentication for a whole namespace.
pub fn peer_authentication(namespace: &str, mode: &str) -> String {
    format!(
        "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: {namespace}
spec:
  mtls:
    mode: {mode}
"
    )
}

/// An AuthorizationPolicy; `spec` is its YAML, from column 0.
pub fn authorization_policy(namespace: &str, name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {name}
  namespace: {namespace}
spec:
{spec}"
    )
}
