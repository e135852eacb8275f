//! The values of the chart: their types, from which `values.schema.json` is generated, and how files and `--set` change
//! them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What can be set, by Helm or by `culvertctl install`. `values.yaml` has the defaults and says more.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Values {
    image: Image,
    rbac: Rbac,
    /// Istio's MeshConfig by its own names, and Culvert's options under `culvert`.
    mesh_config: Map<String, Value>,
    root_namespace: RootNamespace,
    node: Node,
    cni: Cni,
    controller: Controller,
    waypoint: Waypoint,
    network_policy: Switch,
    pod_monitor: PodMonitor,
    resource_quota: ResourceQuota,
    /// Helm's own; not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    global: Option<Map<String, Value>>,
}

/// The image of agents and controller.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Image {
    #[schemars(length(min = 1))]
    repository: String,
    /// Empty for the chart's appVersion.
    tag: String,
    pull_policy: PullPolicy,
    /// Names of Secrets in the chart's namespace.
    pull_secrets: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rbac {
    create: bool,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct RootNamespace {
    create: bool,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Switch {
    enabled: bool,
}

/// The DaemonSet culvert-node.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    log_level: String,
    log_format: LogFormat,
    access_log: bool,
    /// 0 for one for each CPU, 16 at the most.
    #[schemars(range(min = 0, max = 512))]
    workers: u16,
    /// Empty for Culvert's own controller.
    ca_address: String,
    #[schemars(range(min = 0, max = 3600))]
    drain_seconds: u16,
    #[schemars(length(min = 1))]
    cgroup: String,
    resources: Map<String, Value>,
    node_selector: BTreeMap<String, String>,
    affinity: Map<String, Value>,
    tolerations: Vec<Map<String, Value>>,
    priority_class_name: String,
    seccomp_profile: Map<String, Value>,
    /// Empty for none.
    app_armor_profile: String,
    se_linux_options: Map<String, Value>,
    pod_annotations: BTreeMap<String, String>,
    pod_labels: BTreeMap<String, String>,
    env: BTreeMap<String, Scalar>,
}

/// What becomes a string in the end.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Number(i64),
    Flag(bool),
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum LogFormat {
    Text,
    Json,
}

/// The CNI plugin that the agent chains.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cni {
    enabled: bool,
    #[schemars(regex(pattern = "^/"))]
    bin_dir: String,
    #[schemars(regex(pattern = "^/"))]
    conf_dir: String,
    exclude_namespaces: Vec<String>,
    enablement_selectors: Vec<Map<String, Value>>,
}

/// The Deployment culvert-controller.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Controller {
    #[schemars(range(min = 1))]
    replicas: u16,
    log_level: String,
    log_format: LogFormat,
    resources: Map<String, Value>,
    node_selector: BTreeMap<String, String>,
    /// In place of keeping the replicas apart.
    affinity: Map<String, Value>,
    tolerations: Vec<Map<String, Value>>,
    priority_class_name: String,
    pod_disruption_budget: Switch,
    /// `NAMESPACE/NAME` of service accounts, besides the chart's own agents'.
    trusted_node_accounts: Vec<String>,
    /// Besides those of the Service `culvert-controller`.
    ca_dns_names: Vec<String>,
    pod_annotations: BTreeMap<String, String>,
    pod_labels: BTreeMap<String, String>,
    env: BTreeMap<String, Scalar>,
}

/// The waypoints that the controller runs.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Waypoint {
    enabled: bool,
    /// Empty for that of agents and controller.
    image: String,
    defaults: WaypointDefaults,
}

/// What each waypoint has unless parameters say otherwise.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WaypointDefaults {
    #[schemars(range(min = 1))]
    replicas: u16,
    autoscaling: Autoscaling,
    pod_disruption_budget: Switch,
    resources: Map<String, Value>,
    #[schemars(range(min = 0, max = 3600))]
    drain_seconds: u16,
    log_level: String,
    log_format: LogFormat,
    access_log: bool,
    node_selector: BTreeMap<String, String>,
    tolerations: Vec<Map<String, Value>>,
}

/// A HorizontalPodAutoscaler.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Autoscaling {
    enabled: bool,
    #[schemars(range(min = 1))]
    min_replicas: u16,
    #[schemars(range(min = 1))]
    max_replicas: u16,
    /// In per cent of what is requested.
    #[schemars(range(min = 1))]
    cpu_utilization: u16,
}

/// A PodMonitor of the Prometheus operator.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodMonitor {
    enabled: bool,
    interval: String,
    labels: BTreeMap<String, String>,
}

