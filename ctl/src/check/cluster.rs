//! Reading the facts of a cluster.

use std::collections::BTreeMap;

use anyhow::Result;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Node, PodSpec, ResourceQuota};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, GroupVersionKind, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::platform::{Facts, Workload};
use super::{Finding, nodes, platform};
use crate::chart;
use crate::cluster::{Cluster, Denied, Id, explain};

/// The oldest API server: the one with server-side apply.
const SERVER: (u32, u32) = (1, 20);
const CALICO: &str = "crd.projectcalico.org";
const GATEWAYS: &str = "gateways.gateway.networking.k8s.io";

/// Looks at a cluster for what Culvert in `namespace` would lack.
///
/// # Errors
/// The API server does not answer.
pub(crate) async fn judge(cluster: &Cluster, namespace: &str) -> Result<Vec<Finding>> {
    let version = cluster.version().await?;
    let mut found = Vec::new();
    if chart::minor_version(&version).is_ok_and(|version| version < SERVER) {
        let (major, minor) = SERVER;
        found.push(Finding::error(
            "the API server",
            format!("its version is {version}, and {major}.{minor} is needed"),
            "upgrade the control plane",
        ));
    }
    found.extend(permissions(cluster, namespace).await?);
    found.extend(unless_denied(definitions(cluster).await)?);
    found.extend(unless_denied(installed(cluster, namespace).await)?);
    match all(cluster, "nodes").await {
        Ok(all_nodes) => {
            found.extend(nodes::judge(&all_nodes));
            let facts = facts(cluster, namespace, version, &all_nodes).await;
            found.extend(unless_denied(facts.map(|facts| platform::judge(&facts)))?);
        }
        Err(error) => found.extend(unless_denied(Err(error))?),
    }
    found.sort();
    Ok(found)
}

/// What may not be looked at is a finding, so that all others are told too.
fn unless_denied(found: Result<Vec<Finding>>) -> Result<Vec<Finding>> {
    match found {
        Err(error) => match error.downcast_ref::<Denied>() {
            Some(Denied { verb, what, .. }) => {
                let problem = format!("cannot {verb} {what}: not allowed; what it would tell is not judged");
                Ok(vec![Finding::error("you", problem, "look as a cluster administrator (ClusterRole cluster-admin)")])
            }
            None => Err(error),
        },
        found => found,
    }
}

/// What whoever installs must be allowed to.
async fn permissions(cluster: &Cluster, namespace: &str) -> Result<Vec<Finding>> {
    let reviews = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let kinds = chart::KINDS.iter().filter(|(_, kind)| *kind != "PodMonitor");
    let mut denied = Vec::new();
    for (api_version, kind) in kinds.copied().chain([("apiextensions.k8s.io/v1", "CustomResourceDefinition")]) {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let plural = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind)).plural;
        for verb in ["create", "patch", "delete"] {
            let attributes = ResourceAttributes {
                namespace: chart::is_namespaced(kind).then(|| namespace.to_owned()),
                group: Some(group.to_owned()),
                resource: Some(plural.clone()),
                verb: Some(verb.to_owned()),
                ..Default::default()
            };
            let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
            let review = SelfSubjectAccessReview { spec, ..Default::default() };
            let answer = reviews.create(&PostParams::default(), &review).await;
            let answer = answer.map_err(|error| explain(&error, "create", "selfsubjectaccessreviews"))?;
            if !answer.status.is_some_and(|status| status.allowed) {
                denied.push(format!("{verb} {plural}"));
            }
        }
    }
    if denied.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![Finding::error(
        "you",
        format!("may not {}", denied.join(", ")),
        "install as a cluster administrator (ClusterRole cluster-admin)",
    )])
}

