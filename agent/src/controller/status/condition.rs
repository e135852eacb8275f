//! One condition, as Kubernetes has them.

use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

/// The longest message: Kubernetes allows 32 kB, people read less.
const MAX_MESSAGE: usize = 2000;

/// What is said of one aspect of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Condition {
    /// As JSON, at `now` unless `before` says the same: then since when it did.
    pub(super) fn render(&self, object: &DynamicObject, before: Option<&Value>, now: Timestamp) -> Value {
        let status = if self.holds { "True" } else { "False" };
        let since =
            before.filter(|known| known["status"] == status).and_then(|known| known["lastTransitionTime"].as_str());
        let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
        json!({
            "type": self.kind,
            "status": status,
            "reason": self.reason,
            "message": shorten(&self.message),
            "observedGeneration": object.metadata.generation.unwrap_or_default(),
            "lastTransitionTime": since.map_or_else(|| seconds.to_string(), str::to_owned),
        })
    }
}

/// Whether two conditions say the same; Istio writes generations as strings.
pub(super) fn is_same(a: &Value, b: &Value) -> bool {
    let number = |value: &Value| value.as_i64().or_else(|| value.as_str()?.parse().ok());
    ["type", "status", "reason", "message"].iter().all(|field| a[*field] == b[*field])
        && number(&a["observedGeneration"]) == number(&b["observedGeneration"])
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
