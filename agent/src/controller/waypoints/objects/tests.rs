//! What is proven of a waypoint's objects.

use culvert_api::yaml;

use super::*;
use crate::controller::waypoints::parameters;

fn gateway(more: &str) -> Gateway {
    let text = format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: wp, namespace: shop, uid: u1}}, \
         spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]{more}}}}}"
    );
    serde_json::from_value(yaml::value(&text).unwrap()).unwrap()
}

fn settings() -> Settings {
    Settings {
        image: "localhost/culvert:1".to_owned(),
        pull_policy: None,
        pull_secrets: Vec::new(),
        ca_address: "culvert-controller.culvert-system.svc:15012".to_owned(),
        defaults: WaypointDefaults::default(),
    }
}

fn versions() -> Versions {
    let version = |part| match part {
        Part::Deployment => "apps/v1",
        Part::HorizontalPodAutoscaler => "autoscaling/v2",
        Part::PodDisruptionBudget => "policy/v1",
        Part::Service | Part::ServiceAccount => "v1",
    };
    Part::ALL.map(|part| (part, version(part).to_owned())).into()
}

fn overlays(pairs: &[(&str, &str)]) -> Overlays {
    let data = pairs.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    parameters::read("shop/p", &data).unwrap()
}

fn made(gateway: &Gateway, settings: &Settings, parameters: &[(&str, &str)]) -> BTreeMap<Part, Value> {
    desired(gateway, settings, &[&overlays(parameters)], &versions())
}

#[test]
fn the_objects_of_a_gateway_are_those_of_the_golden_file() {
    let objects = made(&gateway(""), &settings(), &[]);
    let documents = objects.values().map(|object| serde_yaml::to_string(object).unwrap());
    insta::assert_snapshot!(documents.collect::<Vec<_>>().join("---\n"));
}

#[test]
fn everything_belongs_to_the_gateway_and_is_found_by_its_name() {
    let everything = [("horizontalPodAutoscaler", "{}"), ("podDisruptionBudget", "{}")];
    let objects = made(&gateway(""), &settings(), &everything);
    assert_eq!(objects.len(), 5);
    for object in objects.values() {
        let metadata = &object["metadata"];
        assert_eq!((&metadata["name"], &metadata["namespace"]), (&json!("wp"), &json!("shop")));
        assert_eq!(metadata["labels"]["gateway.networking.k8s.io/gateway-name"], "wp");
        assert_eq!(metadata["labels"]["gateway.istio.io/managed"], "istio.io-mesh-controller");
        assert_eq!(metadata["ownerReferences"][0]["uid"], "u1");
    }
}

#[test]
fn parameters_change_what_they_name_and_not_whose_it_is() {
    let deployment = "\
metadata: {name: other, ownerReferences: [], labels: {team: a, gateway.networking.k8s.io/gateway-name: other}}
spec:
  selector: {matchLabels: {x: 'y'}}
  template:
    metadata: {labels: {istio.io/dataplane-mode: ambient}}
    spec:
      containers:
      - {name: istio-proxy, resources: {limits: {cpu: 3}}, env: [{name: CULVERT_LOG_LEVEL, value: debug}]}
      - {name: side, image: s}
";
    let objects = made(&gateway(""), &settings(), &[("deployment", deployment), ("service", "spec: hello")]);
    let deployment = &objects[&Part::Deployment];
    assert_eq!(deployment["metadata"]["name"], "wp");
    assert_eq!(deployment["metadata"]["ownerReferences"][0]["uid"], "u1");
    assert_eq!(deployment["metadata"]["labels"]["team"], "a");
    assert_eq!(
        deployment["spec"]["selector"],
        json!({"matchLabels": {"gateway.networking.k8s.io/gateway-name": "wp"}})
    );
    let pod = &deployment["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["istio.io/dataplane-mode"], "none");
    assert_eq!(pod["spec"]["containers"][0]["resources"], json!({"limits": {"cpu": 3}}));
    assert_eq!(pod["spec"]["containers"][0]["image"], "localhost/culvert:1");
    assert_eq!(pod["spec"]["containers"][1]["name"], "side");
    // Nonsense is for the API server to refuse, and does no harm here.
    assert_eq!(objects[&Part::Service]["spec"], json!({"selector": {"gateway.networking.k8s.io/gateway-name": "wp"}}));
}

#[test]
fn a_budget_by_the_fewest_takes_the_place_of_one_by_the_most() {
    let objects = made(&gateway(""), &settings(), &[("podDisruptionBudget", "spec: {minAvailable: 2}")]);
    let spec = &objects[&Part::PodDisruptionBudget]["spec"];
    assert_eq!((&spec["minAvailable"], spec.get("maxUnavailable")), (&json!(2), None));
}

#[test]
fn nobody_scales_against_an_autoscaler() {
    let mut several = settings();
    several.defaults.replicas = 3;
    assert_eq!(made(&gateway(""), &several, &[])[&Part::Deployment]["spec"]["replicas"], 3);
    assert!(!made(&gateway(""), &settings(), &[]).contains_key(&Part::HorizontalPodAutoscaler));
    several.defaults.autoscaling.enabled = true;
    let scaled = made(&gateway(""), &several, &[("horizontalPodAutoscaler", "spec: {maxReplicas: 9}")]);
    assert_eq!(scaled[&Part::Deployment]["spec"].get("replicas"), None);
    assert_eq!(scaled[&Part::HorizontalPodAutoscaler]["spec"]["maxReplicas"], 9);
    assert_eq!(scaled[&Part::HorizontalPodAutoscaler]["spec"]["scaleTargetRef"]["name"], "wp");
}

#[test]
fn labels_come_from_the_infrastructure_or_else_from_the_gateway() {
    let wanted = gateway(", infrastructure: {labels: {a: b, istio.io/dataplane-mode: ambient}, annotations: {c: d}}");
    let objects = made(&wanted, &settings(), &[]);
    for object in objects.values() {
        assert_eq!(object["metadata"]["labels"]["a"], "b");
        assert_eq!(object["metadata"]["annotations"]["c"], "d");
    }
    let template = &objects[&Part::Deployment]["spec"]["template"]["metadata"];
    assert_eq!((&template["labels"]["a"], &template["annotations"]["c"]), (&json!("b"), &json!("d")));
    assert_eq!(template["labels"]["istio.io/dataplane-mode"], "none", "never captured itself");

    let mut plain = gateway("");
    let own = ["topology.istio.io/network", "istio.io/use-waypoint", "istio.io/waypoint-for"];
    plain.metadata.labels = Some(own.map(|key| (key.to_owned(), "x".to_owned())).into());
    let labels = &made(&plain, &settings(), &[])[&Part::Service]["metadata"]["labels"];
    assert_eq!(labels["topology.istio.io/network"], "x");
    assert!(labels.get("istio.io/use-waypoint").is_none() && labels.get("istio.io/waypoint-for").is_none());
}

#[test]
fn an_older_api_server_is_not_asked_for_what_it_does_not_know() {
    let mut without = versions();
    without.remove(&Part::PodDisruptionBudget);
    assert!(!desired(&gateway(""), &settings(), &[], &without).contains_key(&Part::PodDisruptionBudget));
}

#[test]
fn a_gateway_at_somebody_elses_address_is_not_run_here() {
    assert!(is_managed(&gateway("")));
    assert!(is_managed(&gateway(", addresses: [{value: 10.0.0.1}]")));
    assert!(!is_managed(&gateway(", addresses: [{type: Hostname, value: wp.shop}]")));
    assert!(!is_managed(&gateway(", addresses: [{value: 10.0.0.1}, {value: 10.0.0.2}]")));
}
