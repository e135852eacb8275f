//! Calls in a small mesh: two nodes, a shop in the mesh, a namespace outside it.

mod l7;

use super::*;
use crate::mesh::tests::mesh;

const MESH: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Pod
metadata: {name: front, namespace: shop, labels: {app: front}, annotations: {culvert.dev/netns: /run/netns/front}}
spec: {nodeName: n1, serviceAccountName: front, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.1.1}, {ip: "fd00::1:1"}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart-1, namespace: shop, labels: {app: cart}, annotations: {culvert.dev/netns: /run/netns/cart-1}}
spec: {nodeName: n2, serviceAccountName: cart, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.2.1}, {ip: "fd00::2:1"}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stray, namespace: plain, labels: {app: stray}}
spec: {nodeName: n1, serviceAccountName: stray, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.1.9}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  clusterIPs: [10.96.0.1, "fd96::1"]
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: cart-headless, namespace: shop}
spec: {selector: {app: cart}, clusterIP: None, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {selector: {app: nobody}, clusterIPs: [10.96.0.2], ports: [{name: http, port: 80}]}
"#;

const STRICT: &str = "
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

const FRONT_ONLY: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: front-only, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]
    to: [{operation: {ports: ['8080']}}]
";

fn ask(objects: &[&str], from: &str, to: &str) -> Result<Report, InputError> {
    let request = Request { from: from.to_owned(), to: to.to_owned(), plaintext: false, http: None };
    simulate(&mesh(&objects.concat()).snapshot(), &request)
}

fn evade(objects: &[&str], from: &str, to: &str) -> Report {
    let request = Request { from: from.to_owned(), to: to.to_owned(), plaintext: true, http: None };
    simulate(&mesh(&objects.concat()).snapshot(), &request).unwrap()
}

fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).unwrap()
}

