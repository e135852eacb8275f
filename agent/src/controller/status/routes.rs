//! The status of the routes of Gateway API that have a Service or ServiceEntry as parent: what waypoints make of them
//! ([`Snapshot::route_statuses`](culvert_core::mesh::Snapshot::route_statuses)), and whether there is one that would.

use culvert_api::Kind;
use culvert_core::policy::PolicyTarget;
use culvert_core::route::gateway_api::{self, ParentRef, ParentStatus};
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::condition::{Condition, rendered};
use super::{Key, View};
use crate::controller::waypoints::CONTROLLER;

/// By which entries were known before they had Istio's name.
const FORMERLY: &str = "culvert.dev/mesh-controller";
/// Whether a waypoint applies the route, as Istio says it.
const WAYPOINTS: &str = "ResolvedWaypoints";

/// The whole status: the entries of this controller in the place of those before, and those of others as they are.
/// None for a route about which there is nothing to say, now or before.
pub(super) fn status(key: &Key, object: &DynamicObject, view: &View<'_>, now: Timestamp) -> Option<Value> {
    let known = object.data["status"]["parents"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |entry: &Value| entry["controllerName"] == CONTROLLER || entry["controllerName"] == FORMERLY;
    let reference = key.reference();
    let parents = view.routes.get(&reference).copied().unwrap_or_default();
    let ours = parents.iter().map(|parent| {
        let written = render(&parent.parent);
        let is_same = |entry: &&Value| entry["controllerName"] == CONTROLLER && entry["parentRef"] == written;
        let before = known.iter().find(is_same).unwrap_or(&Value::Null);
        let conditions = rendered(object, before, conditions(key, parent, view), now);
        json!({"parentRef": written, "controllerName": CONTROLLER, "conditions": conditions})
    });
    if parents.is_empty() && !known.iter().any(is_ours) {
        return None;
    }
    // A parent that a route does not name any more is not spoken of; Gateways are not this controller's parents here.
    let is_service = |entry: &Value| matches!(entry["parentRef"]["kind"].as_str(), Some("Service" | "ServiceEntry"));
    let others = known.iter().filter(|entry| !(is_ours(entry) && is_service(entry))).cloned();
    let parents: Vec<Value> = others.chain(ours).collect();
    Some(json!({ "parents": parents }))
}

fn conditions(key: &Key, parent: &ParentStatus, view: &View<'_>) -> Vec<Condition> {
    let say = |kind, condition: &gateway_api::Condition, fine: &str| Condition {
        kind,
        holds: condition.status,
        reason: condition.reason,
        message: if condition.message.is_empty() { fine.to_owned() } else { condition.message.clone() },
    };
    let mut conditions = vec![
        say("Accepted", &parent.accepted, "the route is understood"),
        say("ResolvedRefs", &parent.resolved_refs, "everything that it names is there"),
    ];
    if parent.accepted.status {
        let name = parent.parent.name.as_str().into();
        let target = match Kind::ServiceEntry.as_str() == parent.parent.kind {
            true => PolicyTarget::ServiceEntry(name),
            false => PolicyTarget::Service(name),
        };
        conditions.push(match view.snapshot.binding(&key.namespace.as_str().into(), &target) {
            Ok(_) => Condition::holds(WAYPOINTS, WAYPOINTS, "a waypoint applies the route"),
            Err(problem) => Condition::fails(
                WAYPOINTS,
                "MissingUseWaypointLabel",
                format!("the route has no effect: {problem}; nodes do not apply routes, waypoints do"),
            ),
        });
    }
    conditions
}

/// As routes name parents.
fn render(parent: &ParentRef) -> Value {
    let mut written = json!({"group": parent.group, "kind": parent.kind, "name": parent.name});
    if let Some(namespace) = &parent.namespace {
        written["namespace"] = namespace.as_str().into();
    }
    if let Some(section) = &parent.section_name {
        written["sectionName"] = section.as_str().into();
    }
    if let Some(port) = parent.port {
        written["port"] = port.into();
    }
    written
}
