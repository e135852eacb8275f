//! What Istio's CRDs have in common.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Selects pods by their labels; empty selects every pod of the namespace (`type/v1beta1/selector.proto`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Every pair must be on the pod. Wildcards are not supported.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 4096))]
    pub match_labels: BTreeMap<String, String>,
}

/// Attaches a policy to an object instead of to pods (`type/v1beta1/selector.proto`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyTargetReference {
    /// The API group; empty for the core group.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub group: String,
    /// The kind.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// The name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Must be empty: a policy attaches to objects of its own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// The status of every Istio object (`meta/v1alpha1/status.proto`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IstioStatus {
    /// What is known of the object.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "conditions")]
    pub conditions: Vec<Condition>,
    /// What its analysis found; left as it came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "untouched_list")]
    pub validation_messages: Vec<serde_json::Value>,
    /// The generation that the rest speaks of; Istio writes it as a number or a string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "int_or_string")]
    pub observed_generation: Option<serde_json::Value>,
}

/// Conditions as Istio writes them too: with generations as strings.
pub(crate) fn conditions<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Condition>, D::Error> {
    let mut list = Vec::<serde_json::Value>::deserialize(from)?;
    for condition in &mut list {
        let Some(generation) = condition.get_mut("observedGeneration") else { continue };
        if let Some(number) = generation.as_str().and_then(|text| text.parse::<i64>().ok()) {
            *generation = number.into();
        }
    }
    list.into_iter().map(|condition| serde_json::from_value(condition).map_err(serde::de::Error::custom)).collect()
}

pub(crate) fn untouched_list(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
    })
}

pub(crate) fn int_or_string(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"anyOf": [{"type": "integer"}, {"type": "string"}], "x-kubernetes-int-or-string": true})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_that_istio_wrote_is_read() {
        let status: IstioStatus = serde_json::from_value(serde_json::json!({
            "conditions": [{
                "type": "ZtunnelAccepted", "status": "True", "reason": "Accepted", "message": "attached to ztunnel",
                "lastTransitionTime": "2026-01-02T03:04:05.678901234Z", "observedGeneration": "4",
            }],
            "observedGeneration": "4",
        }))
        .unwrap();
        assert_eq!(status.conditions[0].observed_generation, Some(4));
        serde_json::from_value::<IstioStatus>(serde_json::json!({"conditions": [{"type": 1}]})).unwrap_err();
    }
}
