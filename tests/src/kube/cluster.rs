//! What a suite needs in a cluster before it begins.

use anyhow::{Context, Result};
use serde_json::json;

use super::{ControlPlane, START};
use crate::deadline::eventually;

impl ControlPlane {
    /// A namespace whose service account `default` is there: before that the API server refuses pods. It may exist.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn namespace(&self, name: &str) -> Result<()> {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        self.create("/api/v1/namespaces", &namespace)?;
        match self.controller_manager {
            Some(_) => self.await_default_account(name),
            None => self.service_account(name, "default"),
        }
    }

    /// A service account; it may exist.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<()> {
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name } });
        self.create(&format!("/api/v1/namespaces/{namespace}/serviceaccounts"), &account)
    }

    /// A Node, as its kubelet would have registered it; it may exist.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn node(&self, name: &str) -> Result<()> {
        let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name } });
        self.create("/api/v1/nodes", &node)
    }

    /// A pod of this account on this node, as the scheduler leaves it; returns its UID.
    ///
    /// # Errors
    /// When the API server refuses, or it exists.
    pub fn scheduled_pod(&self, namespace: &str, name: &str, account: &str, node: &str) -> Result<String> {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "nodeName": node,
                "serviceAccountName": account,
                "automountServiceAccountToken": false,
                "containers": [{ "name": "main", "image": "none" }],
            },
        });
        let created = self.request("POST", &format!("/api/v1/namespaces/{namespace}/pods"), Some(&pod))?.success()?;
        Ok(created["metadata"]["uid"].as_str().context("a pod has a UID")?.to_owned())
    }

    /// The same, running, with these addresses: what the kubelet would have written besides.
    ///
    /// # Errors
    /// When the API server refuses, or it exists.
    pub fn pod(&self, namespace: &str, name: &str, account: &str, node: &str, addresses: &[&str]) -> Result<()> {
        self.scheduled_pod(namespace, name, account, node)?;
        let addresses: Vec<_> = addresses.iter().map(|address| json!({ "ip": address })).collect();
        let ready = json!([{ "type": "Ready", "status": "True" }]);
        let status = json!({
            "status": {
                "phase": "Running",
                "podIP": addresses.first().map(|first| &first["ip"]),
                "podIPs": addresses,
                "conditions": ready,
            }
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
        self.request("PATCH", &path, Some(&status))?.success()?;
        Ok(())
    }

    /// A namespaced resource of version v1 with a status and without a schema: it takes what no webhook would.
    ///
    /// # Errors
    /// When the API server refuses it, or does not serve it.
    pub fn crd_without_schema(&self, group: &str, plural: &str, kind: &str) -> Result<()> {
        self.crd(group, plural, kind, "Namespaced")
    }

    /// The same, in no namespace.
    ///
    /// # Errors
    /// As [`Self::crd_without_schema`].
    pub fn cluster_crd_without_schema(&self, group: &str, plural: &str, kind: &str) -> Result<()> {
        self.crd(group, plural, kind, "Cluster")
    }

    fn crd(&self, group: &str, plural: &str, kind: &str, scope: &str) -> Result<()> {
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {
                "name": format!("{plural}.{group}"),
                // Of groups below k8s.io it is asked for.
                "annotations": { "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api" },
            },
            "spec": {
                "group": group, "scope": scope,
                "names": {
                    "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
                },
                "versions": [{
                    "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                    "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
                }],
            },
        });
        self.crds(&definition.to_string())
    }

    fn create(&self, path: &str, object: &serde_json::Value) -> Result<()> {
        let answer = self.request("POST", path, Some(object))?;
        if answer.status == 409 { Ok(()) } else { answer.success().map(drop) }
    }

    pub(super) fn await_default_account(&self, namespace: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        eventually(START, &format!("the service account default of {namespace}"), || {
            self.get(&path).is_ok_and(|answer| answer.status == 200).then_some(())
        })
    }
}
