//! Namespaces.

use culvert_api::k8s_openapi::api::core::v1::Namespace;
use culvert_api::names::annotation;

use super::facts::NamespaceFacts;
use super::{Findings, Interner, metadata};

pub(crate) fn translate(namespace: &Namespace, interner: &mut Interner, findings: &mut Findings<'_>) -> NamespaceFacts {
    let meta = &namespace.metadata;
    let name = findings.object.name.clone();
    let missing = metadata::annotation(meta, annotation::MISSING_WAYPOINT);
    if let Some(value) = missing.filter(|value| !matches!(*value, "bypass" | "refuse")) {
        findings.error(
            format!("metadata.annotations[{}]", annotation::MISSING_WAYPOINT),
            format!("{value:?} is neither `bypass` nor `refuse`: connections are refused while a waypoint is missing"),
        );
    }
    NamespaceFacts {
        labels: interner.labels(meta.labels.as_ref()),
        waypoint: metadata::waypoint(meta, &name, interner, findings),
        bypass_missing_waypoint: missing == Some("bypass"),
        traffic_distribution: metadata::traffic_distribution(meta, findings),
    }
}
