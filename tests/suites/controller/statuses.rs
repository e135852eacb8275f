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
