//! What is in the cluster.

use std::fs;

use anyhow::{Context, Result};
use culvert_tests::kube::ControlPlane;
use culvert_tests::{Cgroup, Place, Pod, Process, Topology};
use serde_json::{Value, json};

use crate::run::root;

pub(super) const NAMESPACE: &str = "bench";
pub(super) const PODS: usize = 10_000;
/// With ten endpoints each.
pub(super) const SERVICES: usize = 1_000;
pub(super) const POLICIES: usize = 500;

/// Creates all of it, and the pods of the topology, which are really there; returns what runs in those.
pub(super) fn fill(cluster: &ControlPlane, topology: &Topology) -> Result<Vec<Running>> {
    for crd in fs::read_dir(root().join("deploy/helm/culvert/crds"))? {
        cluster.crds(&fs::read_to_string(crd?.path())?)?;
    }
    cluster.namespace(NAMESPACE)?;
    let ambient = json!({ "metadata": { "labels": { "istio.io/dataplane-mode": "ambient" } } });
    cluster.request("PATCH", &format!("/api/v1/namespaces/{NAMESPACE}"), Some(&ambient))?.success()?;
    let core = format!("/api/v1/namespaces/{NAMESPACE}");
    let accounts: Vec<_> = (0..PODS / 10).map(|n| ("POST", format!("{core}/serviceaccounts"), account(n))).collect();
    cluster.request_many(&accounts).context("service accounts")?;
    let pods: Vec<_> = (0..PODS).map(|n| ("POST", format!("{core}/pods"), pod(n))).collect();
    cluster.request_many(&pods).context("pods")?;
    let own = topology.pods().iter().map(|pod| create(cluster, topology, pod));
    let own = own.collect::<Result<_>>().context("pods that are really there")?;
    let statuses: Vec<_> = (0..PODS).map(|n| ("PATCH", format!("{core}/pods/{}/status", name(n)), status(n))).collect();
    cluster.request_many(&statuses).context("statuses of pods")?;
    let services: Vec<_> = (0..SERVICES).map(|n| ("POST", format!("{core}/services"), service(n))).collect();
    cluster.request_many(&services).context("Services")?;
    let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
    let slices: Vec<_> = (0..SERVICES).map(|n| ("POST", slices.clone(), slice(n))).collect();
    cluster.request_many(&slices).context("EndpointSlices")?;
    let policies = format!("/apis/security.istio.io/v1/namespaces/{NAMESPACE}/authorizationpolicies");
    let policies: Vec<_> = (0..POLICIES).map(|n| ("POST", policies.clone(), policy(n))).collect();
    cluster.request_many(&policies).context("policies")?;
    Ok(own)
}

/// A process of a pod, in the cgroup by which agents find it. Fields are dropped in this order.
pub(super) struct Running {
    _process: Process,
    _cgroup: Cgroup,
}

/// A pod of the topology, as the kubelet would have started and reported it.
fn create(cluster: &ControlPlane, topology: &Topology, pod: &Pod) -> Result<Running> {
    cluster.node(pod.node())?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name(),
            "labels": { "app": pod.name() },
        },
        "spec": {
            "nodeName": pod.node(),
            "automountServiceAccountToken": false,
            "containers": [{ "name": "main", "image": "none" }],
        },
    });
    let created = cluster.request("POST", &path, Some(&object))?.success()?;
    let uid = created["metadata"]["uid"].as_str().context("a pod without a UID")?;
    let cgroup = topology.scope().cgroup(&format!("{}/kubepods/pod{uid}", pod.node()))?;
    let mut idle = Place::netns(pod.netns().path()).in_cgroup(cgroup.path()).command("sleep")?;
    idle.arg("infinity");
    let process = Process::spawn("a pod's process", idle)?;
    let addresses = pod.addresses();
    let status = json!({
        "status": {
            "phase": "Running",
            "podIP": addresses[0],
            "podIPs": addresses.map(|address| json!({ "ip": address })),
            "conditions": [{ "type": "Ready", "status": "True" }],
        }
    });
    cluster.request("PATCH", &format!("{path}/{}/status", pod.name()), Some(&status))?.success()?;
    Ok(Running { _process: process, _cgroup: cgroup })
}

fn name(n: usize) -> String {
    format!("app-{}-7d9c5b8f6d-{n:05}", n / 10)
}

fn address(n: usize) -> String {
    format!("10.{}.{}.{}", 128 + n / 62_500, n / 250 % 250, n % 250 + 1)
}

fn account(n: usize) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": format!("app-{n}") } })
}

/// As a Deployment's pod looks: most of it is of no interest to an agent.
fn pod(n: usize) -> Value {
    let app = format!("app-{}", n / 10);
    let environment: Vec<_> = (0..20).map(|n| json!({ "name": format!("SETTING_{n}"), "value": "a value" })).collect();
    let probe = json!({ "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 10 });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name(n),
            "labels": { "app": app, "version": "v1", "pod-template-hash": "7d9c5b8f6d" },
            "annotations": { "prometheus.io/scrape": "true", "checksum/config": "5f70bf18a086007016e948b04aed3b82" },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-7d9c5b8f6d"), "uid": app,
                "controller": true,
            }],
        },
        "spec": {
            "nodeName": format!("elsewhere-{}", n / 100),
            "serviceAccountName": app,
            "containers": [{
                "name": "app", "image": "registry.example/app:1.2.3", "env": environment,
                "ports": [{ "containerPort": 8080, "name": "http" }], "readinessProbe": probe, "livenessProbe": probe,
            }],
        },
    })
}

fn status(n: usize) -> Value {
    json!({
        "status": {
            "phase": "Running",
            "podIP": address(n),
            "podIPs": [{ "ip": address(n) }],
            "conditions": [{ "type": "Ready", "status": "True" }],
            "containerStatuses": [{
                "name": "app", "ready": true, "restartCount": 0, "image": "registry.example/app:1.2.3",
                "imageID": "registry.example/app@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "containerID": format!("containerd://{n:064}"), "state": { "running": {} },
            }],
        }
    })
}

fn service(n: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": format!("app-{n}") },
        "spec": { "selector": { "app": format!("app-{n}") }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] },
    })
}

fn slice(n: usize) -> Value {
    let endpoints: Vec<_> = (n * 10..n * 10 + 10)
        .map(|pod| {
            json!({
                "addresses": [address(pod)],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": format!("elsewhere-{}", pod / 100),
                "targetRef": { "kind": "Pod", "name": name(pod), "namespace": NAMESPACE },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("app-{n}-x7f2q"),
            "labels": { "kubernetes.io/service-name": format!("app-{n}") },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    })
}

fn policy(n: usize) -> Value {
    let principals: Vec<_> = (n..n + 5).map(|caller| format!("cluster.local/ns/{NAMESPACE}/sa/app-{caller}")).collect();
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": format!("app-{n}") },
        "spec": {
            "selector": { "matchLabels": { "app": format!("app-{n}") } },
            "action": "ALLOW",
            "rules": [{
                "from": [{ "source": { "principals": principals } }],
                "to": [{ "operation": { "ports": ["8080"] } }],
            }],
        },
    })
}
