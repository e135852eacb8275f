//! `networking.istio.io`: ServiceEntry and WorkloadEntry, and below them VirtualService and DestinationRule (istio/api
//! `networking/v1alpha3/*.proto`).

pub mod destination_rule;
pub mod virtual_service;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::meta::{IstioStatus, conditions, int_or_string, untouched_list};

pub use destination_rule::DestinationRule;
pub use virtual_service::VirtualService;

/// A service that Kubernetes does not know.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "ServiceEntry",
    plural = "serviceentries",
    shortname = "se",
    category = "istio-io",
    category = "networking-istio-io",
    namespaced,
    status = "ServiceEntryStatus",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    /// The host names.
    #[schemars(length(min = 1, max = 256))]
    pub hosts: Vec<String>,
    /// Virtual addresses: IPs, or CIDRs where `resolution` is NONE or STATIC.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub addresses: Vec<String>,
    /// The ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub ports: Vec<ServiceEntryPort>,
    /// Whether it is part of the mesh.
    pub location: Location,
    /// How its addresses are found.
    pub resolution: Resolution,
    /// Its endpoints; exclusive with `workload_selector`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096))]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// The pods and WorkloadEntries of the namespace that are its endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<ServiceEntryWorkloadSelector>,
    /// To which namespaces it is visible.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Identities its servers may present.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntryPort {
    /// The port that clients dial.
    #[schemars(range(min = 1, max = 65535))]
    pub number: u32,
    /// Its name.
    #[schemars(length(max = 256))]
    pub name: String,
    /// The protocol; empty for TCP.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub protocol: String,
    /// The endpoint's port, where it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<u32>,
}

/// Whether a service is part of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Outside.
    #[default]
    MeshExternal,
    /// Inside.
    MeshInternal,
}

/// How the addresses of a service are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// The address that was dialled.
    #[default]
    None,
    /// The addresses of the endpoints.
    Static,
    /// By resolving the endpoints' names, or the hosts.
    Dns,
    /// As `DNS`, one address at a time.
    DnsRoundRobin,
    /// By resolving the name that each request asks for.
    DynamicDns,
}

/// Selects endpoints by their labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ServiceEntryWorkloadSelector {
    /// Every pair must be on the endpoint.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The status of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryStatus {
    /// What is known of the object.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// What its analysis found; left as it came.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "untouched_list")]
    pub validation_messages: Vec<serde_json::Value>,
    /// The generation that the rest speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "int_or_string")]
    pub observed_generation: Option<serde_json::Value>,
    /// The virtual addresses that were allocated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<ServiceEntryAddress>,
}

/// A virtual address that was allocated to a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ServiceEntryAddress {
    /// The address.
    pub value: String,
    /// The host that it is for; empty for every host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
}

/// A workload outside Kubernetes.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "WorkloadEntry",
    plural = "workloadentries",
    shortname = "we",
    category = "istio-io",
    category = "networking-istio-io",
    namespaced,
    status = "IstioStatus",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadEntrySpec {
    /// An IP, a host name, or `unix://` and a path.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub address: String,
    /// Its own port for a service port, by the service port's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u32>,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its network.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub network: String,
    /// `region/zone/subzone`.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub locality: String,
    /// Its share of the load relative to its siblings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// The account that its certificate is for.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub service_account: String,
}
