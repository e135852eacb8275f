//! The status of HTTPRoute and GRPCRoute that have a service as parent.
//!
//! Nodes do not read routes: a waypoint applies them, and whoever runs it says so. What is said here is only where a
//! route cannot have an effect: its parent is not there, or bound to no waypoint.

use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::condition::{Condition, is_same};
use super::{Key, View, policies};

/// By which the entries of this controller are known (Gateway API `controllerName`).
const CONTROLLER: &str = "culvert.dev/mesh-controller";
/// The most parents of a route, by the Gateway API.
const MAX_PARENTS: usize = 32;

/// The whole status: the entries of this controller in the place of those before, and those of others as they are.
/// None for a route about which there is nothing to say, now or before.
pub(super) fn status(key: &Key, object: &DynamicObject, view: &View<'_>, now: Timestamp) -> Option<Value> {
    let known = object.data["status"]["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER;
    let parents = object.data["spec"]["parentRefs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut ours = Vec::new();
    for parent in parents.iter().take(MAX_PARENTS) {
        let Some(message) = objection(&key.namespace, parent, view) else { continue };
        let condition = Condition { kind: "Accepted", holds: false, reason: message.0, message: message.1 };
        let before = known.iter().filter(is_ours).find(|entry| entry["parentRef"] == *parent);
        let before = before.map(|entry| &entry["conditions"][0]);
        let new = condition.render(object, before, now);
        let condition = before.filter(|before| is_same(before, &new)).cloned().unwrap_or(new);
        ours.push(json!({"parentRef": parent, "controllerName": CONTROLLER, "conditions": [condition]}));
    }
    if ours.is_empty() && !known.iter().any(|entry| is_ours(&entry)) {
        return None;
    }
    let parents: Vec<Value> = known.iter().filter(|entry| !is_ours(entry)).cloned().chain(ours).collect();
    Some(json!({"parents": parents}))
}

/// Why a route has no effect on `parent`; none where it has, or where that is for others to say.
fn objection(namespace: &str, parent: &Value, view: &View<'_>) -> Option<(&'static str, String)> {
    let text = |field: &str| parent[field].as_str();
    let kind = (text("group").unwrap_or("gateway.networking.k8s.io"), text("kind").unwrap_or("Gateway"));
    if !matches!(kind, ("" | "core", "Service")) {
        return None;
    }
    let (namespace, name) = (text("namespace").unwrap_or(namespace), text("name").unwrap_or_default());
    let Some(service) = policies::service(view, namespace, name) else {
        return Some(("NoMatchingParent", format!("Service {namespace}/{name} is not there")));
    };
    policies::waypoint(view, service).err().map(|(_, message)| {
        ("NoMatchingParent", format!("the route has no effect: {message}; nodes do not apply routes, waypoints do"))
    })
}
