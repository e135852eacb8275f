//! A pod's object as the API server has it now, for what the mesh does not keep of pods.

use std::time::Duration;

use culvert_api::k8s_openapi::api::core::v1::{Namespace, Pod};
use culvert_core::workload::NamespacedName;
use kube::Api;

use crate::cluster::{Cluster, explain};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Asks the API server for pods and namespaces, one at a time.
#[derive(Clone, Debug)]
pub struct Pods(Cluster);

impl Pods {
    /// By this cluster's API server.
    pub fn new(cluster: Cluster) -> Self {
        Self(cluster)
    }

    /// The pod of this name; `None` when there is none, or nobody answers, which is logged.
    pub async fn find(&self, name: &NamespacedName) -> Option<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.0.client(), &name.namespace);
        answer(pods.get_opt(&name.name), "pods").await
    }

    /// The namespace of this name; `None` when there is none, or nobody answers, which is logged.
    pub async fn find_namespace(&self, name: &str) -> Option<Namespace> {
        let namespaces: Api<Namespace> = Api::all(self.0.client());
        answer(namespaces.get_opt(name), "namespaces").await
    }
}

async fn answer<T>(request: impl Future<Output = kube::Result<Option<T>>>, resource: &str) -> Option<T> {
    match tokio::time::timeout(ANSWER, request).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::warn!("{}", explain(&error, "get", resource));
            None
        }
        Err(_) => {
            tracing::warn!("cannot get {resource}: the API server does not answer within {} s", ANSWER.as_secs());
            None
        }
    }
}
