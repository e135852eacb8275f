//! What is read of an object that the API server sends: a tenth of it, as a rule. The rest (managed fields, volumes,
//! environments, conditions' times, other people's annotations) is skipped as it is parsed, so that nobody pays for it
//! in memory, and a change of it is no change.
//!
//! A field that someone comes to read has to be named here as well; the objects of a file are not trimmed.

mod identify;

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::Kind;
use crate::names::annotation::MIRROR;

pub use identify::{identify, identify_event};

/// The fields of a `kind` that are read, from the JSON of one.
///
/// A value of the wrong type is kept where it is no more than a scalar: what it means is for
/// [`Object::from_value`](crate::Object::from_value) to say.
///
/// # Errors
/// When it is not JSON, or too deep.
pub fn trim(kind: Kind, json: &[u8]) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let value = fields(kind).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// The type of a watch event (`ADDED`) and the fields of its object that are read, from the JSON of the event.
///
/// # Errors
/// When it is not JSON, or too deep, or no event.
pub fn trim_event(kind: Kind, json: &[u8]) -> serde_json::Result<(String, Value)> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let mut event = EventVisitor { object: fields(kind) }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    match (event.remove("type"), event.remove("object")) {
        (Some(Value::String(kind)), Some(object)) => Ok((kind, object)),
        _ => Err(serde_json::Error::custom("an event has a type and an object")),
    }
}

/// Which part of a value is kept.
#[derive(Clone, Copy)]
enum Keep {
    /// All of it.
    All,
    /// Of a mapping, these fields.
    Fields(&'static [(&'static str, Keep)]),
    /// Of a list, this part of each item.
    Items(&'static Keep),
    /// Of annotations, those that Culvert or Istio give a meaning.
    Annotations,
}

use Keep::{All, Annotations, Fields, Items};

const METADATA: Keep = Fields(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("generation", All),
    ("labels", All),
    ("annotations", Annotations),
    ("creationTimestamp", All),
    ("deletionTimestamp", All),
    (
        "ownerReferences",
        Items(&Fields(&[("apiVersion", All), ("kind", All), ("name", All), ("uid", All), ("controller", All)])),
    ),
]);

const CONTAINER: Keep = Fields(&[
    ("name", All),
    ("restartPolicy", All),
    ("ports", Items(&Fields(&[("name", All), ("containerPort", All), ("protocol", All)]))),
]);

const POD: Keep = Fields(&[
    ("metadata", METADATA),
    (
        "spec",
        Fields(&[
            ("nodeName", All),
            ("serviceAccountName", All),
            ("hostNetwork", All),
            ("hostname", All),
            ("subdomain", All),
            ("runtimeClassName", All),
            ("containers", Items(&CONTAINER)),
            ("initContainers", Items(&CONTAINER)),
        ]),
    ),
    (
        "status",
        Fields(&[
            ("phase", All),
            ("podIP", All),
            ("podIPs", All),
            ("hostIP", All),
            ("conditions", Items(&Fields(&[("type", All), ("status", All)]))),
        ]),
    ),
]);

const ENDPOINT: Keep = Fields(&[
    ("addresses", All),
    ("conditions", All),
    ("hostname", All),
    ("nodeName", All),
    ("zone", All),
    ("targetRef", Fields(&[("kind", All), ("namespace", All), ("name", All)])),
]);

const ENDPOINT_SLICE: Keep =
    Fields(&[("metadata", METADATA), ("addressType", All), ("ports", All), ("endpoints", Items(&ENDPOINT))]);

/// What a person writes, and no status: it says what a controller thought of the rest.
const SPEC: Keep = Fields(&[("metadata", METADATA), ("spec", All)]);

fn fields(kind: Kind) -> Keep {
    match kind {
        Kind::Namespace | Kind::Node => Fields(&[("metadata", METADATA)]),
        Kind::ConfigMap => Fields(&[("metadata", METADATA), ("data", All)]),
        Kind::Pod => POD,
        Kind::EndpointSlice => ENDPOINT_SLICE,
        Kind::ServiceEntry => {
            Fields(&[("metadata", METADATA), ("spec", All), ("status", Fields(&[("addresses", All)]))])
        }
        _ => SPEC,
    }
}

