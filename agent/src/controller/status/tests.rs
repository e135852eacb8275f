//! What is proven of statuses: what they say, and when they are written.

use culvert_api::Kind;
use serde_json::{Value, json};

use super::*;

/// A policy or route as the API server has it.
fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn policy(name: &str, spec: Value, status: Value) -> DynamicObject {
    object(json!({
        "metadata": {"name": name, "namespace": "shop", "generation": 3, "resourceVersion": "7"},
        "spec": spec,
        "status": status,
    }))
}

fn started() -> Statuses {
    let mut statuses = Statuses::default();
    statuses.follow_options(Arc::new(MeshOptions::default()));
    for watched in Watched::ALL {
        statuses.take(Seen::Listing(watched, None));
        statuses.take(Seen::Listed(watched));
    }
    assert!(statuses.due().is_empty());
    statuses
}

fn apply(statuses: &mut Statuses, watched: Watched, object: DynamicObject) {
    let version = format!("{}/v1", watched.resource().group);
    statuses.take(Seen::Applied(watched, version, Box::new(object)));
}

/// The one status that is due, beside those of Services.
fn one(statuses: &mut Statuses) -> Value {
    let mut due = statuses.due();
    due.retain(|(key, _)| key.watched != Watched::SERVICE);
    assert_eq!(due.len(), 1, "{due:?}");
    due.into_iter().next().unwrap().1
}

fn says(patch: &Value, kind: &str, status: &str, reason: &str) -> String {
    let conditions = patch["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == kind).unwrap_or_else(|| panic!("{patch}"));
    assert_eq!((found["status"].as_str(), found["reason"].as_str()), (Some(status), Some(reason)), "{found}");
    assert_eq!(found["observedGeneration"], 3);
    found["message"].as_str().unwrap().to_owned()
}

const POLICY: Watched = Watched::AUTHORIZATION_POLICY;
const GATEWAY: Watched = Watched::of(Kind::Gateway);
const HTTP_ROUTE: Watched = Watched::of(Kind::HTTPRoute);

#[test]
fn a_policy_that_is_enforced_as_it_is_written_is_accepted_once() {
    let mut statuses = started();
    let spec = json!({"rules": [{"from": [{"source": {"namespaces": ["web"]}}]}]});
    apply(&mut statuses, POLICY, policy("a", spec.clone(), Value::Null));
    let patch = one(&mut statuses);
    says(&patch, "ZtunnelAccepted", "True", "Accepted");
    assert_eq!(patch["metadata"]["resourceVersion"], "7", "refused when the object has changed meanwhile");
    assert_eq!(patch["status"]["observedGeneration"], 3);
    // It comes back by the watch, and says what it should.
    apply(&mut statuses, POLICY, policy("a", spec, patch["status"].clone()));
    assert!(statuses.due().is_empty());
}

#[test]
fn what_is_not_supported_is_told_with_the_field() {
    for (spec, status, word) in [
        (json!({"action": "CUSTOM", "rules": [{}]}), "False", "CUSTOM"),
        (json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}), "True", "methods"),
        (
            json!({"rules": [{"from": [{"source": {"principal": ["x"]}}]}]}),
            "True",
            "spec.rules[0].from[0].source.principal",
        ),
        (json!({"rules": [{"from": [{"source": {"ipBlocks": ["no ip"]}}]}]}), "True", "ipBlocks[0]"),
    ] {
        let mut statuses = started();
        apply(&mut statuses, POLICY, policy("a", spec, Value::Null));
        let patch = one(&mut statuses);
        let message = says(&patch, "ZtunnelAccepted", status, "UnsupportedValue");
        assert!(message.contains(word), "{word}: {message}");
        assert!(!patch["status"]["validationMessages"].as_array().unwrap().is_empty());
    }
}

#[test]
fn what_cannot_be_read_at_all_is_invalid() {
    let mut statuses = started();
    apply(&mut statuses, POLICY, policy("a", json!({"rules": "all"}), Value::Null));
    let message = says(&one(&mut statuses), "ZtunnelAccepted", "False", "Invalid");
    assert!(message.contains("spec.rules"), "{message}");
}

