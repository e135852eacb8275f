//! `culvertctl waypoint` against a real API server. Nobody runs waypoints here: the controller's word is played.

use culvert_tests::kube::ControlPlane;
use serde_json::{Value, json};

use super::{Said, cluster, ctl};

const GROUP: &str = "gateway.networking.k8s.io";

fn world(namespace: &str) -> (&'static ControlPlane, impl Drop) {
    let (cluster, turn) = cluster();
    cluster.crd_without_schema(GROUP, "gateways", "Gateway").unwrap();
    cluster.namespace(namespace).unwrap();
    (cluster, turn)
}

fn run(cluster: &ControlPlane, arguments: &[&str]) -> Said {
    ctl(&cluster.kubeconfig(), &[&["waypoint"], arguments].concat())
}

fn gateway(cluster: &ControlPlane, namespace: &str, name: &str) -> Value {
    let path = format!("/apis/{GROUP}/v1/namespaces/{namespace}/gateways/{name}");
    let answer = cluster.get(&path).unwrap();
    if answer.status == 200 { answer.body } else { Value::Null }
}

/// What the controller would say.
fn programmed(cluster: &ControlPlane, namespace: &str, name: &str, status: &str, message: &str) {
    let generation = gateway(cluster, namespace, name)["metadata"]["generation"].clone();
    let condition = json!({
        "type": "Programmed", "status": status, "reason": "Played", "message": message,
        "observedGeneration": generation,
    });
    let path = format!("/apis/{GROUP}/v1/namespaces/{namespace}/gateways/{name}/status");
    let patch = json!({"status": {"conditions": [condition]}});
    cluster.request("PATCH", &path, Some(&patch)).unwrap().success().unwrap();
}

fn label(cluster: &ControlPlane, namespace: &str) -> Value {
    let found = cluster.get(&format!("/api/v1/namespaces/{namespace}")).unwrap().body;
    found["metadata"]["labels"]["istio.io/use-waypoint"].clone()
}

#[test]
fn a_waypoint_is_made_waited_for_listed_and_deleted() {
    let (cluster, _turn) = world("wp-life");
    let said = run(cluster, &["apply", "-n", "wp-life", "--for", "all", "--revision", "r1"]);
    assert!(said.code == 0 && said.out == "waypoint wp-life/waypoint applied\n", "{said}");
    let made = gateway(cluster, "wp-life", "waypoint");
    assert_eq!(made["spec"]["gatewayClassName"], "istio-waypoint");
    assert_eq!(made["spec"]["listeners"], json!([{"name": "mesh", "port": 15008, "protocol": "HBONE"}]));
    assert_eq!(made["metadata"]["labels"], json!({"istio.io/waypoint-for": "all", "istio.io/rev": "r1"}));

    // Nobody says that it is ready; then somebody says why not, and then that it is.
    let said = run(cluster, &["status", "-n", "wp-life"]);
    assert!(said.code == 2 && said.out.contains("nobody has said anything"), "{said}");
    let wait = ["apply", "-n", "wp-life", "--for", "all", "--revision", "r1", "--wait", "--timeout", "1"];
    let said = run(cluster, &[&wait[..], &["--enroll-namespace"]].concat());
    assert!(said.code == 1 && said.err.contains("not ready within 1 seconds: nobody has said"), "{said}");
    assert_eq!(label(cluster, "wp-life"), Value::Null, "whoever is bound to it now would be refused");
    programmed(cluster, "wp-life", "waypoint", "False", "no pod is ready yet");
    let said = run(cluster, &wait);
    assert!(said.code == 1 && said.err.contains("no pod is ready yet"), "{said}");
    programmed(cluster, "wp-life", "waypoint", "True", "takes connections");
    let said = run(cluster, &[&wait[..], &["--enroll-namespace"]].concat());
    assert!(said.code == 0 && said.out.contains("is ready") && said.out.contains("labelled"), "{said}");
    assert!(said.err.contains("istio.io/dataplane-mode=ambient"), "it is not in the mesh: {said}");
    assert_eq!(label(cluster, "wp-life"), "waypoint");
    let said = run(cluster, &["status", "-n", "wp-life", "waypoint"]);
    assert!(said.code == 0 && said.out.contains("takes connections"), "{said}");

    let said = run(cluster, &["list", "-A"]);
    let line = said.out.lines().find(|line| line.starts_with("wp-life")).unwrap_or_else(|| panic!("{said}"));
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["wp-life", "waypoint", "r1", "all", "True"]);
    let said = run(cluster, &["list", "-n", "wp-life", "-o", "json"]);
    let listed: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&listed[0]["trafficType"], &listed[0]["programmed"]), (&json!("all"), &json!("True")));

    let said = run(cluster, &["delete", "waypoint", "other", "-n", "wp-life"]);
    assert!(said.code == 1 && said.err.contains("there is no waypoint wp-life/other"), "{said}");
    assert_ne!(gateway(cluster, "wp-life", "waypoint"), Value::Null, "not half of it");
    let said = run(cluster, &["delete", "--revision", "r1", "-n", "wp-life", "--dry-run"]);
    assert!(said.code == 0 && said.out == "would delete waypoint wp-life/waypoint\n", "{said}");
    let said = run(cluster, &["delete", "waypoint", "-n", "wp-life"]);
    assert!(said.code == 0 && said.out == "waypoint wp-life/waypoint deleted\n", "{said}");
    assert!(said.err.contains("kubectl label namespace wp-life istio.io/use-waypoint-"), "{said}");
    assert_eq!(gateway(cluster, "wp-life", "waypoint"), Value::Null);
}

#[test]
fn a_namespace_is_not_taken_from_another_waypoint_unless_that_is_asked_for() {
    let (cluster, _turn) = world("wp-taken");
    cluster.kubectl(&["label", "namespace", "wp-taken", "istio.io/use-waypoint=theirs", "--overwrite"]).unwrap();
    let apply = ["apply", "-n", "wp-taken", "--name", "mine", "--enroll-namespace"];
    let said = run(cluster, &apply);
    assert!(said.code == 1 && said.err.contains("uses the waypoint \"theirs\": --overwrite"), "{said}");
    assert_eq!(gateway(cluster, "wp-taken", "mine"), Value::Null, "before anything is done");
    assert_eq!(run(cluster, &[&apply[..], &["--overwrite"]].concat()).code, 0);
    assert_eq!(label(cluster, "wp-taken"), "mine");

    // Gateways of other classes are none of it.
    let ingress =
        "---\n{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: ingress, namespace: wp-taken},
 spec: {gatewayClassName: istio, listeners: []}}";
    cluster.apply(ingress).unwrap();
    let said = run(cluster, &["delete", "--all", "-n", "wp-taken"]);
    assert_eq!(said.out, "waypoint wp-taken/mine deleted\n", "{said}");
    assert_ne!(gateway(cluster, "wp-taken", "ingress"), Value::Null);
    let said = run(cluster, &["list", "-n", "wp-taken"]);
    assert_eq!(said.out, "no waypoints\n");
}
