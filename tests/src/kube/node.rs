//! A real Kubernetes node on a machine of its own: containerd, runc, the reference CNI plugins and the kubelet.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{ControlPlane, DNS_ADDRESS, DUAL_STACK_GATE, Forwarder, Image, Machine, SERVICE_ADDRESS, end_of};
use crate::deadline::eventually;
use crate::process::{Finished, Process};
use crate::topology::Topology;

/// A shell, a web server on 8080 that is its entry point, and clients: what the pods of tests are made of.
pub const BUSYBOX: &str = "localhost/busybox:1";

const START: Duration = Duration::from_secs(120);
const ANSWER: Duration = Duration::from_secs(60);
/// Where the kubelet finds static pods.
const MANIFESTS: &str = "/etc/kubernetes/manifests";
const SOCKET: &str = "/run/containerd/containerd.sock";
const PAUSE: &str = "localhost/pause:1";

/// A node that is Ready; it ends with its machine. Its network namespace is that of a node of a topology, which
/// routes pods' addresses between nodes.
#[derive(Debug)]
pub struct KubeNode {
    // Ended in this order.
    kubelet: Option<Process>,
    containerd: Option<Process>,
    machine: Machine,
    _wires: Vec<Forwarder>,
    name: String,
    /// Debian's packages, unpacked: `usr/bin/containerd`, `usr/sbin/runc`, `usr/lib/cni` and `bin/busybox`.
    parts: PathBuf,
    /// For images and logs.
    directory: PathBuf,
}

impl KubeNode {
    /// Starts the node with this number (from 1) and waits until the API server has it as Ready. Pods get addresses of
    /// `10.NUMBER.1.0/24` and `fd00:NUMBER::1:0/120`, as in the topology. `parts` is where the packages of a node are unpacked.
    ///
    /// # Errors
    /// When something does not start, with the end of its log.
    pub fn start(cluster: &ControlPlane, topology: &Topology, number: u8, parts: &Path) -> Result<Self> {
        let node = topology.node(number);
        let directory = topology.scope().directory().join(format!("{}-node", node.name()));
        fs::create_dir_all(&directory)?;
        // The Service `kubernetes` is the one that must work before anything else runs.
        node.netns().ip(&format!("addr add {SERVICE_ADDRESS}/32 dev lo"))?;
        let service = SocketAddr::new(SERVICE_ADDRESS.into(), 443);
        let wires =
            vec![cluster.reachable_in(&node.place())?, Forwarder::start(&node.place(), service, cluster.address())?];
        let visible = [topology.scope().directory(), cluster.directory(), parts, cluster.programs().directory()];
        let machine = Machine::start(topology.scope(), node, &visible)?;
        let mut started = Self {
            kubelet: None,
            containerd: None,
            machine,
            _wires: wires,
            name: node.name().to_owned(),
            parts: parts.to_path_buf(),
            directory,
        };
        started.start_containerd(number)?;
        let [address, _] = node.addresses();
        started.start_kubelet(cluster, address)?;
        Ok(started)
    }

