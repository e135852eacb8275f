//! What is proven of what is due, and when.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::config::WaypointDefaults;

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn settings() -> Settings {
    Settings {
        image: "i".to_owned(),
        pull_policy: None,
        pull_secrets: Vec::new(),
        ca_address: "ca:1".to_owned(),
        defaults: WaypointDefaults::default(),
    }
}

fn gateway(uid: &str, spec: Value) -> DynamicObject {
    let mut gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "wp", "namespace": "shop", "uid": uid, "generation": 1},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    });
    for (field, value) in spec.as_object().unwrap() {
        gateway["spec"][field] = value.clone();
    }
    object(gateway)
}

fn name() -> NamespacedName {
    NamespacedName::new("shop", "wp")
}

fn list(state: &mut State, watched: Watched, version: &str) {
    state.take(Seen::Listing(watched.clone(), Some(version.to_owned())));
    state.take(Seen::Listed(watched));
}

/// Everything is listed, and there is nothing but the class.
fn started() -> State {
    let mut state = State::new(settings());
    state.set_root_namespace(&"istio-system".into());
    for watched in [Watched::Gateways, Watched::Class, Watched::Defaults, Watched::Binding] {
        list(&mut state, watched, "v1");
    }
    for (part, version) in Part::ALL.into_iter().zip(["v1", "v1", "apps/v1", "autoscaling/v2", "policy/v1"]) {
        list(&mut state, Watched::Part(part), version);
    }
    let class = json!({"metadata": {"name": "istio-waypoint"}, "spec": {"controllerName": CONTROLLER}});
    state.take(Seen::Applied(Watched::Class, "v1".to_owned(), Box::new(object(class))));
    let binding = json!({"metadata": {"name": "culvert-waypoint"}});
    state.take(Seen::Applied(Watched::Binding, "v1".to_owned(), Box::new(object(binding))));
    state
}

fn see(state: &mut State, watched: Watched, object: DynamicObject) {
    state.take(Seen::Applied(watched, "v1".to_owned(), Box::new(object)));
}

fn told(acts: &[Act]) -> Vec<String> {
    let tell = |act: &Act| match act {
        Act::MakeClass => "class".to_owned(),
        Act::Bind(accounts) => format!("bind {}", accounts.len()),
        Act::Apply { part, .. } => format!("apply {part:?}"),
        Act::Delete { part, .. } => format!("delete {part:?}"),
    };
    acts.iter().map(tell).collect()
}

const ALL: [&str; 5] =
    ["bind 1", "apply ServiceAccount", "apply Service", "apply Deployment", "apply PodDisruptionBudget"];

/// As the API server answers to server-side apply.
fn answer(act: &Act) -> Option<DynamicObject> {
    match act {
        Act::Apply { object: wanted, part, .. } => {
            let mut answer = wanted.clone();
            answer["metadata"]["uid"] = format!("{part:?}").into();
            answer["metadata"]["resourceVersion"] = "10".into();
            Some(object(answer))
        }
        _ => None,
    }
}

fn perform(state: &mut State, now: Instant) -> Vec<String> {
    let acts = state.due(now);
    for act in &acts {
        state.done(act, Ok(answer(act)), now);
    }
    told(&acts)
}

#[test]
fn nothing_is_written_before_everything_is_known_and_the_class_comes_first() {
    let mut state = State::new(settings());
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    assert!(state.due(Instant::now()).is_empty());
    let mut state = started();
    state.take(Seen::Listing(Watched::Class, Some("v1".to_owned())));
    state.take(Seen::Listed(Watched::Class));
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    assert_eq!(told(&state.due(Instant::now())), ["class"]);
    let class = json!({"metadata": {"name": "istio-waypoint"}, "spec": {"controllerName": CONTROLLER}});
    state.done(&Act::MakeClass, Ok(Some(object(class.clone()))), Instant::now());
    assert_eq!(told(&state.due(Instant::now())), ALL, "though the watch has not shown it yet");
    state.take(Seen::Deleted(Watched::Class, "v1".to_owned(), Box::new(object(class))));
    // Where Gateway API is not installed, there is none to make.
    state.take(Seen::Listing(Watched::Class, None));
    state.take(Seen::Listed(Watched::Class));
    assert!(state.due(Instant::now()).is_empty());
}

