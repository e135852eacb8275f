//! Where a pod is to be taken in: the network namespace that is named, or else those of its processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_core::mesh::PodEnrolment;

use super::discovery::{self, Found, Wanted};
use super::pods::Pods;
use crate::redirect::{EnrolError, PodSpec, PreparedPod, Redirect};

/// Where procfs is: the node's, for which the agent needs the node's PID namespace (`hostPID`).
const PROC: &str = "/proc";
/// The pauses, in seconds, after which it is looked whether a pod with a runtime of its own has come to run under another
/// kernel.
const LOOKS: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// Why a pod's network namespace cannot be readied.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    #[error(
        "no process of the pod is running yet (no cgroup of a process names pod {uid}); it is looked for again. Where \
         that stays so, see that the agent has hostPID"
    )]
    NoProcess { uid: String },
    #[error(
        "the pod runs under {whose} (process `{process}`), whose sockets are not the node's kernel's: it cannot be in \
         the mesh; run it with another runtimeClassName, or label it istio.io/dataplane-mode: none"
    )]
    ForeignKernel { process: String, whose: &'static str },
    #[error(
        "the pod's runtimeClassName {class:?} is that of {whose}, whose sockets are not the node's kernel's: it cannot be \
         in the mesh; run it with another runtimeClassName, or label it istio.io/dataplane-mode: none"
    )]
    ForeignClass { class: String, whose: &'static str },
    #[error("{0}")]
    Redirect(#[from] EnrolError),
    #[error("the agent is stopping")]
    Stopping,
}

/// Readies the pod's network namespace. Every candidate is tried: a process that someone moved into the pod's cgroup
/// must not lead to another's namespace, nor keep the pod out.
pub(super) async fn prepare(
    redirect: &Arc<Redirect>,
    pods: Option<&Pods>,
    uid: &str,
    pod: &PodEnrolment,
) -> Result<PreparedPod, PlaceError> {
    // Before its sandbox is made nothing else tells.
    if let Some(class) = &pod.runtime_class
        && let Some(whose) = discovery::kernel_of_class(class)
    {
        return Err(PlaceError::ForeignClass { class: class.to_string(), whose });
    }
    let mut refusal = None;
    if let Some(named) = &pod.netns {
        if let Some(runtime) = &pod.runtime_class {
            tracing::debug!(uid, %runtime, "looking whether the runtime has a kernel of its own");
            refuse_foreign_kernel(&look(uid, pod, Vec::new()).await?)?;
        }
        match prepare_at(redirect, uid, pod, Path::new(&**named)).await {
            Err(PlaceError::Redirect(error)) if error.is_elsewhere() => refusal = Some(error),
            result => return result,
        }
    }
    let mut found = look(uid, pod, Vec::new()).await?;
    if found.netns.is_empty()
        && let Some(pods) = pods
    {
        let name = pod.workload.namespaced_name();
        let containers = pods.find(&name).await.map(|pod| discovery::container_ids(&pod)).unwrap_or_default();
        if !containers.is_empty() {
            found = look(uid, pod, containers).await?;
        }
    }
    refuse_foreign_kernel(&found)?;
    for path in &found.netns {
        match prepare_at(redirect, uid, pod, path).await {
            Err(PlaceError::Redirect(error)) if error.is_elsewhere() => {
                refusal.get_or_insert(error);
            }
            result => return result,
        }
    }
    Err(refusal.map_or_else(|| PlaceError::NoProcess { uid: uid.to_owned() }, PlaceError::Redirect))
}

/// Resolves when a pod that was taken in turns out to run under another kernel, which shows only once it has started;
/// never for others.
pub(super) async fn until_foreign_kernel(uid: &str, pod: &PodEnrolment) -> PlaceError {
    if pod.runtime_class.is_some() {
        for pause in LOOKS {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            let Ok(found) = look(uid, pod, Vec::new()).await else { break };
            if let Err(error) = refuse_foreign_kernel(&found) {
                return error;
            }
        }
    }
    std::future::pending().await
}

fn refuse_foreign_kernel(found: &Found) -> Result<(), PlaceError> {
    match &found.foreign_kernel {
        Some((process, whose)) => Err(PlaceError::ForeignKernel { process: process.clone(), whose }),
        None => Ok(()),
    }
}

async fn prepare_at(
    redirect: &Arc<Redirect>,
    uid: &str,
    pod: &PodEnrolment,
    netns: &Path,
) -> Result<PreparedPod, PlaceError> {
    let spec = PodSpec {
        uid: uid.to_owned(),
        netns: netns.to_owned(),
        addresses: pod.workload.addresses.to_vec(),
        bypass_inbound: pod.bypass_inbound,
        capture_dns: pod.dns_capture,
        outbound_rules: pod.workload.outbound_rules.clone(),
    };
    let redirect = redirect.clone();
    let prepared = tokio::task::spawn_blocking(move || redirect.prepare(&spec)).await;
    Ok(prepared.map_err(|_| PlaceError::Stopping)??)
}

async fn look(uid: &str, pod: &PodEnrolment, containers: Vec<String>) -> Result<Found, PlaceError> {
    let (uid, has_runtime_class) = (pod.node_uid.as_deref().unwrap_or(uid).to_owned(), pod.runtime_class.is_some());
    let look = move || {
        let wanted = Wanted { uid: &uid, containers: &containers, has_runtime_class };
        discovery::find(&PathBuf::from(PROC), wanted)
    };
    tokio::task::spawn_blocking(look).await.map_err(|_| PlaceError::Stopping)
}
