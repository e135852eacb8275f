//! Writes down what a plugin without an agent has to know.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use culvert_core::enrolment::{EnrolmentRules, PodTraits, eligibility};
use culvert_core::mesh::Snapshot;
use culvert_core::workload::{Labels, Workload};
use tokio::sync::watch;

use super::state::MeshCache;
use crate::files::make_private_directory;

/// How often at the most it is written.
const PAUSE: Duration = Duration::from_secs(1);

/// Follows the mesh from its first complete snapshot on, until the sender of snapshots goes.
pub async fn keep(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    rules: Arc<EnrolmentRules>,
    node: String,
    state_dir: PathBuf,
) {
    let mut last: Option<MeshCache> = None;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let cache = read(&snapshot, &rules, &node);
        if last.as_ref() != Some(&cache) {
            let (directory, written) = (state_dir.clone(), cache.clone());
            let write = move || make_private_directory(&directory).and_then(|()| written.store(&directory));
            match tokio::task::spawn_blocking(write).await {
                Ok(Ok(())) => last = Some(cache),
                Ok(Err(error)) => tracing::warn!(
                    "--state-dir {}: {error}: while no agent runs, the CNI plugin may know an old mesh",
                    state_dir.display()
                ),
                Err(_) => return,
            }
        }
        tokio::time::sleep(PAUSE).await;
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

fn read(snapshot: &Snapshot, rules: &EnrolmentRules, node: &str) -> MeshCache {
    let namespaces = snapshot.namespaces().map(|(name, labels)| {
        let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        (name.to_string(), labels.collect())
    });
    let nobody = Labels::default();
    let is_mixed = |workload: &Workload| {
        let labels = snapshot.namespace_labels(&workload.namespace);
        let eligibility =
            |of: &Labels| eligibility(rules, &workload.namespace, &labels.map(|l| &**l), of, PodTraits::default());
        eligibility(&workload.labels).is_ok() && eligibility(&nobody).is_err()
    };
    let mixed = snapshot.workloads().filter(|workload| is_mixed(workload));
    MeshCache {
        mixed: mixed.map(|workload| workload.namespace.to_string()).collect(),
        rules: rules.clone(),
        namespaces: namespaces.collect(),
        pods: snapshot.enrolled_pods_on(node).map(|pod| pod.workload.namespaced_name().to_string()).collect(),
    }
}