    /// `n1`, `n2`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The machine it runs on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The interface of the node that all its pods are behind.
    pub fn bridge(&self) -> &'static str {
        "pods"
    }

    /// Imports an OCI archive into containerd, as a registry would have delivered it.
    ///
    /// # Errors
    /// When containerd refuses it.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_str().context("a path that is not UTF-8")?;
        self.ctr(&["images", "import", archive])?.success().map(drop)
    }

    /// A directory for the files of an image that [`KubeNode::import`] takes.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The busybox of the parts.
    pub fn busybox(&self) -> PathBuf {
        self.parts.join("bin/busybox")
    }

    /// Runs a program in the first container of a pod, to its end.
    ///
    /// # Errors
    /// When there is no such container here, or the program does not end.
    pub fn exec(&self, cluster: &ControlPlane, namespace: &str, pod: &str, program: &[&str]) -> Result<Finished> {
        let container = container(cluster, namespace, pod)?;
        self.exec_in(&container, program)
    }

    /// The same in a container that is known by its id.
    ///
    /// # Errors
    /// When there is no such container here, or the program does not end.
    pub fn exec_in(&self, container: &str, program: &[&str]) -> Result<Finished> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("harness-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.ctr(&[&["task", "exec", "--exec-id", &id, container], program].concat())
    }

    /// `kill -9` of a container's first process; the kubelet starts another.
    ///
    /// # Errors
    /// When there is no such container here.
    pub fn kill(&self, container: &str) -> Result<()> {
        self.ctr(&["task", "kill", "--signal", "SIGKILL", container])?.success().map(drop)
    }

    /// What the first container of a pod has printed.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn log(&self, cluster: &ControlPlane, namespace: &str, pod: &str) -> Result<String> {
        let found = cluster.get(&format!("/api/v1/namespaces/{namespace}/pods/{pod}"))?.success()?;
        let uid = found["metadata"]["uid"].as_str().context("a pod without a uid")?;
        let directory = self.machine.path(&format!("/var/log/pods/{namespace}_{pod}_{uid}"));
        let mut text = String::new();
        for container in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let mut files: Vec<_> = fs::read_dir(container.path())?.flatten().map(|file| file.path()).collect();
            files.sort();
            for file in files {
                // `TIME STREAM F LINE`, as CRI has it.
                let logged = fs::read_to_string(file)?;
                text.extend(logged.lines().map(|line| format!("{}\n", line.splitn(4, ' ').last().unwrap_or_default())));
            }
        }
        Ok(text)
    }

    /// Has the kubelet run a pod from a file: a static pod, which the API server knows by a mirror, `NAME-NODE`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_static_pod(&self, name: &str, pod: &str) -> Result<()> {
        let path = self.machine.path(MANIFESTS).join(format!("{name}.yaml"));
        fs::write(&path, pod).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Ends a static pod.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove_static_pod(&self, name: &str) -> Result<()> {
        let path = self.machine.path(MANIFESTS).join(format!("{name}.yaml"));
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// The end of the kubelet's log.
    pub fn kubelet_log(&self) -> String {
        end_of(&self.directory.join("kubelet.log"))
    }

    fn start_containerd(&mut self, number: u8) -> Result<()> {
        let write = |path: &str, text: &str| -> Result<()> {
            let path = self.machine.path(path);
            fs::create_dir_all(path.parent().context("a path in a machine")?)?;
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("/etc/containerd/config.toml", &containerd_config(&self.parts))?;
        write("/etc/cni/net.d/10-pods.conflist", &conflist(number, self.bridge()).to_string())?;
        write("/opt/cni/bin/.keep", "")?;
        for plugin in fs::read_dir(self.parts.join("usr/lib/cni"))?.flatten() {
            fs::copy(plugin.path(), self.machine.path("/opt/cni/bin").join(plugin.file_name()))?;
        }
        let log = self.directory.join("containerd.log");
        let mut command = self.machine.command(self.parts.join("usr/bin/containerd"));
        command.args(["--config", "/etc/containerd/config.toml"]).env("PATH", self.search_path());
        self.containerd = Some(Process::spawn_server("containerd", command, &log)?);
        eventually(START, "containerd to answer", || {
            self.ctr(&["version"]).is_ok_and(|answer| answer.status.success()).then_some(())
        })
        .with_context(|| end_of(&log))?;
        for (name, entrypoint) in [
            (PAUSE, ["/bin/sleep", "2147483647"].as_slice()),
            (BUSYBOX, &["/bin/httpd", "-f", "-p", "8080", "-h", "/www"]),
        ] {
            let directory = self.directory.join(name.replace(['/', ':'], "-"));
            let image = Image::create(&directory)?;
            image.add_busybox(&self.busybox())?;
            image.write("www/index.html", "hello from a pod\n")?;
            self.import(&image.archive(name, entrypoint)?)?;
            fs::remove_dir_all(directory)?;
        }
        Ok(())
    }

    fn start_kubelet(&mut self, cluster: &ControlPlane, address: IpAddr) -> Result<()> {
        let name = &self.name;
        let user = format!("/O=system:nodes/CN=system:node:{name}");
        let kubeconfig = cluster.kubeconfig_with_certificate(&format!("node-{name}"), &user)?;
        let config = self.directory.join("kubelet.json");
        fs::write(&config, kubelet_config(cluster).to_string())?;
        fs::create_dir_all(self.machine.path(MANIFESTS))?;
        let log = self.directory.join("kubelet.log");
        let mut command = self.machine.command(cluster.programs().path("kubelet")?);
        command
            .env("PATH", self.search_path())
            .arg(format!("--config={}", config.display()))
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg(format!("--hostname-override={name}"))
            .arg(format!("--node-ip={address}"))
            .args(["--container-runtime=remote", &format!("--container-runtime-endpoint=unix://{SOCKET}")])
            .args([&format!("--pod-infra-container-image={PAUSE}"), "--v=2"]);
        let mut kubelet = Process::spawn_server("kubelet", command, &log)?;
        let ready = eventually(START, &format!("{name} to be Ready"), || {
            if let Ok(Some(status)) = kubelet.try_wait() {
                return Some(Err(status));
            }
            let node = cluster.get(&format!("/api/v1/nodes/{name}")).ok()?.body;
            let conditions = node["status"]["conditions"].as_array()?;
            conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True").then_some(Ok(()))
        });
        match ready {
            Ok(Ok(())) => {}
            Ok(Err(status)) => bail!("the kubelet ended, {status}: {}", end_of(&log)),
            Err(error) => return Err(error.context(format!("the kubelet's log: {}", end_of(&log)))),
        }
        self.kubelet = Some(kubelet);
        Ok(())
    }

    fn ctr(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.machine.command(self.parts.join("usr/bin/ctr"));
        command.args(["--address", SOCKET, "--namespace", "k8s.io"]).args(arguments);
        Process::spawn("ctr", command)?.finish(ANSWER)
    }

    fn search_path(&self) -> String {
        let parts = self.parts.display();
        format!("{parts}/usr/bin:{parts}/usr/sbin:/usr/sbin:/usr/bin:/sbin:/bin")
    }
}

/// The id of a pod's first container.
///
/// # Errors
/// When the pod does not run.
pub fn container(cluster: &ControlPlane, namespace: &str, pod: &str) -> Result<String> {
    let found = cluster.get(&format!("/api/v1/namespaces/{namespace}/pods/{pod}"))?.success()?;
    let id = found["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    id.strip_prefix("containerd://").map(str::to_owned).with_context(|| format!("{namespace}/{pod} has no container"))
}

fn containerd_config(parts: &Path) -> String {
    format!(
        r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{parts}/usr/sbin/runc"
"#,
        parts = parts.display()
    )
}

fn conflist(number: u8, bridge: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [{
            "type": "bridge",
            "bridge": bridge,
            "isGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [
                    [{ "subnet": format!("10.{number}.1.0/24"), "gateway": format!("10.{number}.1.254") }],
                    [{ "subnet": format!("fd00:{number:x}::1:0/120"), "gateway": format!("fd00:{number:x}::1:fe") }],
                ],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    })
}

fn kubelet_config(cluster: &ControlPlane) -> Value {
    // Where the API server has one family only, it keeps the first of a pod's addresses.
    let gates = if cluster.programs().gates_dual_stack() { json!({ DUAL_STACK_GATE: true }) } else { json!({}) };
    json!({
        "featureGates": gates,
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "readOnlyPort": 0,
        "staticPodPath": MANIFESTS,
        "fileCheckFrequency": "1s",
        "cgroupDriver": "cgroupfs",
        "failSwapOn": false,
        // What it would do to the host's kernel and packet filter is not wanted.
        "protectKernelDefaults": false,
        "makeIPTablesUtilChains": false,
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": cluster.ca() },
        },
        "authorization": { "mode": "Webhook" },
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_ADDRESS.to_string()],
        "evictionHard": { "nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "10Mi" },
        "imageGCHighThresholdPercent": 100,
        // DaemonSets are rolled in seconds, not minutes.
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "5s",
    })
}
