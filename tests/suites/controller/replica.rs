//! Replicas of the controller, each a process.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert::ca::{Asker, ServiceCa, ServiceOptions};
use culvert::identity::SystemClock;
use culvert_tests::kube::ControlPlane;
use culvert_tests::process::Process;
use culvert_tests::{agent, eventually, http};
use nix::sys::signal::Signal;
use serde_json::Value;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A namespace with what a controller needs. The ConfigMaps of the roots are the cluster's, so one test has a
/// controller at a time.
pub(crate) struct Installation {
    pub(crate) cluster: &'static ControlPlane,
    pub(crate) namespace: &'static str,
    kubeconfig: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

/// A running replica.
pub(crate) struct Replica {
    process: Process,
    ca: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
}

impl Installation {
    pub(crate) fn new(namespace: &'static str) -> Self {
        Self::on(ControlPlane::shared(), namespace)
    }

    /// On another control plane than the one that all tests share.
    pub(crate) fn on(cluster: &'static ControlPlane, namespace: &'static str) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        cluster.namespace(namespace).unwrap();
        for account in ["culvert-controller", "culvert-node"] {
            cluster.service_account(namespace, account).unwrap();
        }
        cluster.apply(&super::RBAC.replace("NAMESPACE", namespace)).unwrap();
        let kubeconfig = cluster.kubeconfig_of(namespace, "culvert-controller").unwrap();
        Self { cluster, namespace, kubeconfig, _turn: turn }
    }

    /// Starts a replica that signs for `localhost`; it need not be ready yet.
    pub(crate) fn start(&self, name: &str, flags: &[&str]) -> Replica {
        let mut command = Command::new(agent::binary("culvert").unwrap());
        command.arg("controller").args(["--namespace", self.namespace, "--pod-name", name]);
        command.args(["--ca-addr", "127.0.0.1:0", "--ca-dns-names", "localhost"]);
        for flag in ["--admin-addr", "--metrics-addr", "--readiness-addr"] {
            command.args([flag, "127.0.0.1:0"]);
        }
        command.args(["--trusted-node-accounts", &format!("{}/culvert-node", self.namespace)]);
        command.args(flags).env("KUBECONFIG", &self.kubeconfig);
        let mut process = Process::spawn(name, command).unwrap();
        let line = process.wait_for_line(LIMIT, "the addresses", |line| line.contains("listening")).unwrap();
        let address = |key: &str| {
            let text = line.split_whitespace().find_map(|word| word.strip_prefix(key)).unwrap();
            text.trim_matches('"').parse().unwrap()
        };
        let (ca, admin, metrics) = (address("ca="), address("admin="), address("metrics="));
        Replica { process, ca, admin, metrics }
    }

    /// The Lease's holder.
    pub(crate) fn leader(&self) -> Option<String> {
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/culvert-controller", self.namespace);
        let lease = self.cluster.get(&path).unwrap().body;
        lease["spec"]["holderIdentity"].as_str().filter(|holder| !holder.is_empty()).map(str::to_owned)
    }

    /// An object, or null.
    pub(crate) fn object(&self, path: &str) -> Value {
        let answer = self.cluster.get(path).unwrap();
        if answer.status == 200 { answer.body } else { Value::Null }
    }

    /// The text at `key` of a ConfigMap.
    pub(crate) fn map(&self, namespace: &str, name: &str, key: &str) -> Option<String> {
        let map = self.object(&format!("/api/v1/namespaces/{namespace}/configmaps/{name}"));
        map["data"][key].as_str().map(str::to_owned)
    }

    /// The roots in this namespace.
    pub(crate) fn roots(&self, namespace: &str) -> Option<String> {
        self.map(namespace, "istio-ca-root-cert", "root-cert.pem")
    }

    /// A file of one of its Secrets.
    pub(crate) fn secret(&self, name: &str, file: &str) -> Option<String> {
        let kubectl = format!("jsonpath={{.data.{}}}", file.replace('.', "\\."));
        let arguments = ["-n", self.namespace, "get", "secret", name, "--ignore-not-found", "-o", &kubectl];
        let text = self.cluster.kubectl(&arguments).unwrap();
        let decode = Command::new("sh").args(["-c", "printf %s \"$0\" | base64 -d", &text]).output().unwrap();
        Some(String::from_utf8(decode.stdout).unwrap()).filter(|text| !text.is_empty())
    }

    /// The files of an agent that shows `token` and trusts the roots as they are in the controller's namespace.
    pub(crate) fn agent(&self, replica: &Replica, name: &str, token: &str) -> ServiceOptions {
        let directory = self.cluster.directory().join(format!("{}-{name}", self.namespace));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("token"), token).unwrap();
        let roots = eventually(LIMIT, "the roots", || self.roots(self.namespace)).unwrap();
        std::fs::write(directory.join("root-cert.pem"), roots).unwrap();
        ServiceOptions {
            address: format!("localhost:{}", replica.ca.port()),
            root_file: directory.join("root-cert.pem"),
            crl_file: directory.join("ca-crl.pem"),
            token_file: directory.join("token"),
            asker: Asker::Node,
            clock: std::sync::Arc::new(SystemClock),
        }
    }

    /// The client of such an agent. Needs a tokio runtime.
    pub(crate) fn client(&self, replica: &Replica, name: &str, token: &str) -> std::sync::Arc<ServiceCa> {
        ServiceCa::open(self.agent(replica, name, token)).unwrap()
    }

    /// A pod of the node agent on `node`, and its token for `audience`.
    pub(crate) fn node_agent(&self, pod: &str, node: &str, audience: &str) -> String {
        self.cluster.node(node).unwrap();
        self.cluster.pod(self.namespace, pod, "culvert-node", node, &["10.9.0.1"]).unwrap();
        self.cluster.token(self.namespace, "culvert-node", audience, Some(pod)).unwrap()
    }
}

impl Replica {
    pub(crate) fn wait_ready(&self) {
        eventually(LIMIT, "the controller to be ready", || {
            let answer = http::get(self.admin, "/healthz/ready", Duration::from_secs(5)).ok()?;
            (answer.status == 200).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {}", self.log()));
    }

    pub(crate) fn log(&self) -> String {
        self.process.output()
    }

    /// Waits for a line of the log.
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        self.process.wait_for_line(LIMIT, text, |line| line.contains(text)).unwrap()
    }

    /// The value of a metric, by the beginning of its line.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        let answer = http::get(self.metrics, "/metrics", Duration::from_secs(5)).unwrap();
        let found = answer.body.lines().find_map(|known| known.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0.0)
    }

    pub(crate) fn ca(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ca.port()).into()
    }

    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
    }

    /// Ends it as the kubelet does.
    pub(crate) fn stop(mut self) -> String {
        self.process.signal(Signal::SIGTERM).unwrap();
        let status = self.process.wait(LIMIT).unwrap();
        assert!(status.success(), "{status}: {}", self.log());
        self.log()
    }
}