#[test]
fn a_call_within_the_mesh_is_tunnelled_and_checked_by_the_server() {
    let report = ask(&[MESH, STRICT, FRONT_ONLY], "shop/front", "cart:80").unwrap();
    insta::assert_snapshot!(json(&report), @r#"
{
  "outcome": "allowed",
  "transport": "hbone",
  "path": [
    "node/n1",
    "node/n2"
  ],
  "checks": [
    {
      "at": "node/n2",
      "layer": "l4",
      "decision": "allow",
      "policy": "shop/front-only",
      "rule": 0,
      "reason": "allowed by AuthorizationPolicy shop/front-only, rule 0: from[0].source.principals[0] = \"cluster.local/ns/shop/sa/front\" (source.principal), to[0].operation.ports[0] = \"8080\" (destination.port)"
    }
  ],
  "route": null
}
"#);
}

#[test]
fn every_way_to_name_the_server_is_the_same_call() {
    let expected = ask(&[MESH, FRONT_ONLY], "shop/front", "cart:80").unwrap();
    assert_eq!(expected.outcome, Outcome::Allowed);
    for to in [
        "cart.shop:80",
        "cart.shop.svc:80",
        "cart.shop.svc.cluster.local:80",
        "CART.shop.svc.cluster.local.:80",
        "10.96.0.1:80",
        "[fd96::1]:80",
        "cart-headless:8080",
        "cart-1:8080",
        "shop/cart-1:8080",
        "10.0.2.1:8080",
        "[fd00::2:1]:8080",
        "[::ffff:10.0.2.1]:8080",
    ] {
        assert_eq!(ask(&[MESH, FRONT_ONLY], "shop/front", to).as_ref(), Ok(&expected), "{to}");
    }
}

#[test]
fn the_client_is_a_pod_or_an_address() {
    let of = |from| ask(&[MESH, STRICT], from, "10.0.2.1:8080").unwrap();
    assert_eq!((of("shop/front").outcome, of("shop/front").transport), (Outcome::Allowed, Some(Transport::Hbone)));
    assert_eq!(of("10.0.1.1"), of("shop/front"));
    assert_eq!(of("plain/stray").outcome, Outcome::Denied);
    assert_eq!(of("192.0.2.1").outcome, Outcome::Denied);
    assert_eq!(of("192.0.2.1").transport, Some(Transport::Plaintext));
}

#[test]
fn plaintext_is_denied_by_the_server_that_is_strict() {
    let report = evade(&[MESH, STRICT], "shop/front", "cart:80");
    insta::assert_snapshot!(json(&report), @r#"
{
  "outcome": "denied",
  "transport": "plaintext",
  "path": [
    "node/n2"
  ],
  "checks": [
    {
      "at": "node/n2",
      "layer": "l4",
      "decision": "deny",
      "policy": "shop/strict",
      "rule": null,
      "reason": "PeerAuthentication shop/strict requires mTLS on port 8080, and the call came in plaintext"
    }
  ],
  "route": null
}
"#);
    assert_eq!(evade(&[MESH], "shop/front", "cart:80").outcome, Outcome::Allowed);
}

#[test]
fn a_policy_on_trial_says_what_it_would_change_and_changes_nothing() {
    let trial = |action: &str, who: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: trial, namespace: \
             shop, annotations: {{istio.io/dry-run: \"true\"}}}}\nspec: {{action: {action}, rules: [{{from: [{{source: \
             {{serviceAccounts: [{who}]}}}}]}}]}}\n"
        )
    };
    let of = |action, who| ask(&[MESH, FRONT_ONLY, &trial(action, who)], "shop/front", "cart:80").unwrap();
    let report = of("DENY", "front");
    let [enforced, tried] = report.checks.as_slice() else { panic!("{report:?}") };
    assert_eq!((report.outcome, enforced.decision, enforced.dry_run), (Outcome::Allowed, Verdict::Allow, false));
    assert_eq!((tried.decision, tried.policy.as_deref(), tried.rule), (Verdict::Deny, Some("shop/trial"), Some(0)));
    assert!(tried.dry_run && tried.reason.starts_with("with shop/trial enforced: denied by"), "{tried:?}");
    assert!(json(&report).contains("\"dry_run\": true"));
    // The rule does not match, or another policy decides: the answer stays as it is.
    for (action, who, rule) in [("DENY", "other", None), ("ALLOW", "other", None), ("ALLOW", "front", Some(0))] {
        let tried = of(action, who).checks.pop().unwrap();
        assert_eq!((tried.decision, tried.rule), (Verdict::Allow, rule), "{action} {who}");
    }
    // The first ALLOW policy of a workload denies whatever it does not match.
    let alone = ask(&[MESH, &trial("ALLOW", "other")], "shop/front", "cart:80").unwrap();
    assert_eq!((alone.outcome, alone.checks[1].decision), (Outcome::Allowed, Verdict::Deny));
}

#[test]
fn a_denial_names_the_nearest_policy() {
    let report = ask(&[MESH, FRONT_ONLY], "shop/front", "cart-1:9090").unwrap();
    assert_eq!(report.outcome, Outcome::Denied);
    assert_eq!(report.checks[0].policy.as_deref(), Some("shop/front-only"));
    assert!(report.checks[0].reason.ends_with("to[0].operation.ports does not include 9090"), "{report:?}");
}

#[test]
fn what_is_outside_the_mesh_is_passed_through() {
    let report = ask(&[MESH], "shop/front", "192.0.2.1:443").unwrap();
    assert_eq!((report.outcome, report.transport), (Outcome::Allowed, Some(Transport::Plaintext)));
    assert_eq!((report.path.as_slice(), report.checks.len()), (["node/n1".to_owned()].as_slice(), 0));
    assert_eq!(ask(&[MESH], "shop/front", "plain/stray:80").unwrap().path, ["node/n1"]);
}

#[test]
fn registry_only_makes_the_unknown_unroutable() {
    let options = "
---
apiVersion: v1
kind: ConfigMap
metadata: {name: culvert, namespace: istio-system}
data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}
";
    let report = ask(&[MESH, options], "shop/front", "192.0.2.1:443").unwrap();
    assert_eq!((report.outcome, report.transport), (Outcome::Unroutable, None));
    assert!(report.checks[0].reason.contains("REGISTRY_ONLY"), "{report:?}");
}

#[test]
fn what_is_bypassed_is_allowed_in_plaintext_and_says_by_what() {
    let options = "
---
apiVersion: v1
kind: ConfigMap
metadata: {name: culvert, namespace: istio-system}
data: {mesh: '{outboundTrafficPolicy: {mode: REGISTRY_ONLY}, culvert: {outboundBypass: {ports: [3306]}}}'}
";
    let report = ask(&[MESH, options], "shop/front", "192.0.2.1:3306").unwrap();
    assert_eq!((report.outcome, report.transport), (Outcome::Allowed, Some(Transport::Plaintext)));
    assert!(report.path.is_empty(), "no proxy handles it: {report:?}");
    assert!(report.checks[0].reason.contains("bypassed by outboundBypass.ports"), "{report:?}");
    assert_eq!(ask(&[MESH, options], "shop/front", "192.0.2.1:443").unwrap().outcome, Outcome::Unroutable);
}

#[test]
fn a_service_without_endpoints_is_unroutable() {
    let report = ask(&[MESH], "shop/front", "empty:80").unwrap();
    assert_eq!((report.outcome, report.path.as_slice()), (Outcome::Unroutable, ["node/n1".to_owned()].as_slice()));
    assert!(report.checks[0].reason.contains("empty"), "{report:?}");
    assert_eq!(ask(&[MESH], "plain/stray", "empty.shop:80").unwrap().outcome, Outcome::Unroutable);
    assert_eq!(ask(&[MESH], "shop/front", "cart:81").unwrap().outcome, Outcome::Unroutable);
}

#[test]
fn a_missing_waypoint_is_unroutable_unless_the_namespace_opts_out() {
    let bound = MESH
        .replace("{name: cart, namespace: shop}", "{name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}");
    let report = ask(&[&bound], "shop/front", "cart:80").unwrap();
    assert_eq!(report.outcome, Outcome::Unroutable);
    assert!(report.checks[0].reason.contains("shop/wp, which does not exist"), "{report:?}");
    let opted_out =
        bound.replace("{name: shop, ", "{name: shop, annotations: {culvert.dev/missing-waypoint: bypass}, ");
    assert_eq!(ask(&[&opted_out], "shop/front", "cart:80").unwrap().outcome, Outcome::Allowed);
}

#[test]
fn behind_a_waypoint_the_server_sees_the_waypoint_and_on_whose_behalf_it_calls() {
    let bound = MESH
        .replace("{name: cart, namespace: shop}", "{name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}}");
    let waypoint = r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: wp, namespace: shop}
spec:
  selector: {gateway.networking.k8s.io/gateway-name: wp}
  clusterIPs: [10.96.0.9]
  ports: [{name: hbone, port: 15008}]
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp, istio.io/dataplane-mode: none}}
spec: {nodeName: n3, serviceAccountName: wp, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.3.1}], conditions: [{type: Ready, status: "True"}]}
"#;
    let report = ask(&[&bound, waypoint, FRONT_ONLY], "shop/front", "cart:80").unwrap();
    assert_eq!(report.path, ["node/n1", "waypoint/shop/wp", "node/n2"]);
    assert_eq!(report.outcome, Outcome::Allowed, "{report:?}");
    assert!(report.checks[0].reason.contains("cluster.local/ns/shop/sa/front"), "{report:?}");
    let nobody = FRONT_ONLY.replace("sa/front", "sa/nobody");
    let report = ask(&[&bound, waypoint, &nobody], "shop/front", "cart:80").unwrap();
    assert_eq!(report.outcome, Outcome::Denied, "{report:?}");
    let either = "does not include cluster.local/ns/shop/sa/front or cluster.local/ns/shop/sa/wp";
    assert!(report.checks[0].reason.contains(either), "{report:?}");
    let required = bound.replace("{name: shop, ", "{name: shop, annotations: {culvert.dev/require-waypoint: 'true'}, ");
    assert_eq!(ask(&[&required, waypoint], "shop/front", "cart:80").unwrap().outcome, Outcome::Allowed);
    let report = ask(&[&required, waypoint], "plain/stray", "cart.shop:80").unwrap();
    assert_eq!(report.outcome, Outcome::Denied, "{report:?}");
    assert!(report.checks[0].reason.contains("takes connections from waypoint shop/wp alone"), "{report:?}");
}