async fn definitions(cluster: &Cluster) -> Result<Vec<Finding>> {
    let there: Vec<CustomResourceDefinition> = all(cluster, "customresourcedefinitions").await?;
    let labels: BTreeMap<_, _> =
        there.iter().map(|definition| (definition.name_any(), definition.labels().clone())).collect();
    let (key, value) = culvert_api::crd::OWNER_LABEL;
    let mut found = Vec::new();
    for definition in culvert_api::crd::definitions() {
        let name = definition.name_any();
        match labels.get(&name) {
            Some(labels) if labels.get(key).is_none_or(|owner| owner != value) => {
                found.push(Finding::note(name, "is somebody else's, as a rule Istio's, and stays as it is", ""));
            }
            _ => {}
        }
    }
    if !labels.contains_key(GATEWAYS) {
        found.push(Finding::note(
            GATEWAYS,
            "is not installed: waypoints cannot be declared until it is",
            "install the standard channel of the Gateway API; agents notice by themselves",
        ));
    }
    Ok(found)
}

async fn installed(cluster: &Cluster, namespace: &str) -> Result<Vec<Finding>> {
    let id = Id::new("apps/v1", "DaemonSet", Some(namespace), "culvert-node");
    let there = cluster.find(&id).await?;
    Ok(there.map_or(Vec::new(), |there| {
        let by_helm = there.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == "Helm");
        let how = if by_helm { "helm upgrade" } else { "culvertctl upgrade" };
        vec![Finding::note(id.to_string(), "Culvert is installed already", format!("{how} changes it"))]
    }))
}

async fn facts(cluster: &Cluster, namespace: &str, version: String, nodes: &[Node]) -> Result<Facts> {
    let sets: Vec<DaemonSet> = all(cluster, "daemonsets").await?;
    let deployments: Vec<Deployment> = all(cluster, "deployments").await?;
    let mut workloads = BTreeMap::new();
    for set in &sets {
        let pods = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        workloads.insert(set.name_any(), workload(&set.metadata, pods));
    }
    for deployment in &deployments {
        let pods = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
        workloads.insert(deployment.name_any(), workload(&deployment.metadata, pods));
    }
    let cilium = Api::<ConfigMap>::namespaced(cluster.client.clone(), "kube-system").get_opt("cilium-config").await;
    let cilium = cilium.map_err(|error| explain(&error, "get", "configmaps"))?;
    let groups = cluster.client.list_api_groups().await.map_err(|error| explain(&error, "list", "API groups"))?;
    // Who may not read what is not there is told that he may not.
    let felix = match groups.groups.iter().any(|group| group.name == CALICO) {
        true => cluster.find(&Id::new(&format!("{CALICO}/v1"), "FelixConfiguration", None, "default")).await?,
        false => None,
    };
    let quotas = Api::<ResourceQuota>::namespaced(cluster.client.clone(), namespace);
    let quotas = quotas.list(&ListParams::default().limit(1)).await;
    let quotas = quotas.map_err(|error| explain(&error, "list", "resourcequotas"))?;
    let node_marks = nodes.iter().flat_map(|node| {
        let provider = node.spec.as_ref().and_then(|spec| spec.provider_id.clone());
        node.labels().keys().cloned().chain(provider).collect::<Vec<_>>()
    });
    Ok(Facts {
        version,
        node_marks: node_marks.collect(),
        workloads,
        cilium: cilium.and_then(|map| map.data),
        felix: felix.map(|felix| felix.data["spec"].clone()),
        groups: groups.groups.into_iter().map(|group| group.name).collect(),
        has_quota: !quotas.items.is_empty(),
    })
}

fn workload(metadata: &ObjectMeta, pods: Option<&PodSpec>) -> Workload {
    let containers = pods.into_iter().flat_map(|pods| &pods.containers);
    let variables = containers.flat_map(|container| container.env.iter().flatten());
    let environment = variables.filter_map(|variable| Some((variable.name.clone(), variable.value.clone()?))).collect();
    Workload { namespace: metadata.namespace.clone().unwrap_or_default(), environment }
}

/// All objects of a kind, in pages.
async fn all<K>(cluster: &Cluster, plural: &str) -> Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api = Api::<K>::all(cluster.client.clone());
    let mut parameters = ListParams::default().limit(500);
    let mut items = Vec::new();
    loop {
        let page = api.list(&parameters).await.map_err(|error| explain(&error, "list", plural))?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(items),
        }
    }
}
