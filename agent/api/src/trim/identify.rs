//! Which object it is that cannot be read: too deep, a number that is none, cut off at its length. As much of the JSON is
//! looked at as it takes to find the name.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};

/// The metadata that tells an object from others (`name`, `namespace`, `uid`), as far as it can be told from the JSON
/// of one, which need not be whole.
pub fn identify(json: &[u8]) -> Value {
    identified(json, Level::Object).1
}

/// The type of a watch event (`ADDED`), and the same of its object.
pub fn identify_event(json: &[u8]) -> (Option<String>, Value) {
    identified(json, Level::Event)
}

fn identified(json: &[u8], level: Level) -> (Option<String>, Value) {
    let mut seen = Seen::default();
    // What was seen before the place where it cannot be read is what counts.
    let _ = Search { level, seen: &mut seen }.deserialize(&mut serde_json::Deserializer::from_slice(json));
    (seen.event, json!({ "metadata": seen.metadata }))
}

#[derive(Default)]
struct Seen {
    event: Option<String>,
    metadata: Map<String, Value>,
}

#[derive(Clone, Copy)]
enum Level {
    Event,
    Object,
    Metadata,
}

struct Search<'a> {
    level: Level,
    seen: &'a mut Seen,
}

impl<'de> DeserializeSeed<'de> for Search<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Search<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        while let Some(key) = access.next_key::<String>()? {
            match (self.level, key.as_str()) {
                (Level::Event, "object") => {
                    access.next_value_seed(Search { level: Level::Object, seen: &mut *self.seen })?;
                }
                (Level::Object, "metadata") => {
                    access.next_value_seed(Search { level: Level::Metadata, seen: &mut *self.seen })?;
                }
                (Level::Event, "type") => self.seen.event = Some(access.next_value()?),
                (Level::Metadata, "name" | "namespace" | "uid") => {
                    let text = access.next_value::<String>()?;
                    self.seen.metadata.insert(key, text.into());
                }
                // Skipped without recursion, however deep it is.
                _ => {
                    access.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_known_by_its_metadata_whatever_else_it_holds() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let expected = json!({ "metadata": { "name": "p", "namespace": "a", "uid": "u" } });
        let metadata = r#"{"annotations":{"x":"\ud800"},"name":"p","namespace":"a","uid":"u"}"#;
        for rest in [deep.as_str(), "1e999", "[1,2", "nonsense"] {
            let object = format!(r#"{{"kind":"P","metadata":{metadata},"spec":{rest}}}"#);
            assert_eq!(identify(object.as_bytes()), expected, "{rest}");
            let event = format!(r#"{{"type":"DELETED","object":{object}}}"#);
            assert_eq!(identify_event(event.as_bytes()), (Some("DELETED".to_owned()), expected.clone()), "{rest}");
        }
        let behind = format!(r#"{{"spec":{deep},"metadata":{metadata}}}"#);
        assert_eq!(identify(behind.as_bytes()), expected);
    }

    #[test]
    fn what_has_no_name_is_nobody() {
        for bad in ["", "7", "[]", "{}", r#"{"metadata":7}"#, r#"{"metadata":{"name":7}}"#, r#"{"spec":{"#] {
            assert_eq!(identify(bad.as_bytes()), json!({ "metadata": {} }), "{bad}");
            assert_eq!(identify_event(bad.as_bytes()), (None, json!({ "metadata": {} })), "{bad}");
        }
    }
}
