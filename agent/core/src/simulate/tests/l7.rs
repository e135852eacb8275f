//! Requests through a waypoint.

use super::*;

const WAYPOINT: &str = r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Pod
metadata: {name: way-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: way}}
spec: {nodeName: n1, serviceAccountName: way, containers: [{name: c}]}
status: {phase: Running, podIPs: [{ip: 10.0.1.7}], conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: way, namespace: shop}
spec: {selector: {gateway.networking.k8s.io/gateway-name: way}, clusterIPs: [10.96.0.7], ports: [{name: hbone, port: 15008}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: cart, namespace: shop}
spec: {host: cart, subsets: [{name: v1, labels: {app: cart}}, {name: v2, labels: {version: v2}}]}
"#;

fn ask(rules: &str, path: &str, headers: &[(&str, &str)]) -> Report {
    ask_with("", rules, path, headers)
}

const BOUND: &str = "labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: way}";

/// With further objects.
fn ask_with(more: &str, rules: &str, path: &str, headers: &[(&str, &str)]) -> Report {
    ask_in(BOUND, more, rules, path, headers)
}

/// In a namespace that says so of itself.
fn ask_in(namespace: &str, more: &str, rules: &str, path: &str, headers: &[(&str, &str)]) -> Report {
    let mesh_yaml = MESH.replacen("labels: {istio.io/dataplane-mode: ambient}", namespace, 1);
    let rules = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cart, namespace: shop}}\n\
         spec: {{hosts: [cart], http: [{rules}]}}\n"
    );
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let request = Request {
        from: "shop/front".to_owned(),
        to: "cart:80".to_owned(),
        plaintext: false,
        http: Some(HttpRequest { method: "GET".to_owned(), path: path.to_owned(), headers }),
    };
    simulate(&mesh(&[&mesh_yaml, WAYPOINT, &rules, more].concat()).snapshot(), &request).unwrap()
}

#[test]
fn the_rule_of_a_request_is_told_with_everything_that_it_does() {
    let rules = "{name: v1, match: [{uri: {prefix: /v1}, headers: {x-user: {exact: eve}}}], rewrite: {uri: /}, timeout: 2s, \
                 retries: {attempts: 3, retryOn: 5xx}, fault: {delay: {fixedDelay: 1s, percentage: {value: 50}}}, \
                 mirror: {host: cart-headless}, headers: {request: {set: {a: b}}}, \
                 route: [{destination: {host: cart, subset: v1}, weight: 100}]}";
    let report = ask(rules, "/v1/items", &[("x-user", "eve")]);
    assert_eq!(
        (report.outcome, &*report.path),
        (Outcome::Allowed, &["node/n1", "waypoint/shop/way", "node/n2"].map(String::from)[..])
    );
    insta::assert_snapshot!(serde_json::to_string_pretty(&report.route).unwrap(), @r#"
{
  "resource": "VirtualService/shop/cart",
  "rule": 0,
  "match": 0,
  "name": "v1",
  "delegate": null,
  "destinations": [
    {
      "host": "cart.shop.svc.cluster.local",
      "subset": "v1",
      "port": null,
      "weight": 1
    }
  ],
  "redirect": null,
  "response": null,
  "rewrite": {
    "path": "//items",
    "authority": null
  },
  "request_headers": [
    "set a: b"
  ],
  "response_headers": [],
  "timeout": "2s",
  "retries": {
    "attempts": 3,
    "per_try_timeout": null,
    "on": "5xx",
    "backoff": "25ms"
  },
  "fault": {
    "delay": {
      "percent": 50.0,
      "duration": "1s"
    },
    "abort": null
  },
  "mirror": [
    {
      "host": "cart-headless.shop.svc.cluster.local",
      "subset": null,
      "port": null,
      "percent": 100.0
    }
  ],
  "cors": null,
  "reason": "VirtualService shop/cart, rule 0, match 0"
}
"#);
}

#[test]
fn a_route_is_told_in_a_paragraph() {
    let rules = "{match: [{method: {exact: GET}}], fault: {abort: {httpStatus: 503, percentage: {value: 1}}}, \
                 rewrite: {authority: b}, timeout: 2s, route: [{destination: {host: cart, subset: v1}, weight: 9}, \
                 {destination: {host: cart, port: {number: 80}}, weight: 1}]}";
    assert_eq!(
        ask(rules, "/", &[]).route.unwrap().to_string(),
        "VirtualService shop/cart, rule 0, match 0; aborts 1 % with 503; goes to cart.shop.svc.cluster.local subset v1 \
         weight 9, or cart.shop.svc.cluster.local:80 weight 1; for b; within 2s; tried again 2 times on \
         connect-failure,refused-stream,retriable-status-codes,cancelled,unavailable"
    );
}

#[test]
fn a_request_that_goes_nowhere_is_unroutable_and_told_why() {
    for (rules, reason) in [
        ("{match: [{uri: {exact: /only}}], route: [{destination: {host: cart}}]}", "(404 NR)"),
        ("{route: [{destination: {host: nobody}}]}", "(503 NC)"),
        ("{route: [{destination: {host: cart, subset: v9}}]}", "no DestinationRule defines"),
        ("{redirect: {redirectCode: 300, uri: /x}}", "(500 NR)"),
    ] {
        let report = ask(rules, "/", &[]);
        assert_eq!(report.outcome, Outcome::Unroutable, "{rules}");
        assert_eq!(report.path, ["node/n1", "waypoint/shop/way"], "{rules}");
        // The policies had nothing against it.
        assert_eq!((report.checks[0].layer, report.checks[0].decision), (Layer::L7, Verdict::Allow));
        assert_eq!((report.checks[1].layer, report.checks[1].at.as_str()), (Layer::L7, "waypoint/shop/way"));
        assert!(report.checks[1].reason.contains(reason), "{}", report.checks[1].reason);
    }
}

#[test]
fn what_the_waypoint_answers_ends_there() {
    let report = ask("{redirect: {uri: /new}}", "/old", &[]);
    assert_eq!((report.outcome, report.path.len()), (Outcome::Allowed, 2));
    assert_eq!(report.route.unwrap().redirect.unwrap().location, "http://cart.shop.svc.cluster.local/new");
}

#[test]
fn a_subset_without_a_pod_is_unroutable() {
    let report = ask("{route: [{destination: {host: cart, subset: v2}}]}", "/", &[]);
    assert_eq!(report.outcome, Outcome::Unroutable);
    assert!(report.checks[0].reason.contains("no ready endpoint of subset v2"), "{}", report.checks[0].reason);
}

#[test]
fn the_path_is_normalized_before_it_is_matched() {
    let rules =
        "{match: [{uri: {exact: /admin}}], directResponse: {status: 403}}, {route: [{destination: {host: cart}}]}";
    assert_eq!(ask(rules, "/x/../%61dmin", &[]).route.unwrap().rule, Some(0));
}

const GUARDED: &str = "
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: no-admin, namespace: shop},
 spec: {targetRefs: [{group: '', kind: Service, name: cart}], action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: waypoint-only, namespace: shop},
 spec: {selector: {matchLabels: {app: cart}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/way]}}]}]}}
