//! An agent that only reads, and the objects that it is given to read.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert::cluster::Cluster;
use culvert::source;
use culvert::source::kube::{Health, Kube, ResourceStatus, State};
use culvert_core::mesh::{Mesh, Snapshot};
use culvert_tests::kube::{ControlPlane, Forwarder};
use culvert_tests::process::Place;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// An agent's source and mesh, without the agent.
pub(crate) struct Reader {
    runtime: Runtime,
    kube: Option<Kube>,
    pub(crate) health: Health,
    pub(crate) mesh: Mesh,
    is_settled: bool,
    pub(crate) wire: Forwarder,
    pub(crate) port: u16,
}

impl Reader {
    pub(crate) fn new(cluster: &ControlPlane, kubeconfig: &Path, file: Option<PathBuf>) -> Self {
        let here = Place::netns(Path::new("/proc/self/ns/net"));
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let wire = Forwarder::start(&here, listen, cluster.address()).unwrap();
        Self::over(wire, port, kubeconfig, file)
    }

    pub(crate) fn over(wire: Forwarder, port: u16, kubeconfig: &Path, file: Option<PathBuf>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let kubeconfig = Kubeconfig::read_from(kubeconfig).unwrap();
        let kube = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
            config.cluster_url = format!("https://127.0.0.1:{port}").parse().unwrap();
            Kube::open(&Cluster::with(config).unwrap(), source::Reader::Node, file)
        });
        let health = kube.health();
        Self { runtime, kube: Some(kube), health, mesh: Mesh::new(), is_settled: false, wire, port }
    }

    /// One of the administrator's.
    pub(crate) fn started(cluster: &ControlPlane) -> Self {
        Self::new(cluster, &cluster.kubeconfig(), None)
    }

    /// Takes in what comes for as long as `limit`, or until `is_it`.
    pub(crate) fn take(&mut self, limit: Duration, mut is_it: impl FnMut(&Snapshot, &Health) -> bool) -> bool {
        let Self { runtime, kube, health, mesh, is_settled, .. } = self;
        let kube = kube.as_mut().unwrap();
        runtime.block_on(async {
            let ended = tokio::time::sleep(limit);
            tokio::pin!(ended);
            loop {
                if *is_settled && is_it(&mesh.snapshot(), health) {
                    return true;
                }
                tokio::select! {
                    update = kube.next() => {
                        let update = update.expect("the source goes on");
                        mesh.stage(update.changes);
                        if update.settled {
                            mesh.publish();
                            *is_settled = true;
                        }
                    }
                    () = tokio::time::sleep(Duration::from_millis(50)) => {}
                    () = &mut ended => return false,
                }
            }
        })
    }

    #[track_caller]
    pub(crate) fn until(&mut self, what: &str, is_it: impl FnMut(&Snapshot, &Health) -> bool) {
        assert!(self.take(LIMIT, is_it), "{what} within {LIMIT:?}: {:#?}", self.health.status());
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.mesh.snapshot()
    }

    /// Ends it as an agent ends.
    pub(crate) fn end(mut self) -> Forwarder {
        let kube = self.kube.take().unwrap();
        self.runtime.block_on(async {
            tokio::time::timeout(LIMIT, kube.saver().save()).await.unwrap();
        });
        drop(kube);
        self.wire
    }
}

pub(crate) fn state(health: &Health, resource: &str) -> State {
    health.status().resources[resource].state
}

/// Whether all resources have been read, and are followed.
pub(crate) fn is_whole(health: &Health) -> bool {
    let is_followed = |resource: &ResourceStatus| !matches!(resource.state, State::Waiting | State::Failing);
    health.status().resources.values().all(is_followed)
}

pub(crate) fn has_pod(snapshot: &Snapshot, namespace: &str, name: &str) -> bool {
    snapshot.pod(namespace, name).is_some()
}

pub(crate) fn has_policy(snapshot: &Snapshot, namespace: &str, name: &str) -> bool {
    snapshot.authorization_policies().any(|policy| *policy.name.namespace == *namespace && *policy.name.name == *name)
}

/// A definition without a schema: it takes what no webhook would.
pub(crate) fn definition(group: &str, plural: &str, kind: &str, versions: &[&str]) -> String {
    let version = |at: usize, version: &&str| {
        json!({
            "name": version, "served": true, "storage": at == 0,
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        })
    };
    let versions: Vec<Value> = versions.iter().enumerate().map(|(at, name)| version(at, name)).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "versions": versions,
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")},
        },
    })
    .to_string()
}

pub(crate) fn policies(cluster: &ControlPlane) {
    cluster.crds(&definition("security.istio.io", "authorizationpolicies", "AuthorizationPolicy", &["v1"])).unwrap();
}

pub(crate) fn create(cluster: &ControlPlane, path: &str, object: &Value) {
    cluster.request("POST", path, Some(object)).unwrap().success().unwrap();
}

pub(crate) fn delete(cluster: &ControlPlane, path: &str) {
    cluster.request("DELETE", &format!("{path}?gracePeriodSeconds=0"), None).unwrap().success().unwrap();
}

pub(crate) fn policy(name: &str, spec: Value) -> Value {
    let spec = match spec {
        Value::Null => json!({}),
        spec => spec,
    };
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": name}, "spec": spec})
}

pub(crate) fn policies_path(namespace: &str) -> String {
    format!("/apis/security.istio.io/v1/namespaces/{namespace}/authorizationpolicies")
}
