//! The Helm chart in `deploy/helm/culvert`, built in, and what it makes of values: the objects to install.

mod template;
mod values;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use self::template::Templates;
pub(crate) use self::template::minor_version;
use self::values::Values;

/// The namespace that Culvert is installed in unless another is named.
pub(crate) const NAMESPACE: &str = "culvert-system";
/// The label of every object that the chart makes.
pub(crate) const OWNED: &str = "app.kubernetes.io/part-of=culvert";

/// The defaults, with a comment for each.
pub(crate) const VALUES: &str = include_str!("../../deploy/helm/culvert/values.yaml");
const CHART: &str = include_str!("../../deploy/helm/culvert/Chart.yaml");

macro_rules! chart_files {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../deploy/helm/culvert/", $name)))),*]
    };
}

const HELPERS: [(&str, &str); 1] = chart_files!["templates/_helpers.tpl"];
const TEMPLATES: [(&str, &str); 8] = chart_files![
    "templates/controller.yaml",
    "templates/mesh.yaml",
    "templates/monitoring.yaml",
    "templates/namespaces.yaml",
    "templates/network.yaml",
    "templates/node.yaml",
    "templates/quota.yaml",
    "templates/rbac.yaml",
];

/// What is to be installed, and where.
#[derive(Debug)]
pub(crate) struct Release {
    /// The namespace of everything that has one, but for what must be in the mesh's root namespace.
    pub(crate) namespace: String,
    /// The API server's version, `v1.30.0`: what it does not know is left out.
    pub(crate) kube_version: String,
    /// The values, complete.
    pub(crate) values: Value,
}

impl Release {
    /// The defaults changed by `files` (name and text) and `sets`.
    ///
    /// # Errors
    /// The first value that is not what it can be.
    pub(crate) fn new(
        namespace: &str,
        kube_version: &str,
        files: &[(String, String)],
        sets: &[String],
    ) -> Result<Self> {
        minor_version(kube_version)?;
        let values = Values::merge(VALUES, files, sets)?;
        Ok(Self { namespace: namespace.to_owned(), kube_version: kube_version.to_owned(), values })
    }

    /// What the chart's templates make of it, in the order in which it is applied.
    ///
    /// # Errors
    /// The chart is wrong: tests render it.
    pub(crate) fn objects(&self) -> Result<Vec<Value>> {
        let chart = culvert_api::yaml::value(CHART).map_err(|mistake| anyhow::anyhow!("Chart.yaml: {mistake}"))?;
        let data = json!({
            "Values": self.values,
            "Release": {"Name": "culvert", "Namespace": self.namespace, "Service": "culvertctl"},
            "Chart": {"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
            "Capabilities": {"KubeVersion": {"Version": self.kube_version}},
        });
        let mut templates = Templates::default();
        for (name, text) in HELPERS.iter().chain(&TEMPLATES) {
            templates.add(name, text)?;
        }
        let mut objects = Vec::new();
        for (name, _) in TEMPLATES {
            let text = templates.render(name, &data)?;
            for document in format!("\n{text}").split("\n---") {
                let object = culvert_api::yaml::value(document);
                let object = object.map_err(|mistake| anyhow::anyhow!("{mistake}")).with_context(|| name.to_owned())?;
                objects.extend(Some(object).filter(|object| !object.is_null()));
            }
        }
        objects.sort_by_key(|object| (rank(object), name(object)));
        Ok(objects)
    }

    /// The namespace, which Helm makes by itself.
    pub(crate) fn namespace(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {
                "name": self.namespace,
                "labels": {
                    "app.kubernetes.io/part-of": "culvert",
                    // Agents mount directories of the node.
                    "pod-security.kubernetes.io/enforce": "privileged",
                },
            },
        })
    }

    /// The definitions of the kinds that are read.
    ///
    /// # Errors
    /// Never for those that are built in.
    pub(crate) fn definitions() -> Result<Vec<Value>> {
        let definitions = culvert_api::crd::definitions();
        let values = definitions.iter().map(|definition| {
            let mut value = serde_json::to_value(definition)?;
            if let Some(fields) = value.as_object_mut() {
                fields.remove("status");
            }
            Ok(value)
        });
        values.collect()
    }
}

/// What `files` and `sets` change of the defaults, as YAML.
///
/// # Errors
/// As [`Release::new`].
pub(crate) fn overlay(files: &[(String, String)], sets: &[String]) -> Result<String> {
    serde_yaml::to_string(&Values::overlay(files, sets)?).context("cannot be written as YAML")
}

