//! What is proven of the statuses of Gateways.

use culvert_core::workload::NamespacedName;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::config::WaypointDefaults;
use crate::controller::follow::Seen;
use crate::controller::waypoints::objects::{CONTROLLER, Settings};
use crate::controller::waypoints::state::{Act, Watched};

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn gateway(spec: Value, status: &Value) -> DynamicObject {
    let mut gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "wp", "namespace": "shop", "uid": "u1", "generation": 3, "resourceVersion": "7"},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
        "status": status,
    });
    for (field, value) in spec.as_object().unwrap() {
        gateway["spec"][field] = value.clone();
    }
    object(gateway)
}

fn see(state: &mut State, watched: Watched, object: DynamicObject) {
    state.take(Seen::Applied(watched, "v1".to_owned(), Box::new(object)));
    // What is due says what is known.
    state.due(Instant::now());
}

fn started() -> State {
    let mut state = State::new(Settings {
        image: "i".to_owned(),
        pull_policy: None,
        pull_secrets: Vec::new(),
        ca_address: "ca:1".to_owned(),
        defaults: WaypointDefaults::default(),
    });
    state.set_root_namespace(&"istio-system".into());
    let parts = Part::ALL.map(Watched::Part);
    for watched in [Watched::Gateways, Watched::Class, Watched::Defaults, Watched::Binding].into_iter().chain(parts) {
        state.take(Seen::Listing(watched.clone(), Some("v1".to_owned())));
        state.take(Seen::Listed(watched));
    }
    let class = json!({
        "metadata": {"name": "istio-waypoint", "generation": 1},
        "spec": {"controllerName": CONTROLLER},
    });
    see(&mut state, Watched::Class, object(class));
    state
}

/// What is due of the Gateway.
fn status(state: &State) -> Option<Value> {
    let mut due = due(state, Timestamp::UNIX_EPOCH).into_iter();
    due.find(|due| due.gateway == Some(NamespacedName::new("shop", "wp"))).map(|due| due.patch)
}