/// A quota that allows system priority classes.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ResourceQuota {
    enabled: bool,
    #[schemars(range(min = 1))]
    pods: u32,
}

impl Values {
    /// The defaults, changed by `files` and then by `sets`, each in its order.
    ///
    /// # Errors
    /// One line that names the file or the `--set`, or the value that is not what it can be.
    pub(crate) fn merge(defaults: &str, files: &[(String, String)], sets: &[String]) -> Result<Value> {
        let mut values = mapping(defaults).context("values.yaml")?;
        merge(&mut values, Self::overlay(files, sets)?);
        let values = Value::Object(values);
        let typed: Self = serde_path_to_error::deserialize(&values).map_err(|error| {
            let path = error.path().to_string();
            anyhow!("value {path}: {}; `culvertctl install --print-values` prints all with comments", error.inner())
        })?;
        typed.check()?;
        Ok(values)
    }

    /// What `files` and `sets` say, without the defaults.
    pub(crate) fn overlay(files: &[(String, String)], sets: &[String]) -> Result<Map<String, Value>> {
        let mut overlay = Map::new();
        for (name, text) in files {
            graft(&mut overlay, mapping(text).with_context(|| name.clone())?);
        }
        for set in sets {
            graft(&mut overlay, assignments(set).with_context(|| format!("--set {set}"))?);
        }
        Ok(overlay)
    }

    /// The JSON schema, in the draft that Helm reads.
    #[cfg(test)]
    pub(crate) fn schema() -> Value {
        schemars::generate::SchemaSettings::draft07().into_generator().into_root_schema_for::<Self>().to_value()
    }

    /// What the schema says of lengths and ranges.
    fn check(&self) -> Result<()> {
        let waypoint = &self.waypoint.defaults;
        let scaling = &waypoint.autoscaling;
        let absolute = |path: &str| path.starts_with('/');
        for (holds, problem) in [
            (!self.image.repository.is_empty(), "image.repository: empty; name the image"),
            (self.node.workers <= 512, "node.workers: 512 at the most"),
            (self.node.drain_seconds <= 3600, "node.drainSeconds: 3600 at the most"),
            (absolute(&self.node.cgroup), "node.cgroup: not an absolute path"),
            (absolute(&self.cni.bin_dir), "cni.binDir: not an absolute path"),
            (absolute(&self.cni.conf_dir), "cni.confDir: not an absolute path"),
            (self.controller.replicas > 0, "controller.replicas: 1 at the least"),
            (waypoint.replicas > 0, "waypoint.defaults.replicas: 1 at the least"),
            (waypoint.drain_seconds <= 3600, "waypoint.defaults.drainSeconds: 3600 at the most"),
            (
                (1..=scaling.max_replicas).contains(&scaling.min_replicas) && scaling.cpu_utilization > 0,
                "waypoint.defaults.autoscaling: minReplicas and cpuUtilization: 1 at the least, maxReplicas no less",
            ),
            (self.resource_quota.pods > 0, "resourceQuota.pods: 1 at the least"),
        ] {
            if !holds {
                bail!("value {problem}");
            }
        }
        Ok(())
    }
}

fn mapping(text: &str) -> Result<Map<String, Value>> {
    match culvert_api::yaml::value(text).map_err(|mistake| anyhow!("{mistake}"))? {
        Value::Object(fields) => Ok(fields),
        Value::Null => Ok(Map::new()),
        _ => bail!("not a mapping of values"),
    }
}

