//! Waiting until what was installed runs.

use std::time::Duration;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Id, explain};
use crate::output::write;

const POLL: Duration = Duration::from_secs(1);

/// Waits until each of `workloads` (Deployments and DaemonSets) runs as it was last applied.
///
/// # Errors
/// After `limit`: which are not ready, and why, as far as their pods say.
pub(crate) async fn wait(cluster: &Cluster, workloads: &[Id], limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let mut said = vec![String::new(); workloads.len()];
    loop {
        let mut ready = true;
        for (id, said) in workloads.iter().zip(&mut said) {
            let object = cluster.find(id).await?;
            let progress = object.map_or(Progress::waiting("is gone"), |object| {
                progress(&serde_json::to_value(&object).unwrap_or_default())
            });
            ready &= progress.ready;
            if *said != progress.text {
                write(&format!(
                    "{} {id}: {}\n",
                    if progress.ready { "ready    " } else { "waiting  " },
                    progress.text
                ))?;
                *said = progress.text;
            }
        }
        if ready {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let mut reasons = Vec::new();
            for id in workloads {
                reasons.extend(not_ready(cluster, id).await?);
            }
            reasons.dedup();
            if reasons.is_empty() {
                reasons.push("no pod says why: is there a node for them? kubectl describe has the events".to_owned());
            }
            bail!("not ready within {} seconds; applied all the same: {}", limit.as_secs(), reasons.join("; "));
        }
        sleep(POLL).await;
    }
}

#[derive(Debug, PartialEq)]
struct Progress {
    ready: bool,
    text: String,
}

impl Progress {
    fn waiting(text: &str) -> Self {
        Self { ready: false, text: text.to_owned() }
    }
}

/// How far a Deployment or DaemonSet is.
fn progress(object: &Value) -> Progress {
    let (spec, status) = (&object["spec"], &object["status"]);
    let count = |field: &str| status[field].as_u64().unwrap_or(0);
    if status["observedGeneration"].as_u64() < object["metadata"]["generation"].as_u64() {
        return Progress::waiting("not seen by kube-controller-manager yet");
    }
    let (wanted, updated, available, what) = match object["kind"].as_str() {
        Some("DaemonSet") => {
            (count("desiredNumberScheduled"), count("updatedNumberScheduled"), count("numberAvailable"), "nodes")
        }
        _ => {
            let wanted = spec["replicas"].as_u64().unwrap_or(1);
            (wanted, count("updatedReplicas"), count("availableReplicas"), "replicas")
        }
    };
    let done = updated.min(available).min(wanted);
    // A Deployment's old replicas go last.
    let old = count("replicas").saturating_sub(updated);
    Progress { ready: done == wanted && old == 0, text: format!("{done} of {wanted} {what}") }
}

/// Why pods of a workload are not ready, a line each, the first few.
async fn not_ready(cluster: &Cluster, id: &Id) -> Result<Vec<String>> {
    const SHOWN: usize = 3;
    let namespace = id.namespace.as_deref().unwrap_or_default();
    let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
    let pods = pods.list(&ListParams::default().labels(&format!("app={}", id.name)).limit(500)).await;
    let pods = pods.map_err(|error| explain(&error, "list", "pods"))?;
    Ok(pods.items.iter().filter_map(reason).take(SHOWN).collect())
}

fn reason(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    if conditions.clone().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
        return None;
    }
    let waiting = status.container_statuses.iter().flatten().find_map(|container| {
        let state = container.state.as_ref()?;
        let waiting = state.waiting.as_ref().map(|w| (w.reason.as_deref(), w.message.as_deref()));
        let ended =
            || container.last_state.as_ref()?.terminated.as_ref().map(|t| (t.reason.as_deref(), t.message.as_deref()));
        let (reason, message) = ended().filter(|(_, message)| message.is_some()).or(waiting)?;
        Some([reason, message].into_iter().flatten().collect::<Vec<_>>().join(": "))
    });
    let unscheduled = || conditions.clone().find(|c| c.type_ == "PodScheduled" && c.status == "False")?.message.clone();
    let why = waiting.or_else(unscheduled).unwrap_or_else(|| "not ready yet: kubectl logs says more".to_owned());
    let why: String = why.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect();
    Some(format!("pod {}: {why}", pod.metadata.name.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_daemon_set_is_ready_when_every_node_runs_its_last_version() {
        let set = |observed: u64, updated: u64, available: u64| {
            progress(&json!({
                "kind": "DaemonSet",
                "metadata": {"generation": 2},
                "status": {
                    "observedGeneration": observed, "desiredNumberScheduled": 3,
                    "updatedNumberScheduled": updated, "numberAvailable": available,
                },
            }))
        };
        assert!(!set(1, 3, 3).ready);
        assert_eq!(set(2, 1, 3), Progress::waiting("1 of 3 nodes"));
        assert!(!set(2, 3, 2).ready);
        assert!(set(2, 3, 3).ready);
    }

    #[test]
    fn a_deployment_is_ready_when_its_old_replicas_are_gone() {
        let deployment = |replicas: u64| {
            progress(&json!({
                "kind": "Deployment",
                "metadata": {"generation": 1},
                "spec": {"replicas": 2},
                "status": {
                    "observedGeneration": 1, "replicas": replicas, "updatedReplicas": 2, "availableReplicas": 2,
                },
            }))
        };
        assert!(!deployment(3).ready);
        assert!(deployment(2).ready);
    }

    #[test]
    fn a_pod_says_why_it_is_not_ready() {
        let pod = |status: Value| {
            serde_json::from_value::<Pod>(json!({"metadata": {"name": "p"}, "status": status})).unwrap()
        };
        let image = pod(json!({"containerStatuses": [{
            "name": "node", "ready": false, "image": "", "imageID": "", "restartCount": 0,
            "state": {"waiting": {"reason": "ErrImagePull", "message": "no\nsuch image"}},
        }]}));
        assert_eq!(reason(&image).unwrap(), "pod p: ErrImagePull: no such image");
        let unscheduled =
            pod(json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]}));
        assert_eq!(reason(&unscheduled).unwrap(), "pod p: 0/1 nodes");
        assert_eq!(reason(&pod(json!({"conditions": [{"type": "Ready", "status": "True"}]}))), None);
    }
}
