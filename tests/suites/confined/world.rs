//! A node and a controller as the chart runs them: their capabilities, their service accounts, their permissions.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use culvert_tests::agent::binary;
use culvert_tests::http::{self, Server};
use culvert_tests::kube::{ControlPlane, Forwarder, Request};
use culvert_tests::process::Process;
use culvert_tests::{Agent, AgentConfig, Pod, Topology, eventually};
use serde_json::{Value, json};

use crate::datapath::{PORT, START};
use crate::grants::{self, Grant};
use crate::runtime::Runtime;

pub(crate) const NAMESPACE: &str = "culvert-system";
/// Where the node reaches the CA service.
const CA_PORT: u16 = 15012;

pub(crate) struct World {
    pub(crate) agent: Option<Agent>,
    pub(crate) controller: Process,
    _servers: Vec<Server>,
    _forwarders: Vec<Forwarder>,
    pub(crate) runtime: Runtime,
    config: AgentConfig,
    pub(crate) chart: Vec<Value>,
    pub(crate) cluster: ControlPlane,
    pub(crate) topology: Topology,
}

/// What a container may, as the chart has it.
#[derive(Debug)]
pub(crate) struct Confinement {
    /// `NET_ADMIN`, …
    pub(crate) capabilities: Vec<String>,
    user: u64,
}

impl Confinement {
    /// Of the first container of a workload.
    pub(crate) fn of(chart: &[Value], workload: &str) -> Self {
        let found = chart.iter().find(|object| {
            object["metadata"]["name"] == workload && object["spec"]["template"]["spec"]["containers"].is_array()
        });
        let pod = &found.expect("the workload is in the chart")["spec"]["template"]["spec"];
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        assert_eq!(context["allowPrivilegeEscalation"], false);
        let add = context["capabilities"]["add"].as_array().cloned().unwrap_or_default();
        let user = context["runAsUser"].as_u64().or(pod["securityContext"]["runAsUser"].as_u64());
        Self {
            capabilities: add.iter().map(|one| one.as_str().expect("a name").to_owned()).collect(),
            user: user.expect("a user"),
        }
    }

    /// `setpriv` with its flags, and the program after them.
    fn setpriv(&self) -> String {
        let added: String = self.capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
        format!(
            "setpriv --reuid {0} --regid {0} --clear-groups --no-new-privs --bounding-set=-all{added} \
             --inh-caps=-all{added}",
            self.user
        )
    }

    /// A program that runs another so confined, and where `/proc/sys` is read-only, as runtimes have it.
    fn script(&self, directory: &Path, name: &str, program: &Path) -> Result<PathBuf> {
        let path = directory.join(name);
        let text = format!(
            "#!/bin/sh\nexec unshare --mount --propagation slave /bin/sh -ec '\n\
             mount --bind /proc/sys /proc/sys\nmount -o remount,bind,ro /proc/sys\n\
             exec {} \"$0\" \"$@\"' '{}' \"$@\"\n",
            self.setpriv(),
            program.display()
        );
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Checks that a process has these capabilities, and can get no others.
    pub(crate) fn holds(&self, pid: u32) -> Result<()> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            line.map(str::to_owned).with_context(|| format!("no {name}"))
        };
        let expected = self.capabilities.iter().map(|name| 1_u64 << number(name)).sum::<u64>();
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let held = u64::from_str_radix(&field(set)?, 16)?;
            ensure!(held == expected, "{set} is {held:x} in place of {expected:x}: {:?}", self.capabilities);
        }
        ensure!(field("CapAmb")?.trim_matches('0').is_empty() && field("NoNewPrivs")? == "1", "{status}");
        let user = self.user.to_string();
        ensure!(field("Uid")?.split('\t').all(|id| id == user), "{status}");
        Ok(())
    }
}

/// `linux/capability.h`.
fn number(capability: &str) -> u8 {
    let known = [("DAC_OVERRIDE", 1), ("NET_ADMIN", 12), ("NET_RAW", 13), ("SYS_PTRACE", 19), ("SYS_ADMIN", 21)];
    let found = known.iter().find(|(name, _)| *name == capability);
    found.unwrap_or_else(|| panic!("{capability}: which number has it?")).1
}

