//! What every object's metadata says.

use std::sync::Arc;

use culvert_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use culvert_api::names::{annotation, label};
use culvert_api::{Kind, ObjectRef};

use super::facts::{TrafficDistribution, WaypointLabel, WaypointWords};
use super::intern::Interner;
use super::{Finding, Findings};
use crate::workload::{Created, NamespacedName};

pub(crate) fn reference(kind: Kind, meta: &ObjectMeta, interner: &mut Interner) -> ObjectRef {
    let namespace = if kind.is_namespaced() { meta.namespace.as_deref().unwrap_or("default") } else { "" };
    ObjectRef::new(kind, interner.string(namespace), meta.name.as_deref().unwrap_or_default())
}

pub(crate) fn created(meta: &ObjectMeta) -> Created {
    Created::at(meta.creation_timestamp.as_ref().map(|time| time.0.as_second()))
}

pub(crate) fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    Some(meta.labels.as_ref()?.get(key)?.as_str())
}

pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    Some(meta.annotations.as_ref()?.get(key)?.as_str())
}

/// What an object in `namespace` says about its waypoint.
pub(crate) fn waypoint(
    meta: &ObjectMeta,
    namespace: &Arc<str>,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> WaypointWords {
    let label = waypoint_label(meta, namespace, interner, findings);
    WaypointWords { required: flag(meta, annotation::REQUIRE_WAYPOINT, findings), label }
}

/// An annotation that is `true` or `false`; anything else is reported, and read as `true`: these annotations restrict.
fn flag(meta: &ObjectMeta, name: &str, findings: &mut Findings<'_>) -> Option<bool> {
    let value = annotation(meta, name)?;
    if !matches!(value, "true" | "false") {
        let value: String = value.chars().take(100).collect();
        let field = format!("metadata.annotations[{name}]");
        findings.error(field, format!("{value:?} is neither \"true\" nor \"false\": read as \"true\""));
    }
    Some(value != "false")
}

fn waypoint_label(
    meta: &ObjectMeta,
    namespace: &Arc<str>,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> WaypointLabel {
    let gateway_namespace = label(meta, label::USE_WAYPOINT_NAMESPACE);
    if label(meta, label::USE_WAYPOINT_CANARY).is_some() {
        findings.warning(
            format!("metadata.labels[{}]", label::USE_WAYPOINT_CANARY),
            "canary waypoints are not supported: every connection goes to the one that istio.io/use-waypoint names",
        );
    }
    match label(meta, label::USE_WAYPOINT) {
        None | Some("") => {
            if gateway_namespace.is_some() {
                findings.warning(
                    format!("metadata.labels[{}]", label::USE_WAYPOINT_NAMESPACE),
                    "has no effect without the label istio.io/use-waypoint",
                );
            }
            WaypointLabel::Unset
        }
        Some("none") => WaypointLabel::None,
        Some(name) => {
            let namespace = match gateway_namespace {
                None | Some("") => namespace.clone(),
                Some(other) => interner.string(other),
            };
            WaypointLabel::Gateway(NamespacedName { namespace, name: interner.string(name) })
        }
    }
}

/// Which endpoints an annotation prefers.
pub(crate) fn traffic_distribution(meta: &ObjectMeta, findings: &mut Findings<'_>) -> Option<TrafficDistribution> {
    let value = annotation(meta, annotation::TRAFFIC_DISTRIBUTION)?;
    let known = distribution(value);
    if known.is_none() {
        findings.error(
            format!("metadata.annotations[{}]", annotation::TRAFFIC_DISTRIBUTION),
            format!("{value:?} is none of PreferClose, PreferSameZone, PreferSameNode, Any: ignored"),
        );
    }
    known
}

/// A traffic distribution by its name.
pub(crate) fn distribution(name: &str) -> Option<TrafficDistribution> {
    match name {
        "PreferClose" | "PreferSameZone" => Some(TrafficDistribution::PreferSameZone),
        "PreferSameNode" => Some(TrafficDistribution::PreferSameNode),
        "Any" => Some(TrafficDistribution::Any),
        _ => None,
    }
}

impl Findings<'_> {
    pub(crate) fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.list.push(Finding::error(self.object.clone(), field, message));
    }

    pub(crate) fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.list.push(Finding::warning(self.object.clone(), field, message));
    }
}
