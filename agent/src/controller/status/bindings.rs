//! The condition `istio.io/WaypointBound` of Services and ServiceEntries that are to have a waypoint.

use culvert_api::Kind;
use culvert_api::names::label;
use culvert_core::policy::NotBound;
use culvert_core::service::Service;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::condition::{Condition, rendered};
use super::{Key, View};

/// The condition.
const BOUND: &str = "istio.io/WaypointBound";

/// The status: that condition beside those of others; none of its own for what is to have no waypoint. `None` where
/// there never was anything to say.
pub(super) fn status(key: &Key, object: &DynamicObject, view: &View<'_>, now: Timestamp) -> Option<Value> {
    let condition = service(key, view).and_then(|service| condition(service, object, view));
    let known = object.data["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let had = known.iter().any(|known| known["type"] == BOUND);
    match condition {
        Some(condition) => Some(json!({"conditions": rendered(object, &object.data["status"], vec![condition], now)})),
        None if had => {
            let others: Vec<_> = known.iter().filter(|known| known["type"] != BOUND).collect();
            Some(json!({ "conditions": others }))
        }
        None => None,
    }
}

/// What the mesh made of the object; the first, where it is of several hosts: they are bound by the same labels.
fn service<'a>(key: &Key, view: &'a View<'_>) -> Option<&'a Service> {
    if key.watched.kind() == Kind::Service {
        return super::policies::service(view, &key.namespace, &key.name);
    }
    view.entries.get(&(key.namespace.as_str(), key.name.as_str())).copied()
}

fn condition(service: &Service, object: &DynamicObject, view: &View<'_>) -> Option<Condition> {
    match view.snapshot.bound_to(service)? {
        Ok(waypoint) => {
            let message = format!("attached to waypoint {waypoint}");
            Some(match view.snapshot.canary_problem(service) {
                Some(problem) => Condition::holds(BOUND, problem.reason(), format!("{message} alone: {problem}")),
                None => Condition::holds(BOUND, "WaypointAccepted", message),
            })
        }
        Err(problem) => {
            let reason = match problem {
                NotBound::NotAllowed { .. } => "AttachmentDenied",
                // A namespace's waypoint may well be for workloads only: nobody has asked for it here.
                NotBound::NotServed { .. } if !object.labels().contains_key(label::USE_WAYPOINT) => return None,
                NotBound::NotServed { .. } => "UnsupportedTrafficType",
                NotBound::WaypointMissing { .. } | NotBound::NoTarget(_) | NotBound::NoWaypoint(_) => {
                    "WaypointIsNotReady"
                }
            };
            Some(Condition::fails(BOUND, reason, problem.to_string()))
        }
    }
}