#[test]
fn a_class_of_somebody_elses_is_left_to_them() {
    let mut state = started();
    let class = json!({"metadata": {"name": "istio-waypoint"}, "spec": {"controllerName": "example.org/other"}});
    see(&mut state, Watched::Class, object(class));
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    assert!(state.due(Instant::now()).is_empty());
}

#[test]
fn what_was_applied_is_not_applied_again_by_this_leader_or_the_next() {
    let now = Instant::now();
    let mut state = started();
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    let acts = state.due(now);
    assert_eq!(told(&acts), ALL);
    acts.iter().for_each(|act| state.done(act, Ok(answer(act)), now));
    assert!(state.due(now).is_empty());
    // The watch shows what has been answered already.
    for act in &acts {
        let (Act::Apply { part, .. }, Some(object)) = (act, answer(act)) else { continue };
        see(&mut state, Watched::Part(*part), object);
    }
    assert!(state.due(now).is_empty());

    let mut next = started();
    see(&mut next, Watched::Gateways, gateway("u1", json!({})));
    for act in &acts {
        let (Act::Apply { part, .. }, Some(object)) = (act, answer(act)) else { continue };
        see(&mut next, Watched::Part(*part), object);
    }
    assert_eq!(told(&next.due(now)), ["bind 1"]);
}

#[test]
fn what_somebody_changes_is_repaired_ever_more_slowly_and_scaling_is_left_alone() {
    let now = Instant::now();
    let mut state = started();
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    let acts = state.due(now);
    acts.iter().for_each(|act| state.done(act, Ok(answer(act)), now));
    let deployment = acts.iter().find(|act| told(std::slice::from_ref(act)) == ["apply Deployment"]).unwrap();
    let changed = |version: u64, field: &str, value: Value| {
        let mut changed = serde_json::to_value(answer(deployment).unwrap()).unwrap();
        changed["metadata"]["resourceVersion"] = version.to_string().into();
        changed["spec"][field] = value;
        object(changed)
    };
    see(&mut state, Watched::Part(Part::Deployment), changed(11, "replicas", json!(4)));
    assert!(state.due(now).is_empty());
    // An old word that comes late is no change.
    see(&mut state, Watched::Part(Part::Deployment), changed(9, "paused", json!(true)));
    assert!(state.due(now).is_empty());
    see(&mut state, Watched::Part(Part::Deployment), changed(12, "paused", json!(true)));
    assert!(state.due(now).is_empty(), "a second is left to whoever is at it");
    assert_eq!(perform(&mut state, now + Duration::from_secs(1)), ["apply Deployment"]);
    see(&mut state, Watched::Part(Part::Deployment), changed(13, "paused", json!(true)));
    assert!(state.due(now + Duration::from_secs(2)).is_empty());
    assert_eq!(perform(&mut state, now + Duration::from_secs(3)), ["apply Deployment"]);
}

#[test]
fn parameters_are_waited_for_and_bad_ones_change_nothing() {
    let now = Instant::now();
    let named = json!({"infrastructure": {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "p"}}});
    let mut state = started();
    see(&mut state, Watched::Gateways, gateway("u1", named));
    let map = state.parameters().into_iter().next().unwrap();
    assert_eq!(map.to_string(), "shop/p");
    assert_eq!(perform(&mut state, now), ["bind 1"], "not read yet");
    let watched = Watched::Parameters(map);
    list(&mut state, watched.clone(), "v1");
    assert!(state.due(now).is_empty());
    assert!(state.gateways[&name()].bad_parameters.as_ref().unwrap().contains("ConfigMap shop/p"));
    let parameters =
        |key: &str, text: &str| object(json!({"metadata": {"name": "p", "namespace": "shop"}, "data": {key: text}}));
    see(&mut state, watched.clone(), parameters("horizontalPodAutoscaler", "spec: {maxReplicas: 3}"));
    assert_eq!(perform(&mut state, now).len(), 5);
    assert_eq!(state.gateways[&name()].bad_parameters, None);
    see(&mut state, watched.clone(), parameters("horizontalPodAutoscaler", "- 1"));
    assert!(state.due(now).is_empty());
    assert!(state.gateways[&name()].bad_parameters.is_some());
    // Nobody asks for an autoscaler any more.
    see(&mut state, watched, parameters("deployment", ""));
    assert_eq!(perform(&mut state, now), ["delete HorizontalPodAutoscaler"]);
}