impl World {
    /// Pods of node 1 with a server each. The chart is installed; the controller runs and has written its roots.
    pub(crate) fn new(pods: &[(u8, &str, &str)]) -> Result<Self> {
        let mut topology = Topology::new(2)?;
        let mut servers = Vec::new();
        for (node, namespace, name) in pods {
            let pod = topology.add_pod(*node, namespace, name)?;
            servers.push(Server::start(&pod.place(), SocketAddr::new([0, 0, 0, 0].into(), PORT), name)?);
        }
        let cluster = ControlPlane::start()?;
        for (plural, kind) in [
            ("gateways", "Gateway"),
            ("httproutes", "HTTPRoute"),
            ("grpcroutes", "GRPCRoute"),
            ("tcproutes", "TCPRoute"),
            ("tlsroutes", "TLSRoute"),
            ("referencegrants", "ReferenceGrant"),
        ] {
            cluster.crd_without_schema("gateway.networking.k8s.io", plural, kind)?;
        }
        cluster.cluster_crd_without_schema("gateway.networking.k8s.io", "gatewayclasses", "GatewayClass")?;
        culvertctl(&cluster, &["install", "--no-wait"])?;
        let rendered = culvertctl(&cluster, &["install", "--dry-run", "--kube-version", "v1.20.2"])?;
        let documents = format!("\n{rendered}");
        let chart: Vec<Value> =
            documents.split("\n---").map(|text| culvert_api::yaml::value(text).expect("YAML")).collect();
        for namespace in ["shop", "outside"] {
            cluster.namespace(namespace)?;
        }
        for node in ["n1", "n2"] {
            cluster.node(node)?;
        }
        cluster.pod(NAMESPACE, "culvert-node-1", "culvert-node", "n1", &["10.1.0.9"])?;

        let directory = topology.scope().directory().to_owned();
        let program = directory.join("culvert");
        let built = binary("culvert")?;
        fs::hard_link(&built, &program).or_else(|_| fs::copy(&built, &program).map(drop))?;
        let controller = start_controller(&cluster, &chart, &directory, &program)?;
        let ca = controller_address(&controller)?;

        let mut runtime = Runtime::create(&topology)?;
        let place = topology.node(1).place();
        let ca_here = SocketAddr::from((Ipv4Addr::LOCALHOST, CA_PORT));
        let forwarders = vec![cluster.reachable_in(&place)?, Forwarder::start(&place, ca_here, ca)?];
        let config = agent_config(&cluster, &chart, &directory, &program, &runtime)?;
        for pod in topology.pods() {
            let uid = cluster.scheduled_pod(pod.namespace(), pod.name(), "default", pod.node())?;
            runtime.uids.insert(pod.name().to_owned(), uid);
        }
        Ok(Self {
            agent: None,
            controller,
            _servers: servers,
            _forwarders: forwarders,
            runtime,
            config,
            chart,
            cluster,
            topology,
        })
    }

    pub(crate) fn start(&mut self) -> Result<()> {
        let mut agent = Agent::start(&self.topology, self.topology.node(1), &self.config)?;
        agent.wait_ready(START)?;
        self.agent = Some(agent);
        Ok(())
    }

    pub(crate) fn stop(&mut self) -> Result<String> {
        let mut agent = self.agent.take().context("an agent")?;
        let status = agent.terminate(START)?;
        ensure!(status.success(), "{status}: {}", agent.log());
        Ok(agent.log())
    }

    pub(crate) fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent was started")
    }

    pub(crate) fn pod(&self, name: &str) -> &Pod {
        self.topology.pod(name)
    }

    pub(crate) fn label(&self, namespace: &str, mode: Option<&str>) -> Result<()> {
        let patch = json!({ "metadata": { "labels": { "istio.io/dataplane-mode": mode } } });
        let path = format!("/api/v1/namespaces/{namespace}");
        self.cluster.request("PATCH", &path, Some(&patch))?.success().map(drop)
    }

    /// The kubelet's word on a pod: its addresses, and the container that it runs as.
    pub(crate) fn report(&self, pod: &Pod, container: &str) -> Result<()> {
        let [ipv4, ipv6] = pod.addresses();
        let running = json!({
            "name": "main", "image": "none", "imageID": "", "ready": true, "restartCount": 0,
            "containerID": format!("containerd://{container}"), "state": { "running": {} },
        });
        let status = json!({ "status": {
            "phase": "Running", "podIP": ipv4, "podIPs": [{ "ip": ipv4 }, { "ip": ipv6 }],
            "containerStatuses": [running],
        } });
        let path = format!("/api/v1/namespaces/{}/pods/{}/status", pod.namespace(), pod.name());
        self.cluster.request("PATCH", &path, Some(&status))?.success().map(drop)
    }

    /// Everything that the chart's service accounts have asked for.
    pub(crate) fn requests(&self) -> Result<Vec<Request>> {
        let mut all = self.cluster.audit()?;
        all.retain(|one| one.user.starts_with(&format!("system:serviceaccount:{NAMESPACE}:culvert-")));
        Ok(all)
    }

    pub(crate) fn grants(&self) -> Vec<Grant> {
        grants::of_chart(&self.chart)
    }

    /// An object, or null.
    pub(crate) fn object(&self, path: &str) -> Value {
        object(&self.cluster, path)
    }
}