#[test]
fn conditions_of_others_and_times_that_still_hold_stay() {
    let mut statuses = started();
    let before = json!({
        "conditions": [
            {"type": "Other", "status": "True"},
            {"type": "ZtunnelAccepted", "status": "True", "reason": "Accepted", "message": "attached to ztunnel",
             "observedGeneration": "2", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        ],
        "observedGeneration": "3",
    });
    apply(&mut statuses, POLICY, policy("a", json!({"rules": [{}]}), before));
    let patch = one(&mut statuses);
    assert_eq!(patch["status"]["conditions"][0], json!({"type": "Other", "status": "True"}));
    assert_eq!(patch["status"]["conditions"][1]["lastTransitionTime"], "2020-01-01T00:00:00Z");
    assert_eq!(patch["status"]["observedGeneration"], "3", "in Istio's form, where Istio wrote it");
}

fn service(statuses: &mut Statuses, labels: Value) {
    let service = json!({
        "metadata": {"name": "cart", "namespace": "shop", "labels": labels},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]},
    });
    statuses.take(Seen::Applied(Watched::SERVICE, "v1".to_owned(), Box::new(object(service))));
}

fn waypoint(statuses: &mut Statuses) {
    let gateway = json!({
        "metadata": {"name": "wp", "namespace": "shop"},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    });
    let version = "gateway.networking.k8s.io/v1".to_owned();
    statuses.take(Seen::Applied(GATEWAY, version, Box::new(object(gateway))));
}

#[test]
fn a_policy_for_a_waypoint_follows_its_target() {
    let mut statuses = started();
    let targeted =
        |status| policy("a", json!({"targetRefs": [{"kind": "Service", "name": "cart"}], "rules": [{}]}), status);
    apply(&mut statuses, POLICY, targeted(Value::Null));
    let patch = one(&mut statuses);
    says(&patch, "WaypointAccepted", "False", "TargetNotFound");
    assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1, "nodes have no say in it");
    apply(&mut statuses, POLICY, targeted(patch["status"].clone()));
    assert!(statuses.due().is_empty());

    service(&mut statuses, json!({}));
    let message = says(&one(&mut statuses), "WaypointAccepted", "False", "AncestorNotBound");
    assert!(message.contains("istio.io/use-waypoint"), "{message}");
    service(&mut statuses, json!({"istio.io/use-waypoint": "wp"}));
    let message = says(&one(&mut statuses), "WaypointAccepted", "False", "AncestorNotBound");
    assert!(message.contains("waypoint shop/wp") && message.contains("is not there"), "{message}");
    waypoint(&mut statuses);
    let message = says(&one(&mut statuses), "WaypointAccepted", "True", "Accepted");
    assert!(message.contains("waypoint shop/wp"), "{message}");
}

#[test]
fn a_route_is_told_what_its_parents_make_of_it_and_whether_a_waypoint_applies_it() {
    let mut statuses = started();
    let others = json!({"parentRef": {"name": "edge"}, "controllerName": "example.com/other", "conditions": []});
    // What an earlier version said, and Istio of a Gateway of its own.
    let former = json!({"parentRef": {"group": "", "kind": "Service", "name": "old"}, "controllerName": "culvert.dev/mesh-controller"});
    let istios =
        json!({"parentRef": {"kind": "Gateway", "name": "edge"}, "controllerName": "istio.io/mesh-controller"});
    let parent = json!({"group": "", "kind": "Service", "name": "cart", "port": 80});
    let route = |status: Value| {
        object(json!({
            "metadata": {"name": "r", "namespace": "shop", "generation": 3, "resourceVersion": "7"},
            "spec": {
                "parentRefs": [{"name": "edge"}, parent.clone()],
                "rules": [{"backendRefs": [{"name": "nobody", "port": 80}]}],
            },
            "status": status,
        }))
    };
    let take = |statuses: &mut Statuses, status: Value| {
        let version = "gateway.networking.k8s.io/v1".to_owned();
        statuses.take(Seen::Applied(HTTP_ROUTE, version, Box::new(route(status))));
    };
    let condition = |patch: &Value, kind: &str| -> Value {
        let parents = patch["status"]["parents"].as_array().unwrap();
        assert_eq!(parents[..2], [others.clone(), istios.clone()], "those of others stay");
        assert_eq!(parents.len(), 3, "and former ones go");
        assert_eq!(parents[2]["controllerName"], "istio.io/mesh-controller");
        assert_eq!(parents[2]["parentRef"], parent);
        let conditions = parents[2]["conditions"].as_array().unwrap();
        conditions.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
    };
    take(&mut statuses, json!({"parents": [others, former, istios]}));
    let patch = one(&mut statuses);
    let accepted = condition(&patch, "Accepted");
    assert_eq!((&accepted["status"], &accepted["reason"]), (&json!("False"), &json!("NoMatchingParent")));
    take(&mut statuses, patch["status"].clone());
    assert!(statuses.due().is_empty());

    service(&mut statuses, json!({"istio.io/use-waypoint": "wp"}));
    let patch = one(&mut statuses);
    assert_eq!(condition(&patch, "Accepted")["status"], "True");
    assert_eq!(condition(&patch, "ResolvedRefs")["reason"], "BackendNotFound");
    let waypoints = condition(&patch, "ResolvedWaypoints");
    assert_eq!(waypoints["status"], "False");
    assert!(waypoints["message"].as_str().unwrap().contains("waypoint shop/wp"), "{waypoints}");
    take(&mut statuses, patch["status"].clone());
    waypoint(&mut statuses);
    assert_eq!(condition(&one(&mut statuses), "ResolvedWaypoints")["status"], "True");
}

