//! The JSON of the admin endpoints, as far as it is read here: fields that are not are left alone.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use culvert_core::mesh::Snapshot;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::directory::Directory;
use crate::{Options, admin};

/// A member of `/config_dump`: of the agent's, or of what a directory amounts to.
pub(crate) fn member(options: &Options, name: &str, of: fn(&Snapshot) -> Result<Vec<Value>>) -> Result<Vec<Value>> {
    match &options.config_dir {
        Some(path) => of(&Directory::read(path)?.sound()?.snapshot),
        None => admin::read(&options.admin, &format!("/config_dump/{name}")),
    }
}

/// Items as JSON.
pub(crate) fn values<T: Serialize>(items: impl Iterator<Item = T>) -> Result<Vec<Value>> {
    items.map(|item| Ok(serde_json::to_value(item)?)).collect()
}

/// Reads one item.
pub(crate) fn typed<T: DeserializeOwned>(value: &Value) -> Result<T> {
    T::deserialize(value).context("not what this version of culvertctl expects; use the agent's version")
}

/// `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Name {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Waypoint {
    pub(crate) gateway: Name,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) addresses: Vec<String>,
    #[serde(default)]
    pub(crate) hostname: Option<String>,
    #[serde(default)]
    pub(crate) node: String,
    #[serde(default)]
    pub(crate) waypoint: Option<Waypoint>,
    pub(crate) protocol: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Service {
    pub(crate) key: ServiceKey,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) vips: Vec<String>,
    #[serde(default)]
    pub(crate) ports: Vec<ServicePort>,
    #[serde(default)]
    pub(crate) waypoint: Option<Waypoint>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ServiceKey {
    pub(crate) namespace: String,
    pub(crate) hostname: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ServicePort {
    pub(crate) port: u16,
    /// A number, or a name.
    pub(crate) target: Value,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Policy {
    pub(crate) name: Name,
    pub(crate) action: String,
    pub(crate) scope: Scope,
    #[serde(default)]
    pub(crate) dry_run: bool,
    #[serde(default)]
    pub(crate) rules: Vec<Value>,
}

#[derive(Debug, Deserialize)]
pub(crate) enum Scope {
    Mesh,
    Namespace,
    Selector(BTreeMap<String, String>),
    MeshSelector(BTreeMap<String, String>),
    /// Objects, each as `{"Service": "name"}` or `"Waypoints"`.
    Targets(Vec<Value>),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Certificate {
    pub(crate) identity: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) serial: Option<String>,
    #[serde(default)]
    pub(crate) expires_in: Option<u64>,
    #[serde(default)]
    pub(crate) error: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Connection {
    pub(crate) direction: String,
    pub(crate) source: String,
    #[serde(default)]
    pub(crate) source_workload: Option<String>,
    #[serde(default)]
    pub(crate) source_identity: Option<String>,
    pub(crate) destination: String,
    #[serde(default)]
    pub(crate) hbone_target: Option<String>,
    #[serde(default)]
    pub(crate) destination_workload: Option<String>,
    #[serde(default)]
    pub(crate) request_bytes: u64,
    #[serde(default)]
    pub(crate) response_bytes: u64,
    #[serde(default)]
    pub(crate) age_seconds: f64,
}

/// `/redirection`: what enrolment wants, and what the programs do.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Redirection {
    pub(crate) node: String,
    pub(crate) pods: Vec<EnrolledPod>,
    pub(crate) programs: Vec<CapturedPod>,
    pub(crate) outbound: Outbound,
    pub(crate) counters: Vec<Counter>,
}

/// A pod, as enrolment sees it.
#[derive(Debug, Deserialize)]
pub(crate) struct EnrolledPod {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) reason: Option<String>,
}

/// A pod, as the programs see it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CapturedPod {
    pub(crate) uid: String,
    pub(crate) netns: String,
    pub(crate) cookie: u64,
    pub(crate) addresses: Vec<String>,
    pub(crate) captured: bool,
    pub(crate) bypass_inbound: bool,
    pub(crate) programs: Vec<String>,
    pub(crate) listeners: Vec<String>,
    pub(crate) rules: Vec<String>,
    pub(crate) outbound_rules: Vec<String>,
    pub(crate) problems: Vec<String>,
}

/// What holds for the connections of every pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Outbound {
    pub(crate) complete: bool,
    pub(crate) registry_only: bool,
    pub(crate) rules: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Counter {
    pub(crate) name: String,
    pub(crate) reason: String,
    pub(crate) value: u64,
}
