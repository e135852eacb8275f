//! What someone wants otherwise of an object, merged into it as `kubectl patch` does: mappings field by field, lists of
//! things that have names item by item, all else replaced; null removes (Kubernetes' strategic merge patch).

use serde_json::{Map, Value};

/// By which the items of a list are told apart, by the field that holds it: Kubernetes' `patchMergeKey`.
fn merge_key(field: &str, item: &Map<String, Value>) -> Option<&'static str> {
    match field {
        "containers" | "initContainers" | "env" | "volumes" | "imagePullSecrets" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "volumeDevices" => Some("devicePath"),
        "hostAliases" => Some("ip"),
        "topologySpreadConstraints" => Some("topologyKey"),
        // A container's, or else a Service's.
        "ports" => Some(if item.contains_key("containerPort") { "containerPort" } else { "port" }),
        _ => None,
    }
}

/// What is said about merging, beside what is merged.
const DIRECTIVE: &str = "$patch";
/// No document that Kubernetes takes is deeper.
const MAX_DEPTH: usize = 64;

/// Merges `patch` into `object`.
pub(super) fn merge(object: &mut Value, patch: &Value) {
    merge_field("", object, patch, 0);
}

fn merge_field(field: &str, into: &mut Value, patch: &Value, depth: usize) {
    match (&mut *into, patch) {
        (_, Value::Object(fields)) if fields.get(DIRECTIVE).is_some_and(|how| how == "replace") => {
            *into = without_directives(patch);
        }
        (Value::Object(known), Value::Object(fields)) if depth < MAX_DEPTH => {
            for (name, value) in fields {
                match (known.get_mut(name), value) {
                    (_, Value::Null) => {
                        known.remove(name);
                    }
                    (_, Value::Object(inner)) if is_deletion(inner) => {
                        known.remove(name);
                    }
                    (Some(into), value) => merge_field(name, into, value, depth + 1),
                    (None, value) => {
                        known.insert(name.clone(), without_directives(value));
                    }
                }
            }
        }
        (Value::Array(known), Value::Array(items)) => merge_items(field, known, items, depth),
        _ => *into = without_directives(patch),
    }
}

/// Items of the same name are merged, others come behind; a list whose items have none is replaced.
fn merge_items(field: &str, known: &mut Vec<Value>, items: &[Value], depth: usize) {
    let replaces =
        |item: &Value| item.get(DIRECTIVE).is_some_and(|how| how == "replace") && named(field, item).is_none();
    let is_named = items.iter().all(|item| named(field, item).is_some() || replaces(item));
    if !is_named || items.iter().any(replaces) {
        *known = items.iter().filter(|item| !replaces(item)).map(without_directives).collect();
        return;
    }
    for item in items {
        let same = known.iter().position(|known| named(field, known) == named(field, item));
        match (same, item) {
            (Some(at), Value::Object(fields)) if is_deletion(fields) => {
                known.remove(at);
            }
            (None, Value::Object(fields)) if is_deletion(fields) => {}
            (Some(at), item) => merge_field(field, &mut known[at], item, depth + 1),
            (None, item) => known.push(without_directives(item)),
        }
    }
}

/// What tells an item from its siblings.
fn named<'a>(field: &str, item: &'a Value) -> Option<&'a Value> {
    let item = item.as_object()?;
    item.get(merge_key(field, item)?)
}

fn is_deletion(fields: &Map<String, Value>) -> bool {
    fields.get(DIRECTIVE).is_some_and(|how| how == "delete")
}

/// The value itself: what is null, or only said about merging, is not part of it.
fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let said = fields.iter().filter(|(name, value)| *name != DIRECTIVE && !value.is_null());
            Value::Object(said.map(|(name, value)| (name.clone(), without_directives(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_directives).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(mut object: Value, patch: Value) -> Value {
        merge(&mut object, &patch);
        object
    }

    #[test]
    fn fields_are_merged_and_null_removes() {
        let object = json!({"a": {"b": 1, "c": 2}, "d": [1, 2], "e": 3});
        let patch = json!({"a": {"b": null, "x": {"y": null, "z": 1}}, "d": [3], "f": 4});
        assert_eq!(merged(object, patch), json!({"a": {"c": 2, "x": {"z": 1}}, "d": [3], "e": 3, "f": 4}));
    }

    #[test]
    fn what_has_a_name_is_merged_with_its_namesake() {
        let object = json!({"containers": [
            {"name": "istio-proxy", "image": "a", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
             "ports": [{"containerPort": 15020}]},
        ]});
        let patch = json!({"containers": [
            {"name": "more", "image": "b"},
            {"name": "istio-proxy", "env": [{"name": "B", "value": "3"}, {"name": "A", "$patch": "delete"}],
             "ports": [{"containerPort": 9, "name": "x"}], "resources": {"limits": {"cpu": 2}}},
        ]});
        assert_eq!(
            merged(object, patch),
            json!({"containers": [
                {"name": "istio-proxy", "image": "a", "env": [{"name": "B", "value": "3"}],
                 "ports": [{"containerPort": 15020}, {"containerPort": 9, "name": "x"}],
                 "resources": {"limits": {"cpu": 2}}},
                {"name": "more", "image": "b"},
            ]})
        );
    }

    #[test]
    fn services_ports_are_told_apart_by_their_number() {
        let object = json!({"ports": [{"name": "mesh", "port": 15008}, {"name": "status-port", "port": 15021}]});
        let patch = json!({"ports": [{"port": 15021, "$patch": "delete"}, {"port": 15008, "nodePort": 30000}]});
        assert_eq!(merged(object, patch), json!({"ports": [{"name": "mesh", "port": 15008, "nodePort": 30000}]}));
    }

    #[test]
    fn a_mapping_or_list_is_replaced_where_that_is_asked_for() {
        let object = json!({"labels": {"a": "1"}, "env": [{"name": "A", "value": "1"}]});
        let patch = json!({"labels": {"$patch": "replace", "b": "2"},
                           "env": [{"$patch": "replace"}, {"name": "B", "value": "2"}]});
        assert_eq!(merged(object, patch), json!({"labels": {"b": "2"}, "env": [{"name": "B", "value": "2"}]}));
        assert_eq!(merged(json!({"a": {"b": 1}}), json!({"a": {"$patch": "delete"}})), json!({}));
    }
}
