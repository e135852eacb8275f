//! A waypoint's Gateway: what it says, and what is said of it.

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use culvert_api::names::{WAYPOINT_GATEWAY_CLASS, WAYPOINT_PROTOCOL, label};
use kube::ResourceExt as _;
use kube::api::{DynamicObject, ListParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Id, explain};

pub(super) const API_VERSION: &str = "gateway.networking.k8s.io/v1";
/// The label by which several Istio control planes share their Gateways; Culvert runs them all.
pub(super) const REVISION: &str = "istio.io/rev";

/// What a waypoint serves.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Traffic {
    /// What is addressed to services.
    Service,
    /// What is addressed to workloads.
    Workload,
    /// Both.
    All,
    /// Nothing.
    None,
}

/// The flags that say what a waypoint is.
#[derive(Debug, clap::Args)]
pub(super) struct Wanted {
    /// Its name.
    #[arg(long, value_name = "NAME", default_value = "waypoint")]
    pub(super) name: String,

    /// What it serves; otherwise services.
    #[arg(long = "for", value_enum, value_name = "TRAFFIC")]
    traffic: Option<Traffic>,

    /// The label istio.io/rev, for Istio beside Culvert.
    #[arg(short, long, value_name = "REVISION")]
    revision: Option<String>,
}

impl Wanted {
    /// The Gateway; without a namespace, where none is said.
    ///
    /// # Errors
    /// When the name cannot be.
    pub(super) fn gateway(&self, namespace: Option<&str>) -> Result<Value> {
        if matches!(&*self.name, "" | "none") {
            bail!("--name {:?}: give another: istio.io/use-waypoint: none means that there is no waypoint", self.name);
        }
        let mut gateway = json!({
            "apiVersion": API_VERSION,
            "kind": "Gateway",
            "metadata": {"name": self.name},
            "spec": {
                "gatewayClassName": WAYPOINT_GATEWAY_CLASS,
                "listeners": [{"name": "mesh", "port": 15008, "protocol": WAYPOINT_PROTOCOL}],
            },
        });
        if let Some(namespace) = namespace {
            gateway["metadata"]["namespace"] = namespace.into();
        }
        let traffic = self.traffic.as_ref().and_then(ValueEnum::to_possible_value);
        if let Some(traffic) = traffic {
            gateway["metadata"]["labels"][label::WAYPOINT_FOR] = traffic.get_name().into();
        }
        if let Some(revision) = &self.revision {
            gateway["metadata"]["labels"][REVISION] = revision.as_str().into();
        }
        Ok(gateway)
    }
}

/// The waypoints of a namespace, or of all, in the order of their names.
///
/// # Errors
/// When the API server does not tell, or knows no Gateways.
pub(super) async fn all(cluster: &Cluster, namespace: Option<&str>) -> Result<Vec<DynamicObject>> {
    match cluster.api(API_VERSION, "Gateway", namespace).list(&ListParams::default()).await {
        Ok(list) => {
            let mut waypoints = list.items;
            waypoints.retain(|gateway| gateway.data["spec"]["gatewayClassName"] == WAYPOINT_GATEWAY_CLASS);
            waypoints.sort_by_key(|gateway| (gateway.namespace(), gateway.name_any()));
            Ok(waypoints)
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Err(not_installed()),
        Err(error) => Err(explain(&error, "list", "gateways")),
    }
}

/// The Gateway of this name, whatever its class.
pub(super) fn id(namespace: &str, name: &str) -> Id {
    Id::new(API_VERSION, "Gateway", Some(namespace), name)
}

/// What is wrong where the API server knows no Gateways.
pub(super) fn not_installed() -> anyhow::Error {
    anyhow!("this cluster has no Gateways: install the CustomResourceDefinitions of Gateway API first")
}

/// A condition of a Gateway, if it speaks of its present generation.
pub(super) fn condition(gateway: &DynamicObject, kind: &str) -> Option<Value> {
    let found = gateway.data["status"]["conditions"].as_array()?.iter().find(|found| found["type"] == kind)?;
    let seen = found["observedGeneration"].as_i64().unwrap_or_default();
    (seen >= gateway.metadata.generation.unwrap_or_default()).then(|| found.clone())
}

/// A label of a Gateway, or what it means that there is none.
pub(super) fn labelled(gateway: &DynamicObject, key: &str, otherwise: &str) -> String {
    gateway.labels().get(key).filter(|value| !value.is_empty()).map_or(otherwise, String::as_str).to_owned()
}
