//! Nodes: where they are.

use std::sync::Arc;

use culvert_api::k8s_openapi::api::core::v1::Node;
use culvert_api::names::label;

use super::{Interner, metadata};
use crate::workload::Locality;

pub(crate) fn translate(node: &Node, interner: &mut Interner) -> Arc<Locality> {
    let mut first = |keys: &[&str]| {
        let value = keys.iter().find_map(|key| metadata::label(&node.metadata, key));
        interner.string(value.unwrap_or_default())
    };
    let locality = Locality {
        region: first(&[label::REGION, label::REGION_BETA]),
        zone: first(&[label::ZONE, label::ZONE_BETA]),
        subzone: first(&[label::SUBZONE]),
    };
    interner.locality(locality)
}