fn says(patch: &Value, kind: &str) -> (bool, String, String) {
    let conditions = patch["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == kind).unwrap_or_else(|| panic!("{patch}"));
    assert_eq!(found["observedGeneration"], 3);
    let text = |field: &str| found[field].as_str().unwrap().to_owned();
    (found["status"] == "True", text("reason"), text("message"))
}

/// What the API server makes of it.
fn apply(state: &mut State, part: Part, more: Value) {
    let acts = state.due(Instant::now());
    let act = acts.into_iter().find(|act| matches!(act, Act::Apply { part: known, .. } if *known == part)).unwrap();
    let Act::Apply { object: mut answer, .. } = act.clone() else { unreachable!() };
    answer["metadata"]["uid"] = "x".into();
    crate::controller::waypoints::merge::merge(&mut answer, &more);
    state.done(&act, Ok(Some(object(answer))), Instant::now());
}

#[test]
fn a_waypoint_is_programmed_once_it_has_an_address_and_a_pod() {
    let mut state = started();
    see(&mut state, Watched::Gateways, gateway(json!({}), &Value::Null));
    let patch = status(&state).unwrap();
    assert_eq!(patch["metadata"]["resourceVersion"], "7", "refused when the Gateway has changed meanwhile");
    assert!(says(&patch, "Accepted").0);
    assert_eq!(says(&patch, "Programmed").1, "AddressNotAssigned");
    apply(&mut state, Part::Service, json!({"spec": {"clusterIPs": ["10.96.0.7", "fd00::7"]}}));
    assert_eq!(says(&status(&state).unwrap(), "Programmed").1, "Pending");
    apply(&mut state, Part::Deployment, json!({"status": {"availableReplicas": 1}}));
    let patch = status(&state).unwrap();
    assert!(says(&patch, "Programmed").0, "{patch}");
    let addresses = ["10.96.0.7", "fd00::7"].map(|ip| json!({"type": "IPAddress", "value": ip}));
    assert_eq!(patch["status"]["addresses"], json!(addresses));
    let listener = &patch["status"]["listeners"][0];
    assert_eq!((&listener["name"], &listener["attachedRoutes"]), (&json!("mesh"), &json!(0)));
    assert!(
        listener["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .all(|c| (c["status"] == "True") != (c["type"] == "Conflicted"))
    );

    // It comes back by the watch, and says what it should.
    see(&mut state, Watched::Gateways, gateway(json!({}), &patch["status"]));
    assert_eq!(status(&state), None);
}

#[test]
fn what_cannot_be_made_is_told() {
    let mut state = started();
    see(&mut state, Watched::Gateways, gateway(json!({}), &Value::Null));
    let act = state.due(Instant::now()).pop().unwrap();
    state.done(&act, Err("Deployment shop/wp is there and belongs to somebody else".to_owned()), Instant::now());
    let (holds, reason, message) = says(&status(&state).unwrap(), "Programmed");
    assert!(!holds && reason == "Invalid" && message.contains("belongs to somebody else"), "{reason}: {message}");
}

#[test]
fn bad_parameters_and_bad_listeners_are_not_accepted() {
    let mut state = started();
    let secret = json!({"infrastructure": {"parametersRef": {"group": "", "kind": "Secret", "name": "p"}}});
    see(&mut state, Watched::Gateways, gateway(secret, &Value::Null));
    assert!(state.due(Instant::now()).iter().all(|act| !matches!(act, Act::Apply { .. })));
    let (holds, reason, message) = says(&status(&state).unwrap(), "Accepted");
    assert!(!holds && reason == "InvalidParameters" && message.contains("name a ConfigMap"), "{reason}: {message}");

    // Nothing is said before the parameters have been looked for.
    let named = json!({"infrastructure": {"parametersRef": {"group": "", "kind": "ConfigMap", "name": "p"}}});
    see(&mut state, Watched::Gateways, gateway(named, &Value::Null));
    assert_eq!(status(&state), None);

    let http = json!({"listeners": [{"name": "web", "port": 80, "protocol": "HTTP"}]});
    see(&mut state, Watched::Gateways, gateway(http, &Value::Null));
    let patch = status(&state).unwrap();
    assert_eq!(says(&patch, "Accepted").1, "ListenersNotValid");
    assert_eq!(patch["status"]["listeners"][0]["conditions"][0]["reason"], "UnsupportedProtocol");
}

#[test]
fn the_class_is_accepted_once_and_not_where_it_is_somebody_elses() {
    let mut state = started();
    let patch = due(&state, Timestamp::UNIX_EPOCH).remove(0).patch;
    assert_eq!(patch["status"]["conditions"][0]["type"], "Accepted");
    let class = |controller: &str, status: &Value| {
        let metadata = json!({"name": "istio-waypoint", "generation": 1});
        object(json!({"metadata": metadata, "spec": {"controllerName": controller}, "status": status}))
    };
    see(&mut state, Watched::Class, class(CONTROLLER, &patch["status"]));
    assert!(due(&state, Timestamp::UNIX_EPOCH).is_empty());
    see(&mut state, Watched::Class, class("example.org/other", &Value::Null));
    see(&mut state, Watched::Gateways, gateway(json!({}), &Value::Null));
    assert!(due(&state, Timestamp::UNIX_EPOCH).is_empty());
}

#[test]
fn a_gateway_that_others_run_has_the_addresses_that_it_names() {
    let mut state = started();
    let address = json!({"type": "Hostname", "value": "wp.other.svc"});
    see(&mut state, Watched::Gateways, gateway(json!({"addresses": [address]}), &Value::Null));
    let patch = status(&state).unwrap();
    assert_eq!(patch["status"]["addresses"], json!([address]));
    assert!(says(&patch, "Programmed").0 && says(&patch, "Accepted").2.contains("run by others"));
}