";

#[test]
fn a_request_is_judged_at_the_waypoint_then_routed_then_judged_at_its_end() {
    let to_cart = "{route: [{destination: {host: cart}}]}";
    let report = ask_with(GUARDED, to_cart, "/", &[]);
    assert_eq!(report.outcome, Outcome::Allowed);
    let asked: Vec<_> = report.checks.iter().map(|check| (check.layer, &*check.at, check.decision)).collect();
    let expected = [(Layer::L7, "waypoint/shop/way", Verdict::Allow), (Layer::L4, "node/n2", Verdict::Allow)];
    assert_eq!(asked, expected);
    assert_eq!(report.checks[1].policy.as_deref(), Some("shop/waypoint-only"), "it is the waypoint that calls there");
    assert_eq!(report.route.unwrap().rule, Some(0));
}

#[test]
fn what_the_waypoint_denies_is_not_routed() {
    // As it is written, and as it is evaded.
    for path in ["/admin", "/x/../%61dmin?q=1"] {
        let report = ask_with(GUARDED, "{route: [{destination: {host: cart}}]}", path, &[]);
        assert_eq!((report.outcome, report.route.as_ref()), (Outcome::Denied, None), "{path}");
        assert_eq!(report.path, ["node/n1", "waypoint/shop/way"]);
        let [check] = &report.checks[..] else { panic!("{:?}", report.checks) };
        assert_eq!((check.policy.as_deref(), check.rule), (Some("shop/no-admin"), Some(0)));
    }
}

#[test]
fn a_canary_that_may_take_a_connection_is_followed_too() {
    let canary = "
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: new, namespace: shop},
 spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: new-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: new}},
 spec: {nodeName: n1, serviceAccountName: new, containers: [{name: c}]},
 status: {phase: Running, podIPs: [{ip: 10.0.1.8}], conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: new, namespace: shop},
 spec: {selector: {gateway.networking.k8s.io/gateway-name: new}, clusterIPs: [10.96.0.8], ports: [{name: hbone, port: 15008}]}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: shut, namespace: shop},
 spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: new}], rules: []}}
";
    let namespace = "labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: way, \
                     istio.io/use-waypoint-canary: new}, annotations: {istio.io/use-waypoint-canary-weight: '50'}";
    let report = ask_in(namespace, canary, "{route: [{destination: {host: cart}}]}", "/", &[]);
    assert_eq!(report.outcome, Outcome::Denied, "one of the two denies it");
    assert_eq!(report.path, ["node/n1", "waypoint/shop/new"]);
}
