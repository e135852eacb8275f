//! What every object's metadata says.

use std::sync::Arc;

use culvert_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use culvert_api::names::{annotation, label};
use culvert_api::{Kind, ObjectRef};

use super::facts::{TrafficDistribution, WaypointLabel, WaypointWords};
use super::intern::Interner;
use super::{Finding, Findings};
use crate::waypoint::{Canary, CanaryProblem};
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
    match label(meta, label::USE_WAYPOINT) {
        None | Some("") => {
            for key in [label::USE_WAYPOINT_NAMESPACE, label::USE_WAYPOINT_CANARY] {
                if label(meta, key).is_some() {
                    let message = "has no effect without the label istio.io/use-waypoint";
                    findings.warning(format!("metadata.labels[{key}]"), message);
                }
            }
            WaypointLabel::Unset
        }
        Some("none") => WaypointLabel::None,
        Some(name) => {
            let primary = gateway(name, gateway_namespace, namespace, interner);
            let canary = canary(meta, namespace, &primary, interner, findings);
            WaypointLabel::Gateway(primary, canary.map(Arc::new))
        }
    }
}

/// The Gateway `name`, in the namespace that a label names, or else in `own`.
fn gateway(name: &str, labelled: Option<&str>, own: &Arc<str>, interner: &mut Interner) -> NamespacedName {
    let namespace = match labelled {
        None | Some("") => own.clone(),
        Some(other) => interner.string(other),
    };
    NamespacedName { namespace, name: interner.string(name) }
}

/// The waypoint that is to take a share of what `primary` takes.
fn canary(
    meta: &ObjectMeta,
    namespace: &Arc<str>,
    primary: &NamespacedName,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> Option<Canary> {
    let field = || format!("metadata.labels[{}]", label::USE_WAYPOINT_CANARY);
    let name = label(meta, label::USE_WAYPOINT_CANARY).filter(|name| !name.is_empty())?;
    if matches!(findings.object.kind, Kind::Pod | Kind::WorkloadEntry) {
        // A share is of the connections to a service.
        findings.warning(field(), "has no effect here: label the Service, the ServiceEntry or the namespace");
        return None;
    }
    let gateway = gateway(name, label(meta, label::USE_WAYPOINT_CANARY_NAMESPACE), namespace, interner);
    let share = match annotation(meta, annotation::CANARY_WEIGHT).map(str::parse::<u8>) {
        _ if gateway == *primary => Err(CanaryProblem::SameAsPrimary(gateway.clone())),
        None => Ok(0),
        Some(Ok(share @ 0..=100)) => Ok(share),
        Some(_) => Err(CanaryProblem::InvalidWeight(gateway.clone())),
    };
    if let Err(problem) = &share {
        findings.error(field(), problem.to_string());
    }
    Some(Canary { gateway, share })
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