#[test]
fn a_service_is_told_which_waypoint_it_is_bound_to_and_nothing_where_it_is_to_have_none() {
    let mut statuses = started();
    let bound = |statuses: &mut Statuses| -> Option<Value> {
        let due = statuses.due();
        let (_, patch) = due.into_iter().find(|(key, _)| key.watched == Watched::SERVICE)?;
        Some(patch["status"]["conditions"].clone())
    };
    service(&mut statuses, json!({}));
    assert_eq!(bound(&mut statuses), None);
    service(&mut statuses, json!({"istio.io/use-waypoint": "wp"}));
    let missing = bound(&mut statuses).unwrap();
    assert_eq!(missing[0]["type"], "istio.io/WaypointBound");
    assert_eq!((&missing[0]["status"], &missing[0]["reason"]), (&json!("False"), &json!("WaypointIsNotReady")));
    waypoint(&mut statuses);
    let found = bound(&mut statuses).unwrap();
    assert_eq!((&found[0]["status"], &found[0]["reason"]), (&json!("True"), &json!("WaypointAccepted")));
    service(&mut statuses, json!({"istio.io/use-waypoint": "wp", "istio.io/use-waypoint-canary": "wp"}));
    assert_eq!(bound(&mut statuses).unwrap()[0]["reason"], "CanarySameAsPrimary");

    // The label goes, and with it what was said; what others say stays.
    let conditions = json!([{"type": "Other", "status": "True"}, found[0]]);
    let service = json!({
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 80}]},
        "status": {"conditions": conditions},
    });
    statuses.take(Seen::Applied(Watched::SERVICE, "v1".to_owned(), Box::new(object(service))));
    assert_eq!(bound(&mut statuses).unwrap(), json!([{"type": "Other", "status": "True"}]));
}

#[test]
fn rules_for_tokens_are_accepted_by_the_waypoint_of_their_target_and_by_no_node() {
    let mut statuses = started();
    let watched = Watched::REQUEST_AUTHENTICATION;
    apply(&mut statuses, watched, policy("a", json!({"jwtRules": [{"issuer": "https://a.example"}]}), Value::Null));
    let message = says(&one(&mut statuses), "ZtunnelAccepted", "False", "UnsupportedValue");
    assert!(message.contains("nodes do not read tokens"), "{message}");
    let spec = json!({"targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "wp"}],
                      "jwtRules": [{"issuer": "https://a.example"}]});
    apply(&mut statuses, watched, policy("a", spec.clone(), one_of("ZtunnelAccepted")));
    let patch = one(&mut statuses);
    says(&patch, "WaypointAccepted", "False", "TargetNotFound");
    assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1, "nodes have no say in it any more");
    waypoint(&mut statuses);
    says(&one(&mut statuses), "WaypointAccepted", "True", "Accepted");
}

/// A status with one condition.
fn one_of(kind: &str) -> Value {
    json!({"conditions": [{"type": kind, "status": "False", "reason": "UnsupportedValue", "message": "x"}]})
}

#[test]
fn what_a_later_list_does_not_show_is_forgotten() {
    let mut statuses = started();
    waypoint(&mut statuses);
    service(&mut statuses, json!({"istio.io/use-waypoint": "wp"}));
    let targeted =
        policy("a", json!({"targetRefs": [{"kind": "Service", "name": "cart"}], "rules": [{}]}), Value::Null);
    apply(&mut statuses, POLICY, targeted);
    says(&one(&mut statuses), "WaypointAccepted", "True", "Accepted");
    statuses.take(Seen::Listing(Watched::SERVICE, None));
    statuses.take(Seen::Listed(Watched::SERVICE));
    says(&one(&mut statuses), "WaypointAccepted", "False", "TargetNotFound");
    statuses.take(Seen::Listing(POLICY, None));
    statuses.take(Seen::Listed(POLICY));
    assert!(statuses.subjects.keys().all(|key| key.watched != POLICY));
}

#[test]
fn nothing_is_written_before_everything_is_known() {
    let mut statuses = Statuses::default();
    statuses.follow_options(Arc::new(MeshOptions::default()));
    apply(&mut statuses, POLICY, policy("a", json!({"rules": [{}]}), Value::Null));
    assert!(statuses.due().is_empty());
}
