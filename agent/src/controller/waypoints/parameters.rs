//! Parameters: what ConfigMaps want otherwise of a waypoint's objects (`spec.infrastructure.parametersRef`, and the
//! defaults of the class in the root namespace), by Istio's keys.

use std::collections::BTreeMap;

use culvert_api::Gateway;
use culvert_api::yaml;
use serde_json::Value;

use super::part::Part;

/// What is wanted otherwise of each object.
pub(super) type Overlays = BTreeMap<Part, Value>;

/// The name of the ConfigMap that holds the parameters of `gateway`, in its namespace.
///
/// # Errors
/// When it names something else.
pub(super) fn reference(gateway: &Gateway) -> Result<Option<&str>, String> {
    let infrastructure = gateway.spec.infrastructure.as_ref();
    let Some(parameters) = infrastructure.and_then(|infrastructure| infrastructure.parameters_ref.as_ref()) else {
        return Ok(None);
    };
    match (parameters.group.as_str(), parameters.kind.as_str()) {
        ("" | "core", "ConfigMap") => Ok(Some(&parameters.name)),
        (group, kind) => Err(format!(
            "spec.infrastructure.parametersRef: {kind} of group {group:?}: name a ConfigMap of this namespace, group \"\""
        )),
    }
}

/// What the ConfigMap called `name` says.
///
/// # Errors
/// One line that names the ConfigMap and the key.
pub(super) fn read(name: &str, data: &BTreeMap<String, String>) -> Result<Overlays, String> {
    let mut overlays = Overlays::new();
    for (key, text) in data {
        let Some(part) = Part::ALL.into_iter().find(|part| part.key() == key) else {
            let known = Part::ALL.map(Part::key).join(", ");
            return Err(format!("ConfigMap {name}: data.{key}: no such key; there are {known}"));
        };
        match yaml::value(text) {
            Ok(value @ Value::Object(_)) => {
                overlays.insert(part, value);
            }
            Ok(Value::Null) => {}
            Ok(_) => return Err(format!("ConfigMap {name}: data.{key}: not a mapping of the object's fields")),
            Err(mistake) => return Err(format!("ConfigMap {name}: data.{key}: {mistake}")),
        }
    }
    Ok(overlays)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn data(key: &str, text: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), text.to_owned())])
    }

    #[test]
    fn each_key_is_an_object() {
        let overlays = read("shop/p", &data("deployment", "spec: {replicas: 3}")).unwrap();
        assert_eq!(overlays, Overlays::from([(Part::Deployment, json!({"spec": {"replicas": 3}}))]));
        assert!(read("shop/p", &data("service", "")).unwrap().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_key() {
        for (key, text, words) in [
            ("deploy", "spec: {}", "data.deploy: no such key; there are serviceAccount, service, deployment"),
            ("service", "[1]", "data.service: not a mapping"),
            ("service", "{", "data.service: "),
        ] {
            let line = read("shop/p", &data(key, text)).unwrap_err();
            assert!(line.starts_with("ConfigMap shop/p: ") && line.contains(words) && !line.contains('\n'), "{line}");
        }
    }
}
