//! One condition, as Kubernetes has them.

use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

/// The longest message: Kubernetes allows 32 kB, people read less.
const MAX_MESSAGE: usize = 2000;

/// What is said of one aspect of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::controller) struct Condition {
    pub(in crate::controller) kind: &'static str,
    pub(in crate::controller) holds: bool,
    pub(in crate::controller) reason: &'static str,
    pub(in crate::controller) message: String,
}

impl Condition {
    /// It holds.
    pub(in crate::controller) fn holds(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: true, reason, message: message.into() }
    }

    /// It does not.
    pub(in crate::controller) fn fails(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, holds: false, reason, message: message.into() }
    }

    /// As JSON, at `now` unless `before` says the same: then since when it did.
    fn render(&self, object: &DynamicObject, before: Option<&Value>, now: Timestamp) -> Value {
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

/// These conditions in the place of those of the same types in `status`, and those of others as they are. One that says
/// what it said stays as it stands, so that nothing is written then.
pub(in crate::controller) fn rendered(
    object: &DynamicObject,
    status: &Value,
    conditions: Vec<Condition>,
    now: Timestamp,
) -> Vec<Value> {
    let known = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |known: &Value| conditions.iter().any(|condition| known["type"] == condition.kind);
    let others = known.iter().filter(|known| !is_ours(known)).cloned();
    let ours = conditions.iter().map(|condition| {
        let before = known.iter().find(|known| known["type"] == condition.kind);
        let new = condition.render(object, before, now);
        before.filter(|before| is_same(before, &new)).cloned().unwrap_or(new)
    });
    others.chain(ours).collect()
}

/// Whether two conditions say the same; Istio writes generations as strings.
fn is_same(a: &Value, b: &Value) -> bool {
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