/// Kinds in the order in which they are applied: what others refer to comes first.
pub(crate) const KINDS: [(&str, &str); 14] = [
    ("v1", "Namespace"),
    ("v1", "ResourceQuota"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("v1", "ServiceAccount"),
    ("v1", "ConfigMap"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("v1", "Service"),
    ("policy/v1", "PodDisruptionBudget"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
];

/// Whether objects of one of [`KINDS`] are in a namespace.
pub(crate) fn is_namespaced(kind: &str) -> bool {
    !matches!(kind, "Namespace" | "ClusterRole" | "ClusterRoleBinding" | "CustomResourceDefinition")
}

fn rank(object: &Value) -> usize {
    let kind = object["kind"].as_str().unwrap_or_default();
    KINDS.iter().position(|(_, known)| *known == kind).unwrap_or(KINDS.len())
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// The objects as one YAML stream.
///
/// # Errors
/// Never for what the chart makes.
pub(crate) fn yaml(objects: &[Value]) -> Result<String> {
    let documents = objects.iter().map(|object| serde_yaml::to_string(object).context("cannot be written as YAML"));
    Ok(documents.collect::<Result<Vec<_>>>()?.join("---\n"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Templates that only Helm runs.
    const HELM_ONLY: [&str; 1] = ["templates/uninstall.yaml"];

    fn release(sets: &[&str]) -> Release {
        let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
        Release::new(NAMESPACE, "v1.34.0", &[], &sets).unwrap()
    }

    #[test]
    fn every_template_is_built_in() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/culvert/templates");
        let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        let there: BTreeSet<_> = files.map(|name| format!("templates/{}", name.to_str().unwrap())).collect();
        let built_in = HELPERS.iter().chain(&TEMPLATES).map(|(name, _)| *name).chain(HELM_ONLY);
        assert_eq!(there, built_in.map(str::to_owned).collect());
    }

    #[test]
    fn the_default_objects_are_those_of_the_golden_file() {
        insta::assert_snapshot!(yaml(&release(&[]).objects().unwrap()).unwrap());
    }

    #[test]
    fn every_object_is_of_a_known_kind_and_carries_the_label_it_is_found_by() {
        let all = [
            "meshConfig.trustDomain=td",
            "rootNamespace.create=true",
            "podMonitor.enabled=true,podMonitor.labels.release=p",
            "resourceQuota.enabled=true",
            "image.pullSecrets={a}",
            "node.env.A=b,controller.env.C=1",
        ];
        let (key, value) = OWNED.split_once('=').unwrap();
        let objects = release(&all).objects().unwrap();
        for object in &objects {
            assert_eq!(object["metadata"]["labels"][key], value, "{object:#}");
            assert!(rank(object) < KINDS.len(), "{object:#}");
        }
        let kinds: BTreeSet<_> = objects.iter().map(rank).collect();
        assert_eq!(kinds.len(), KINDS.len(), "a kind that nothing makes");
    }

    #[test]
    fn a_waypoint_may_read_every_kind_that_there_is_and_do_nothing_else() {
        let objects = release(&[]).objects().unwrap();
        let role =
            |object: &&Value| object["kind"] == "ClusterRole" && object["metadata"]["name"] == "culvert-waypoint";
        let rules = objects.iter().find(role).unwrap()["rules"].as_array().unwrap().clone();
        let mut granted = BTreeSet::new();
        for rule in &rules {
            assert_eq!(rule["verbs"], json!(["list", "watch"]), "{rule}");
            granted.extend(rule["resources"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()));
        }
        let plural = |kind: &culvert_api::Kind| match kind.as_str().to_lowercase() {
            name if name.ends_with('y') && !name.ends_with("ay") => format!("{}ies", &name[..name.len() - 1]),
            name => format!("{name}s"),
        };
        let kinds = culvert_api::Kind::ALL.iter().map(plural);
        let read: BTreeSet<_> = kinds.chain(["customresourcedefinitions".to_owned()]).collect();
        assert_eq!(granted, read);
    }

    #[test]
    fn waypoints_are_not_run_where_that_is_not_wanted_and_nothing_is_granted_for_it() {
        let text = yaml(&release(&["waypoint.enabled=false"]).objects().unwrap()).unwrap();
        assert!(!text.contains("CULVERT_WAYPOINT_IMAGE") && !text.contains("culvert-waypoint"), "{text}");
        assert!(!text.contains("deployments") && !text.contains("gatewayclasses"), "{text}");
        let text = yaml(&release(&["waypoint.image=r/w:1"]).objects().unwrap()).unwrap();
        assert!(text.contains("value: r/w:1"), "{text}");
    }

    #[test]
    fn an_old_api_server_is_not_asked_for_what_it_does_not_know() {
        let old = Release::new(NAMESPACE, "v1.20.2", &[], &[]).unwrap();
        let objects = old.objects().unwrap();
        let of = |kind: &str| objects.iter().find(|object| object["kind"] == kind).unwrap();
        assert_eq!(of("PodDisruptionBudget")["apiVersion"], "policy/v1beta1");
        assert_eq!(of("DaemonSet")["spec"]["updateStrategy"]["rollingUpdate"], json!({"maxUnavailable": 1}));
        assert!(Release::new(NAMESPACE, "new", &[], &[]).is_err());
    }
}