/// Helm's rules: mappings are merged, anything else is replaced, null removes.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (_, Value::Null) => {
                into.remove(&key);
            }
            (Some(Value::Object(into)), Value::Object(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// `a.b=1,c={x,y}`, as Helm reads it; a dot or comma that is part of a name or value has `\` before it.
fn assignments(text: &str) -> Result<Map<String, Value>> {
    let mut values = Map::new();
    for assignment in split(text, ',') {
        let (path, value) = assignment.split_once('=').context("write KEY=VALUE")?;
        let path: Vec<_> = split(path, '.').iter().map(|part| unescape(part)).collect();
        if path.iter().any(|part| part.is_empty() || part.contains('[')) {
            bail!("{assignment}: a key is names with dots between; for items of a list use --values");
        }
        let value = match value.strip_prefix('{').and_then(|list| list.strip_suffix('}')) {
            Some("") => Value::Array(Vec::new()),
            Some(list) => split(list, ',').iter().map(|item| scalar(item)).collect(),
            None => scalar(value),
        };
        let nested = path.into_iter().rev().fold(value, |value, part| Value::Object(Map::from_iter([(part, value)])));
        if let Value::Object(nested) = nested {
            graft(&mut values, nested);
        }
    }
    Ok(values)
}

/// The same, but null stays: what it removes is in the defaults.
fn graft(into: &mut Map<String, Value>, from: Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Object(into)), Value::Object(from)) => graft(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn scalar(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        // `007` and the like stay what they are.
        _ if text == "0" || !text.starts_with('0') => text.parse::<i64>().map_or_else(|_| string(text), Value::from),
        _ => string(text),
    }
}

fn string(text: &str) -> Value {
    Value::String(unescape(text))
}

/// At each `separator` that has no `\` before it and is not in braces.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut escaped, mut depth) = (Vec::new(), 0, false, 0_usize);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ if c == separator && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    std::iter::from_fn(|| match chars.next()? {
        '\\' => chars.next(),
        c => Some(c),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const DEFAULTS: &str = super::super::VALUES;

    fn set(sets: &[&str]) -> Result<Value, String> {
        let sets: Vec<_> = sets.iter().map(|set| (*set).to_owned()).collect();
        Values::merge(DEFAULTS, &[], &sets).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn the_defaults_are_what_the_types_allow_and_nothing_is_left_out() {
        let defaults = set(&[]).unwrap();
        let typed: Values = serde_json::from_value(defaults.clone()).unwrap();
        assert_eq!(serde_json::to_value(typed).unwrap(), defaults);
    }

    #[test]
    fn every_value_has_a_comment() {
        let lines: Vec<_> = DEFAULTS.lines().map(|line| (line.len() - line.trim_start().len(), line.trim())).collect();
        let is_comment = |at: usize| lines.get(at).is_some_and(|(_, text)| text.starts_with('#'));
        for (at, (depth, text)) in lines.iter().enumerate() {
            let is_value = text.contains(':') && !text.starts_with(['#', '-']);
            // A section speaks through its values; deeper than ours are Kubernetes' own fields.
            let is_section = text.ends_with(':') && is_comment(at + 1);
            if is_value && !is_section && *depth <= 2 {
                assert!(is_comment(at - 1), "values.yaml:{}: {text}: no comment", at + 1);
            }
        }
    }

    #[test]
    fn values_are_set_as_helm_does() {
        let values =
            set(&["node.workers=4,image.tag=1\\.2", "cni.excludeNamespaces={a,b},node.podLabels.a\\.b=c"]).unwrap();
        assert_eq!(values["node"]["workers"], json!(4));
        assert_eq!(values["image"]["tag"], json!("1.2"));
        assert_eq!(values["cni"]["excludeNamespaces"], json!(["a", "b"]));
        assert_eq!(values["node"]["podLabels"], json!({"a.b": "c"}));
        assert_eq!(values["cni"]["binDir"], json!("/opt/cni/bin"));
    }

    #[test]
    fn files_are_merged_into_the_defaults() {
        let file =
            ("f.yaml".to_owned(), "node: {resources: {requests: {cpu: 1}}}\nmeshConfig: {trustDomain: td}".to_owned());
        let values = Values::merge(DEFAULTS, &[file], &["node.resources.requests.memory=null".to_owned()]).unwrap();
        assert_eq!(values["node"]["resources"], json!({"requests": {"cpu": 1}}));
        assert_eq!(values["meshConfig"], json!({"trustDomain": "td"}));
    }

    #[test]
    fn a_value_that_cannot_be_is_refused_by_its_name() {
        for (bad, expected) in [
            ("node.wrokers=1", "value node.wrokers: unknown field `wrokers`"),
            ("node.workers=many", "value node.workers: invalid type"),
            ("node.workers=600", "value node.workers: 512 at the most"),
            ("node.logFormat=xml", "value node.logFormat: unknown variant `xml`"),
            ("cni.binDir=opt", "value cni.binDir: not an absolute path"),
            ("controller=null", "missing field `controller`"),
            ("node.tolerations[0].key=a", "for items of a list use --values"),
            ("node", "write KEY=VALUE"),
        ] {
            let error = set(&[bad]).unwrap_err();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    /// `cargo xtask crds` writes it.
    #[test]
    fn the_charts_schema_is_what_the_types_generate() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/culvert/values.schema.json");
        let expected = serde_json::to_string_pretty(&Values::schema()).unwrap() + "\n";
        if std::env::var_os("CULVERT_BLESS").is_some() {
            std::fs::write(path, &expected).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert!(there == expected, "values.schema.json is not what the types generate: run `cargo xtask crds`");
    }
}