#[test]
fn parameters_of_the_class_are_those_of_the_root_namespace_and_the_gateways_own_win() {
    let now = Instant::now();
    let mut state = started();
    let map = |namespace: &str, name: &str, replicas: u8| {
        let text = format!("spec: {{replicas: {replicas}}}");
        object(json!({"metadata": {"name": name, "namespace": namespace}, "data": {"deployment": text}}))
    };
    see(&mut state, Watched::Defaults, map("istio-system", "d", 2));
    see(&mut state, Watched::Defaults, map("elsewhere", "d", 7));
    let replicas = |state: &mut State| {
        let acts = state.due(now);
        let found = acts.iter().find_map(|act| match act {
            Act::Apply { part: Part::Deployment, object, .. } => Some(object["spec"]["replicas"].clone()),
            _ => None,
        });
        found.unwrap()
    };
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    assert_eq!(replicas(&mut state), 2);
    let named = json!({"infrastructure": {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "p"}}});
    see(&mut state, Watched::Gateways, gateway("u1", named));
    let watched = Watched::Parameters(state.parameters().into_iter().next().unwrap());
    list(&mut state, watched.clone(), "v1");
    see(&mut state, watched, map("shop", "p", 5));
    assert_eq!(replicas(&mut state), 5);
}

#[test]
fn a_failure_is_kept_for_the_status_and_tried_again_later() {
    let now = Instant::now();
    let mut state = started();
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    for act in state.due(now) {
        let result = if told(std::slice::from_ref(&act)) == ["apply Service"] {
            Err("taken".to_owned())
        } else {
            Ok(answer(&act))
        };
        state.done(&act, result, now);
    }
    assert_eq!(state.gateways[&name()].problems[&Part::Service], "taken");
    assert!(state.due(now).is_empty());
    assert_eq!(state.next_look(now), now + Duration::from_secs(1));
    assert_eq!(perform(&mut state, now + Duration::from_secs(1)), ["apply Service"]);
    assert!(state.gateways[&name()].problems.is_empty());
}

#[test]
fn objects_of_a_gateway_of_the_same_name_that_is_gone_are_not_taken_for_its_own() {
    let now = Instant::now();
    let mut state = started();
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    perform(&mut state, now);
    see(&mut state, Watched::Gateways, gateway("u2", json!({})));
    assert_eq!(told(&state.due(now)), &ALL[1..], "and the write finds them in the way until they are collected");
}

#[test]
fn what_is_run_by_others_or_going_is_left_alone() {
    let now = Instant::now();
    let mut state = started();
    let elsewhere = json!({"addresses": [{"type": "Hostname", "value": "other"}]});
    see(&mut state, Watched::Gateways, gateway("u1", elsewhere));
    assert!(state.due(now).is_empty());
    let mut going = gateway("u1", json!({}));
    going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    see(&mut state, Watched::Gateways, going);
    assert!(state.due(now).is_empty());
    see(&mut state, Watched::Gateways, gateway("u1", json!({"gatewayClassName": "istio"})));
    assert!(state.gateways.is_empty());
}

#[test]
fn whoever_is_no_waypoint_any_more_loses_the_role() {
    let now = Instant::now();
    let mut state = started();
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    perform(&mut state, now);
    state.take(Seen::Deleted(Watched::Gateways, "v1".to_owned(), Box::new(gateway("u1", json!({})))));
    assert_eq!(told(&state.due(now)), ["bind 0"]);
}

#[test]
fn a_binding_that_is_missing_is_noticed_once_there_is_a_waypoint() {
    let mut state = started();
    let binding = json!({"metadata": {"name": "culvert-waypoint"}});
    state.take(Seen::Deleted(Watched::Binding, "v1".to_owned(), Box::new(object(binding))));
    assert!(!state.lacks_binding());
    see(&mut state, Watched::Gateways, gateway("u1", json!({})));
    assert!(state.lacks_binding());
    assert_eq!(told(&state.due(Instant::now())), &ALL[1..], "it is the chart's to make");
}
