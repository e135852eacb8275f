//! What the other suites rely on of the API server they run against: it is a real one, with RBAC, bound tokens and CRDs,
//! it keeps what it was given through an outage, and it says who asked it for what.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

use std::time::Duration;

use culvert_api::security::{AuthorizationPolicy, PeerAuthentication};
use culvert_tests::kube::{AUDIENCE, ControlPlane};
use culvert_tests::{Scope, eventually, objects};
use kube::CustomResourceExt as _;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(20);
const MESH: &str = "istio-ca";

#[test]
fn a_service_account_may_do_what_rbac_grants_it_and_nothing_else() {
    let cluster = ControlPlane::shared();
    cluster.namespace("rbac").unwrap();
    cluster.service_account("rbac", "reader").unwrap();
    let reader = cluster.kubeconfig_of("rbac", "reader").unwrap();
    let pods = || cluster.kubectl_as(&reader, &["get", "pods", "--namespace", "rbac"]).unwrap();
    let refused = pods();
    assert!(!refused.status.success());
    assert!(refused.stderr.contains("system:serviceaccount:rbac:reader"), "{}", refused.stderr);

    cluster
        .apply(
            "\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: rbac}
rules:
- {apiGroups: [''], resources: [pods], verbs: [get, list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: rbac}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects:
- {kind: ServiceAccount, name: reader, namespace: rbac}
",
        )
        .unwrap();
    eventually(LIMIT, "the role to be granted", || pods().status.success().then_some(())).unwrap();
    let write = cluster.kubectl_as(&reader, &["delete", "pod", "none", "--namespace", "rbac"]).unwrap();
    assert!(write.stderr.contains("Forbidden") || write.stderr.contains("forbidden"), "{}", write.stderr);
}

#[test]
fn a_token_is_good_for_its_audience_and_while_its_pod_lives() {
    let cluster = ControlPlane::shared();
    cluster.namespace("tokens").unwrap();
    cluster.node("n1").unwrap();
    cluster.pod("tokens", "app", "default", "n1", &["10.1.1.1"]).unwrap();
    let token = cluster.token("tokens", "default", MESH, Some("app")).unwrap();

    let mesh = cluster.review(&token, MESH).unwrap();
    assert_eq!(mesh["authenticated"], true);
    assert_eq!(mesh["user"]["username"], "system:serviceaccount:tokens:default");
    assert_eq!(mesh["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["app"]));
    assert_ne!(cluster.review(&token, AUDIENCE).unwrap()["authenticated"], true);
    assert_eq!(cluster.request_with_token(&token, "GET", "/api", None).unwrap().status, 401);

    cluster.kubectl(&["delete", "pod", "app", "--namespace", "tokens", "--force", "--grace-period=0"]).unwrap();
    let review = || cluster.review(&token, MESH).unwrap()["authenticated"] != true;
    // The API server remembers a token it has seen for some seconds.
    eventually(LIMIT, "the token of a deleted pod to be refused", || review().then_some(())).unwrap();
}

#[test]
fn a_token_signed_with_the_servers_key_is_refused_once_it_has_expired() {
    let cluster = ControlPlane::shared();
    cluster.namespace("forged").unwrap();
    let token = cluster.token("forged", "default", MESH, None).unwrap();
    let mut claims = ControlPlane::claims(&token).unwrap();
    let again = cluster.forge(&claims).unwrap();
    assert_eq!(cluster.review(&again, MESH).unwrap()["authenticated"], true);
    for time in ["nbf", "iat", "exp"] {
        claims[time] = json!(claims[time].as_u64().unwrap() - 86_400);
    }
    let expired = cluster.forge(&claims).unwrap();
    assert_ne!(cluster.review(&expired, MESH).unwrap()["authenticated"], true);
}

#[test]
fn generated_crds_are_served_and_check_what_they_are_given() {
    let cluster = ControlPlane::shared();
    cluster.namespace("crds").unwrap();
    let crds = json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [AuthorizationPolicy::crd(), PeerAuthentication::crd()],
    });
    cluster.crds(&crds.to_string()).unwrap();
    cluster.crds(&crds.to_string()).expect("they can be given again");
    let good = objects::authorization_policy("crds", "none", "action: ALLOW");
    eventually(LIMIT, "the policy to be taken", || cluster.apply(&good).ok()).unwrap();
    let bad = good.replace("ALLOW", "MAYBE");
    assert!(cluster.apply(&bad).unwrap_err().to_string().contains("kubectl"));
    cluster.delete(&good).unwrap();
    assert!(cluster.kubectl(&["get", "authorizationpolicy", "none", "--namespace", "crds"]).is_err());
}

#[test]
fn many_objects_are_written_at_once() {
    let cluster = ControlPlane::shared();
    cluster.namespace("many").unwrap();
    let path = "/api/v1/namespaces/many/configmaps";
    let map = |n: usize| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("map-{n}") } });
    let requests: Vec<_> = (0..300).map(|n| ("POST", path.to_owned(), map(n))).collect();
    cluster.request_many(&requests).unwrap();
    let found = cluster.get(path).unwrap().success().unwrap();
    assert!(found["items"].as_array().unwrap().len() >= 300);
    let again = cluster.request_many(&requests[..2]).unwrap_err().to_string();
    assert!(again.contains("0 of 2") && again.contains("409"), "{again}");
}

#[test]
fn the_audit_log_tells_who_asked_for_what() {
    let cluster = ControlPlane::shared();
    cluster.namespace("audited").unwrap();
    cluster.service_account("audited", "curious").unwrap();
    let before = cluster.audit().unwrap().len();
    let curious = cluster.kubeconfig_of("audited", "curious").unwrap();
    cluster.kubectl_as(&curious, &["get", "secrets", "--namespace", "audited"]).unwrap();
    let user = "system:serviceaccount:audited:curious";
    let asked = cluster.requests_of(user, before).unwrap();
    let secrets = asked.iter().find(|request| request.resource == "secrets").expect("a request for secrets");
    assert_eq!((secrets.verb.as_str(), secrets.status), ("list", 403));
    assert!(secrets.user_agent.starts_with("kubectl/"), "{}", secrets.user_agent);
}

#[test]
fn an_outage_ends_with_everything_as_it_was() {
    let cluster = ControlPlane::start_with_controllers().unwrap();
    // Only with controllers does a namespace get its service account by itself, and go when it is deleted.
    cluster.namespace("kept").unwrap();
    cluster.kubectl(&["create", "namespace", "gone"]).unwrap();
    cluster.kubectl(&["delete", "namespace", "gone", "--timeout=30s"]).unwrap();

    let scope = Scope::new().unwrap();
    let elsewhere = scope.netns("elsewhere").unwrap();
    let place = culvert_tests::Place::netns(elsewhere.path());
    let forwarder = cluster.reachable_in(&place).unwrap();
    let kubectl = cluster.programs().path("kubectl").unwrap();
    let kubeconfig = cluster.kubeconfig();
    let get = || {
        let config = kubeconfig.to_str().unwrap();
        let arguments = ["--kubeconfig", config, "get", "namespace", "kept"];
        place.output(LIMIT, kubectl.to_str().unwrap(), &arguments).unwrap().status.success()
    };
    assert!(get());
    forwarder.cut();
    assert!(!get());
    forwarder.restore();
    assert!(get());
    assert!(forwarder.accepted() > 0);

    cluster.kill_apiserver().unwrap();
    assert!(cluster.get("/readyz").is_err());
    cluster.start_apiserver().unwrap();
    assert!(get());
    cluster.stop_apiserver().unwrap();
    assert!(!get());
    cluster.start_apiserver().unwrap();
    assert!(get());
}