/// Whether an annotation is one that Culvert or Istio may give a meaning.
fn is_annotation(key: &str) -> bool {
    let domain = key.split('/').next().unwrap_or_default();
    let is_within =
        |parent: &str| domain.strip_suffix(parent).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    is_within("istio.io") || is_within("culvert.dev") || is_within("gateway.networking.k8s.io") || key == MIRROR
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            All => serde::Deserialize::deserialize(deserializer),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Keep {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let part = match self {
                Fields(fields) => fields.iter().find(|(name, _)| *name == key).map(|(_, part)| *part),
                Annotations => is_annotation(&key).then_some(All),
                All | Items(_) => None,
            };
            match part {
                Some(part) => {
                    let value = access.next_value_seed(part)?;
                    kept.insert(key, value);
                }
                None => {
                    access.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        match self {
            Items(part) => {
                while let Some(item) = access.next_element_seed(*part)? {
                    kept.push(item);
                }
            }
            All | Fields(_) | Annotations => while access.next_element::<IgnoredAny>()?.is_some() {},
        }
        Ok(Value::Array(kept))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }
}

/// Reads the two fields of a watch event.
struct EventVisitor {
    object: Keep,
}

impl<'de> DeserializeSeed<'de> for EventVisitor {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EventVisitor {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a watch event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut event = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let part = match key.as_str() {
                "type" => All,
                "object" => self.object,
                _ => {
                    access.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            let value = access.next_value_seed(part)?;
            event.insert(key, value);
        }
        Ok(event)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn trimmed(kind: Kind, value: Value) -> Value {
        trim(kind, value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn what_nobody_reads_of_a_pod_is_not_kept() {
        let pod = json!({
            "metadata": {
                "name": "cart", "namespace": "shop", "resourceVersion": "7", "labels": {"app": "cart"},
                "managedFields": [{"manager": "kubelet"}],
                "annotations": {
                    "culvert.dev/netns": "/run/netns/cart", "ambient.istio.io/redirection": "enabled",
                    "kubernetes.io/config.mirror": "0a1b", "kubernetes.io/config.source": "file",
                    "kubectl.kubernetes.io/last-applied-configuration": "{}", "notistio.io/x": "y",
                },
            },
            "spec": {
                "nodeName": "n1", "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "env": [], "ports": [{"containerPort": 80, "hostPort": 1}]}],
            },
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            },
        });
        let expected = json!({
            "metadata": {
                "name": "cart", "namespace": "shop", "labels": {"app": "cart"},
                "annotations": {
                    "culvert.dev/netns": "/run/netns/cart", "ambient.istio.io/redirection": "enabled",
                    "kubernetes.io/config.mirror": "0a1b",
                },
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"containerPort": 80}]}]},
            "status": {
                "phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        assert_eq!(trimmed(Kind::Pod, pod), expected);
    }

    #[test]
    fn the_status_of_a_policy_is_not_kept_and_its_spec_is_kept_whole() {
        let policy = json!({"metadata": {"name": "p"}, "spec": {"novel": [{"a": 1}]}, "status": {"conditions": []}});
        assert_eq!(
            trimmed(Kind::AuthorizationPolicy, policy),
            json!({"metadata": {"name": "p"}, "spec": {"novel": [{"a": 1}]}})
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_is_left_to_be_found() {
        for spec in [json!("text"), json!(7), json!([1]), Value::Null, json!(true)] {
            let kept = trimmed(Kind::Pod, json!({"metadata": {"name": "p"}, "spec": spec}));
            assert_eq!(kept["spec"].is_array(), spec.is_array());
            assert!(spec.is_array() || kept["spec"] == spec, "{kept}");
        }
    }

    #[test]
    fn an_event_is_its_type_and_its_object() {
        let event =
            br#"{"object": {"metadata": {"name": "n", "uid": "u", "selfLink": "s"}, "spec": {}}, "type": "ADDED"}"#;
        let (kind, object) = trim_event(Kind::Node, event).unwrap();
        assert_eq!((kind.as_str(), object), ("ADDED", json!({"metadata": {"name": "n", "uid": "u"}})));
        for bad in [&b"{}"[..], b"[]", b"{\"type\": 7, \"object\": {}}", b"{\"type\":\"ADDED\"", b""] {
            assert!(trim_event(Kind::Node, bad).is_err());
        }
    }

    #[test]
    fn depth_is_bounded() {
        let deep =
            |field: &str| format!("{{\"metadata\":{{\"{field}\":{}{}}}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(trim(Kind::Pod, deep("labels").as_bytes()).is_err());
        // What is skipped is skipped without recursion.
        assert!(trim(Kind::Pod, deep("managedFields").as_bytes()).is_ok());
    }
}
