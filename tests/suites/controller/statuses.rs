//! What became of policies and routes.

use culvert_tests::eventually;
use culvert_tests::kube::Request;
use serde_json::{Value, json};

use super::replica::{Installation, LIMIT};

const POLICIES: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: fine, namespace: policies}
spec: {action: ALLOW, rules: [{from: [{source: {namespaces: [shop]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: http, namespace: policies}
spec: {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: custom, namespace: policies}
spec: {action: CUSTOM, provider: {name: opa}, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: targeted, namespace: policies}
spec: {targetRefs: [{kind: Service, name: cart, group: ''}], rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: policies}
spec: {mtls: {mode: STRICT}}
";

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: policies}
spec: {ports: [{port: 80}]}
";

const ROUTES: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: routes}
spec: {parentRefs: [{group: '', kind: Service, name: web, port: 80}, {name: ingress}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: rpc, namespace: routes}
spec: {parentRefs: [{group: '', kind: Service, name: web}]}
";

#[test]
fn routes_say_of_each_parent_what_becomes_of_them_and_only_the_leader_writes() {
    let installation = Installation::new("ca-routes");
    let cluster = installation.cluster;
    for (plural, kind) in [("gateways", "Gateway"), ("httproutes", "HTTPRoute"), ("grpcroutes", "GRPCRoute")] {
        cluster.crd_without_schema("gateway.networking.k8s.io", plural, kind).unwrap();
    }
    cluster.namespace("routes").unwrap();
    cluster.apply(ROUTES).unwrap();
    let path =
        |plural: &str, name: &str| format!("/apis/gateway.networking.k8s.io/v1/namespaces/routes/{plural}/{name}");
    // What another controller has said of its own parent stays.
    let other = json!({"parentRef": {"name": "ingress"}, "controllerName": "example.org/other", "conditions": []});
    let others = json!({"status": {"parents": [other]}});
    cluster
        .request("PATCH", &format!("{}/status", path("httproutes", "web")), Some(&others))
        .unwrap()
        .success()
        .unwrap();
    let since = cluster.audit().unwrap().len();
    let replicas = [installation.start("one", &[]), installation.start("two", &[])];
    let ours = |plural: &str, name: &str| -> Option<Value> {
        let object = installation.object(&path(plural, name));
        let parents = object["status"]["parents"].as_array()?;
        let entry = parents.iter().find(|entry| entry["controllerName"] == "istio.io/mesh-controller")?;
        let conditions = entry["conditions"].as_array()?;
        // The last is the waypoints' word, which comes once the parent is there.
        let condition = conditions.iter().rev().find(|condition| condition["status"] == "False")?;
        let is_current = condition["observedGeneration"] == object["metadata"]["generation"];
        is_current.then(|| condition.clone())
    };
    let await_message = |plural: &str, name: &str, kind: &str, text: &str| {
        let found = eventually(LIMIT, &format!("{name}: {text}"), || {
            ours(plural, name).filter(|found| found["message"].as_str().is_some_and(|message| message.contains(text)))
        });
        let found = found.unwrap_or_else(|error| panic!("{error}: {}", installation.object(&path(plural, name))));
        assert_eq!((&found["type"], &found["status"]), (&json!(kind), &json!("False")), "{found}");
    };
    for (plural, name) in [("httproutes", "web"), ("grpcroutes", "rpc")] {
        await_message(plural, name, "Accepted", "there is no Service routes/web");
    }
    let web = installation.object(&path("httproutes", "web"));
    assert_eq!(web["status"]["parents"].as_array().map(Vec::len), Some(2), "{web}");
    assert_eq!(web["status"]["parents"][0], other, "another controller's");

    cluster.apply(&SERVICE.replace("cart", "web").replace("policies", "routes")).unwrap();
    for (plural, name) in [("httproutes", "web"), ("grpcroutes", "rpc")] {
        await_message(plural, name, "ResolvedWaypoints", "has no waypoint");
    }
    cluster.kubectl(&["-n", "routes", "label", "httproute", "web", "note=none"]).unwrap();
    // The next generation is spoken of, though nothing else has changed.
    let port = json!({"spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web", "port": 8080}]}});
    cluster.request("PATCH", &path("httproutes", "web"), Some(&port)).unwrap().success().unwrap();
    await_message("httproutes", "web", "Accepted", "has no port 8080");

    // Two statuses, twice each, and one of them once more; by one of the two replicas.
    let user = format!("system:serviceaccount:{}:culvert-controller", installation.namespace);
    let requests = cluster.requests_of(&user, since).unwrap();
    let is_write = |one: &&Request| one.verb == "patch" && one.resource.ends_with("routes/status");
    assert_eq!(requests.iter().filter(is_write).count(), 5);
    let leads = replicas.iter().map(|replica| replica.metric("culvert_controller_leader")).sum::<f64>();
    assert_eq!(leads, 1.0);
    replicas.into_iter().for_each(|replica| drop(replica.stop()));
}

#[test]
fn what_is_not_supported_or_not_bound_is_said_once_and_followed() {
    let installation = Installation::new("ca-status");
    let cluster = installation.cluster;
    let crds = json!({"apiVersion": "v1", "kind": "List", "items": culvert_api::crd::definitions()});
    cluster.crds(&crds.to_string()).unwrap();
    cluster.namespace("policies").unwrap();
    cluster.apply(POLICIES).unwrap();
    let since = cluster.audit().unwrap().len();
    let replica = installation.start("one", &[]);
    let object = |plural: &str, name: &str| {
        installation.object(&format!("/apis/security.istio.io/v1/namespaces/policies/{plural}/{name}"))
    };
    let condition = |plural: &str, name: &str, kind: &str| -> Option<Value> {
        let object = object(plural, name);
        let conditions = object["status"]["conditions"].as_array()?;
        let found = conditions.iter().find(|condition| condition["type"] == kind)?.clone();
        (found["observedGeneration"] == object["metadata"]["generation"]).then_some(found)
    };
    let await_condition = |plural: &str, name: &str, kind: &str, status: &str, reason: &str| {
        eventually(LIMIT, &format!("{name}: {kind}={status} {reason}"), || {
            condition(plural, name, kind).filter(|found| found["status"] == status && found["reason"] == reason)
        })
        .unwrap_or_else(|error| panic!("{error}: {} {}", object(plural, name)["status"], replica.log()))
    };
    let policies = "authorizationpolicies";
    await_condition(policies, "fine", "ZtunnelAccepted", "True", "Accepted");
    let http = await_condition(policies, "http", "ZtunnelAccepted", "True", "UnsupportedValue");
    assert!(
        http["message"].as_str().unwrap().contains("spec.rules[0].to[0].operation.methods: L4 cannot see"),
        "{http}"
    );
    await_condition(policies, "custom", "ZtunnelAccepted", "False", "UnsupportedValue");
    await_condition(policies, "targeted", "WaypointAccepted", "False", "TargetNotFound");
    await_condition("peerauthentications", "strict", "ZtunnelAccepted", "True", "Accepted");

    // The target comes, and is bound to nothing.
    cluster.apply(SERVICE).unwrap();
    let unbound = await_condition(policies, "targeted", "WaypointAccepted", "False", "AncestorNotBound");
    assert!(unbound["message"].as_str().unwrap().contains("istio.io/use-waypoint"), "{unbound}");

    // A change of the spec is followed, with the generation it speaks of.
    let mended = POLICIES.replace("methods: [GET]", "ports: ['80']");
    cluster.apply(&mended).unwrap();
    await_condition(policies, "http", "ZtunnelAccepted", "True", "Accepted");

    // Nothing more is written than has changed: five statuses, and two of them once more.
    let user = format!("system:serviceaccount:{}:culvert-controller", installation.namespace);
    let writes = |since: usize| {
        let requests = cluster.requests_of(&user, since).unwrap();
        let is_write = |one: &&Request| one.verb == "patch" && one.resource.ends_with("/status") && one.status == 200;
        requests.iter().filter(is_write).count()
    };
    assert_eq!(writes(since), 7);
    let label = ["-n", "policies", "label", "authorizationpolicy", "fine", "note=none"];
    cluster.kubectl(&label).unwrap();
    cluster.kubectl(&["-n", "policies", "annotate", "service", "cart", "note=none"]).unwrap();
    let quiet = cluster.audit().unwrap().len();
    cluster.apply(&mended.replace("namespaces: [shop]", "namespaces: [shop, web]")).unwrap();
    eventually(LIMIT, "the next generation", || (writes(quiet) > 0).then_some(())).unwrap();
    assert_eq!(writes(since), 8, "a label changes no status");
    replica.stop();
}
