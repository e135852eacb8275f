//! What a kubelet would report: its node, and pods that run, do not, or have ended.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use culvert_tests::agent::binary;
use culvert_tests::eventually;
use culvert_tests::kube::ControlPlane;
use culvert_tests::process::Process;
use serde_json::{Value, json};

use super::LIMIT;

const NODE: &str = "n1";
const PERIOD: Duration = Duration::from_millis(200);

/// A node `n1` until it is dropped. It runs no containers, but `culvertctl` as Jobs ask for it.
pub(crate) struct Kubelet {
    stop: Arc<AtomicBool>,
    has_image: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Kubelet {
    /// Waits until pods can be scheduled to it.
    pub(crate) fn start(cluster: &'static ControlPlane) -> Self {
        register(cluster);
        let (stop, has_image) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
        let (stopped, image) = (stop.clone(), has_image.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = renew(cluster);
                let _ = look(cluster, image.load(Ordering::Relaxed));
                thread::sleep(PERIOD);
            }
        });
        let started = Self { stop, has_image, thread: Some(thread) };
        eventually(LIMIT, "a node without taints", || {
            let node = cluster.get(&format!("/api/v1/nodes/{NODE}")).ok()?.success().ok()?;
            node["spec"]["taints"].as_array().is_none_or(Vec::is_empty).then_some(())
        })
        .unwrap();
        started
    }

    /// Whether Culvert's image can be pulled.
    pub(crate) fn has_image(&self, has_image: bool) {
        self.has_image.store(has_image, Ordering::Relaxed);
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn register(cluster: &ControlPlane) {
    cluster.node(NODE).unwrap();
    let status = json!({
        "status": {
            "nodeInfo": {
                "kernelVersion": "6.1.0-18-amd64", "operatingSystem": "linux", "architecture": "amd64",
                "containerRuntimeVersion": "containerd://1.6.20", "osImage": "", "kubeletVersion": "v1.30.0",
                "kubeProxyVersion": "", "machineID": "", "systemUUID": "", "bootID": "",
            },
            "capacity": { "cpu": "8", "memory": "16Gi", "pods": "110" },
            "allocatable": { "cpu": "8", "memory": "16Gi", "pods": "110" },
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "" }],
        },
    });
    let path = format!("/api/v1/nodes/{NODE}");
    cluster.request("PATCH", &format!("{path}/status"), Some(&status)).unwrap().success().unwrap();
    let labels = json!({ "metadata": { "labels": { "kubernetes.io/os": "linux", "kubernetes.io/hostname": NODE } } });
    cluster.request("PATCH", &path, Some(&labels)).unwrap().success().unwrap();
}

/// By which kube-controller-manager knows that a node is alive.
fn renew(cluster: &ControlPlane) -> anyhow::Result<()> {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%6NZ"]).output()?;
    let now = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let spec = json!({ "holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": now });
    if cluster.request("PATCH", &format!("{leases}/{NODE}"), Some(&json!({ "spec": spec })))?.status == 404 {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": NODE }, "spec": spec,
        });
        cluster.request("POST", leases, Some(&lease))?;
    }
    Ok(())
}

fn look(cluster: &ControlPlane, has_image: bool) -> anyhow::Result<()> {
    let pods = cluster.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName={NODE}"))?.success()?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        if pod["metadata"]["deletionTimestamp"].is_string() {
            cluster.request("DELETE", &format!("{path}?gracePeriodSeconds=0"), None)?;
            continue;
        }
        let status = if pod["metadata"]["labels"]["job-name"].is_string() {
            match &*text(&pod["status"]["phase"]) {
                "Succeeded" | "Failed" => continue,
                _ => run(cluster, &namespace, pod)?,
            }
        } else if has_image {
            running(pod)
        } else {
            let waiting = json!({ "waiting": { "reason": "ErrImagePull", "message": "no such image" } });
            json!({ "phase": "Pending", "containerStatuses": containers(pod, false, &waiting) })
        };
        if status["phase"] != pod["status"]["phase"] || !is_said(pod, &status) {
            cluster.request("PATCH", &format!("{path}/status"), Some(&json!({ "status": status })))?;
        }
    }
    Ok(())
}

fn is_said(pod: &Value, status: &Value) -> bool {
    status["containerStatuses"][0]["ready"] == pod["status"]["containerStatuses"][0]["ready"]
}

fn running(pod: &Value) -> Value {
    json!({
        "phase": "Running",
        "conditions": [{ "type": "Ready", "status": "True" }],
        "containerStatuses": containers(pod, true, &json!({ "running": {} })),
    })
}

fn containers(pod: &Value, ready: bool, state: &Value) -> Vec<Value> {
    let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let status = |container: Value| {
        json!({
            "name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0,
            "ready": ready, "state": state,
        })
    };
    containers.into_iter().map(status).collect()
}

/// Runs a Job's container: `culvertctl`, as the pod's service account.
fn run(cluster: &ControlPlane, namespace: &str, pod: &Value) -> anyhow::Result<Value> {
    let container = &pod["spec"]["containers"][0];
    anyhow::ensure!(container["command"] == json!(["/usr/bin/culvertctl"]), "what is {container}?");
    let account = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    let kubeconfig: PathBuf = cluster.kubeconfig_of(namespace, account)?;
    let mut command = Command::new(binary("culvertctl")?);
    command.env("KUBECONFIG", kubeconfig);
    command.args(container["args"].as_array().into_iter().flatten().filter_map(Value::as_str));
    // The pods that it waits for go by this kubelet's hand.
    let process = Process::spawn("culvertctl", command)?;
    let mut process = Some(process);
    let finished = loop {
        let _ = delete_all(cluster, pod);
        let running = process.as_mut().expect("taken only once");
        if running.try_wait()?.is_some() {
            break process.take().expect("it is there").finish(LIMIT)?;
        }
        thread::sleep(PERIOD);
    };
    let phase = if finished.status.success() { "Succeeded" } else { "Failed" };
    let terminated = json!({ "terminated": { "exitCode": finished.status.code(), "message": finished.stderr } });
    Ok(json!({ "phase": phase, "containerStatuses": containers(pod, false, &terminated) }))
}

/// Ends the pods that are being deleted, but for this one.
fn delete_all(cluster: &ControlPlane, but: &Value) -> anyhow::Result<()> {
    let pods = cluster.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName={NODE}"))?.success()?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let is_going = pod["metadata"]["deletionTimestamp"].is_string();
        if is_going && pod["metadata"]["uid"] != but["metadata"]["uid"] {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (namespace, name) = (text(&pod["metadata"]["namespace"]), text(&pod["metadata"]["name"]));
            let path = format!("/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0");
            cluster.request("DELETE", &path, None)?;
        }
    }
    Ok(())
}