fn object(cluster: &ControlPlane, path: &str) -> Value {
    cluster.get(path).ok().filter(|answer| answer.status == 200).map_or(Value::Null, |answer| answer.body)
}

fn culvertctl(cluster: &ControlPlane, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(binary("culvertctl")?);
    command.args(arguments).env("KUBECONFIG", cluster.kubeconfig());
    Process::spawn("culvertctl", command)?.finish(START * 2)?.success()
}

/// A kubeconfig of a service account that anyone may read, in its own namespace as in a pod.
fn kubeconfig(cluster: &ControlPlane, directory: &Path, account: &str) -> Result<PathBuf> {
    let written = fs::read(cluster.kubeconfig_of(NAMESPACE, account)?)?;
    let mut config: Value = serde_json::from_slice(&written)?;
    let ca = directory.join("api-ca.crt");
    fs::copy(cluster.ca(), &ca)?;
    config["clusters"][0]["cluster"]["certificate-authority"] = json!(ca);
    config["contexts"][0]["context"]["namespace"] = json!(NAMESPACE);
    let path = directory.join(format!("{account}.kubeconfig"));
    fs::write(&path, config.to_string())?;
    for path in [&path, &ca] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
    }
    Ok(path)
}

fn start_controller(cluster: &ControlPlane, chart: &[Value], directory: &Path, program: &Path) -> Result<Process> {
    let confinement = Confinement::of(chart, "culvert-controller");
    let script = confinement.script(directory, "controller", program)?;
    let mut command = Command::new(script);
    command.args(["controller", "--namespace", NAMESPACE, "--pod-name", "one", "--root-spread-seconds", "1"]);
    // What is not made for every waypoint can be taken away from one.
    let defaults = r#"{"podDisruptionBudget": {"enabled": false}}"#;
    command.args(["--waypoint-image", "localhost/culvert:test", "--waypoint-defaults", defaults]);
    command.args(["--ca-addr", "127.0.0.1:0", "--ca-dns-names", "localhost"]);
    for flag in ["--admin-addr", "--metrics-addr", "--readiness-addr"] {
        command.args([flag, "127.0.0.1:0"]);
    }
    command.env("KUBECONFIG", kubeconfig(cluster, directory, "culvert-controller")?);
    let mut controller = Process::spawn("culvert controller", command)?;
    controller.wait_for_line(START, "its addresses", |line| line.contains("listening"))?;
    let roots = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/istio-ca-root-cert");
    let is_ready = || {
        let ready = http::get(listening(&controller, "admin=").ok()?, "/healthz/ready", START).ok()?;
        (ready.status == 200 && object(cluster, &roots) != Value::Null).then_some(())
    };
    eventually(START, "the controller to be ready, with its roots written", is_ready)
        .with_context(|| controller.output())?;
    confinement.holds(controller.pid())?;
    Ok(controller)
}

fn controller_address(controller: &Process) -> Result<SocketAddr> {
    listening(controller, "ca=")
}

fn listening(controller: &Process, key: &str) -> Result<SocketAddr> {
    let output = controller.output();
    let line = output.lines().find(|line| line.contains("listening")).context("no addresses")?;
    let text = line.split_whitespace().find_map(|word| word.strip_prefix(key)).context("no such address")?;
    Ok(text.trim_matches('"').parse()?)
}

/// The agent, with what the kubelet mounts into its pod.
fn agent_config(
    cluster: &ControlPlane,
    chart: &[Value],
    directory: &Path,
    program: &Path,
    runtime: &Runtime,
) -> Result<AgentConfig> {
    let script = Confinement::of(chart, "culvert-node").script(directory, "node", program)?;
    let roots = object(cluster, &format!("/api/v1/namespaces/{NAMESPACE}/configmaps/istio-ca-root-cert"));
    let (root_file, token_file) = (directory.join("root-cert.pem"), directory.join("istio-token"));
    fs::write(&root_file, roots["data"]["root-cert.pem"].as_str().context("roots")?)?;
    fs::write(&token_file, cluster.token(NAMESPACE, "culvert-node", "istio-ca", Some("culvert-node-1"))?)?;
    let mut config = AgentConfig::with_binary(script, directory);
    config.ca = PathBuf::new();
    config.kubeconfig = Some(kubeconfig(cluster, directory, "culvert-node")?);
    config.arguments = ["--workers", "1", "--drain-seconds", "2"].map(Into::into).to_vec();
    config.arguments.extend(["--ca-address".into(), format!("localhost:{CA_PORT}").into()]);
    config.arguments.extend(["--ca-root-file".into(), root_file.into(), "--ca-token-file".into(), token_file.into()]);
    config.arguments.extend(["--ca-crl-file".into(), directory.join("ca-crl.pem").into()]);
    config.arguments.extend(runtime.flags());
    Ok(config)
}