#[test]
fn of_several_endpoints_the_one_that_denies_is_reported() {
    let second = r#"
---
apiVersion: v1
kind: Pod
metadata: {name: cart-2, namespace: shop, labels: {app: cart, canary: "yes"}, annotations: {culvert.dev/netns: /run/netns/c}}
spec: {nodeName: n3, serviceAccountName: cart, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.3.2}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec: {selector: {matchLabels: {canary: "yes"}}, action: DENY, rules: [{}]}
"#;
    let report = ask(&[MESH, second], "shop/front", "cart:80").unwrap();
    assert_eq!((report.outcome, report.path[1].as_str()), (Outcome::Denied, "node/n3"));
}

#[test]
fn a_pod_calls_itself_without_anybody_asking() {
    let deny = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec: {action: DENY, rules: [{}]}
";
    let report = ask(&[MESH, deny], "shop/front", "10.0.1.1:80").unwrap();
    assert_eq!((report.outcome, report.path.len(), report.checks.len()), (Outcome::Allowed, 0, 0));
}

#[test]
fn mistakes_of_the_question_name_what_is_there() {
    let error = |from, to| ask(&[MESH], from, to).unwrap_err().to_string();
    assert_eq!(
        error("shop/frnt", "cart:80"),
        "no pod shop/frnt in the configuration: there are shop/cart-1, shop/front"
    );
    assert_eq!(error("front", "cart:80"), "\"front\" is neither NAMESPACE/POD nor an address");
    assert_eq!(
        error("shop/front", "crt:80"),
        "no service, pod or address \"crt\" seen from namespace shop: there are cart, cart-headless, empty"
    );
    for to in ["cart", "cart:", "cart:0", "cart:65536", "cart:http", ":80", "fd00::1", "cart:+80"] {
        assert!(error("shop/front", to).contains("is not HOST:PORT"), "{to}");
    }
}
