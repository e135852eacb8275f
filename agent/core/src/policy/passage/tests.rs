//! Who is believed to call on whose behalf, and who has to come through a waypoint.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::identity::Identity;
use crate::mesh::Snapshot;
use crate::mesh::tests::mesh;
use crate::policy::{Call, Decision, authorize};

const MESH: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}, annotations: {}}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}, annotations: {}},
 spec: {selector: {app: cart}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}, {name: admin, port: 81, targetPort: 8081}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: bare, namespace: shop},
 spec: {selector: {app: cart}, clusterIP: 10.96.0.2, ports: [{name: http, port: 80, targetPort: 9090}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: wp, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}},
 spec: {selector: {gateway.networking.k8s.io/gateway-name: wp}, clusterIP: 10.96.0.9, ports: [{name: hbone, port: 15008}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: wp, namespace: shop},
 spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: other, namespace: shop},
 spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: other, namespace: shop},
 spec: {selector: {gateway.networking.k8s.io/gateway-name: other}, clusterIP: 10.96.0.8, ports: [{name: hbone, port: 15008}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: cart-1, namespace: shop, labels: {app: cart}, annotations: {}},
 spec: {nodeName: n, serviceAccountName: cart}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}},
 spec: {nodeName: n, serviceAccountName: wp}, status: {podIP: 10.0.0.9}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: other}},
 spec: {nodeName: n, serviceAccountName: wp}, status: {podIP: 10.0.0.8}}
---
{apiVersion: v1, kind: Pod, metadata: {name: front-1, namespace: shop, labels: {app: front}},
 spec: {nodeName: n, serviceAccountName: front}, status: {podIP: 10.0.0.2}}
";

/// Who calls, from where: the account and the address.
const WAYPOINT: (&str, &str) = ("shop/wp", "10.0.0.9");
/// A pod of another waypoint, under the account of the first.
const OTHER: (&str, &str) = ("shop/wp", "10.0.0.8");
const FRONT: (&str, &str) = ("shop/front", "10.0.0.2");
const PLAINTEXT: (&str, &str) = ("", "10.0.0.2");

fn identity(account: &str) -> Option<Identity> {
    let (namespace, account) = account.split_once('/')?;
    Some(Identity::new("cluster.local", namespace, account))
}

fn policy(spec: &str) -> String {
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, \
         spec: {spec}}}\n"
    )
}

/// What the node says to a call of `port` of the pod, on behalf of `client`.
fn ask(snapshot: &Arc<Snapshot>, (account, ip): (&str, &str), port: u16, client: Option<&str>) -> Decision {
    let workload = snapshot.pod("shop", "cart-1").unwrap();
    let principal = identity(account);
    let destination = SocketAddr::new(workload.addresses[0], port);
    let call = Call { principal: principal.as_ref(), source_ip: ip.parse().unwrap(), destination };
    authorize(snapshot, workload, &call, client.and_then(identity).as_ref())
}

const ALLOW_FRONT: &str = "{rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]}]}";
const DENY_FRONT: &str = "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]}]}";

#[test]
fn a_policy_names_the_client_that_the_waypoint_calls_for() {
    for (spec, client, allowed) in [
        (ALLOW_FRONT, Some("shop/front"), true),
        (ALLOW_FRONT, Some("shop/evil"), false),
        (ALLOW_FRONT, None, false),
        (DENY_FRONT, Some("shop/front"), false),
        (DENY_FRONT, Some("shop/evil"), true),
    ] {
        let decision = ask(&mesh(&format!("{MESH}{}", policy(spec))).snapshot(), WAYPOINT, 8080, client);
        assert_eq!(decision.allowed, allowed, "{spec} {client:?}: {}", decision.reason);
    }
}

#[test]
fn a_policy_that_names_the_waypoint_says_what_it_did_whoever_the_client_is() {
    const WP: &str = "cluster.local/ns/shop/sa/wp";
    for (spec, allowed) in [
        (format!("{{rules: [{{from: [{{source: {{principals: [{WP}]}}}}]}}]}}"), true),
        (format!("{{action: DENY, rules: [{{from: [{{source: {{principals: [{WP}]}}}}]}}]}}"), false),
        (format!("{{action: DENY, rules: [{{from: [{{source: {{notPrincipals: [{WP}]}}}}]}}]}}"), true),
        (format!("{{rules: [{{from: [{{source: {{notPrincipals: [{WP}]}}}}]}}]}}"), false),
    ] {
        let snapshot = mesh(&format!("{MESH}{}", policy(&spec))).snapshot();
        for client in [None, Some("other/front")] {
            let decision = ask(&snapshot, WAYPOINT, 8080, client);
            assert_eq!(decision.allowed, allowed, "{spec} {client:?}: {}", decision.reason);
        }
    }
}

#[test]
fn a_rule_matches_by_one_of_them_and_never_by_a_part_of_each() {
    // The namespace is the waypoint's, the account another namespace's.
    let clauses = [
        "from: [{source: {namespaces: [shop], principals: ['*/sa/front']}}]",
        "from: [{source: {namespaces: [shop]}}], when: [{key: source.principal, values: ['*/sa/front']}]",
    ];
    for clause in clauses {
        let snapshot = mesh(&format!("{MESH}{}", policy(&format!("{{rules: [{{{clause}}}]}}")))).snapshot();
        let allowed = |client| ask(&snapshot, WAYPOINT, 8080, Some(client)).allowed;
        assert!(allowed("shop/front") && !allowed("other/front"), "{clause}");
    }
}

#[test]
fn whoever_is_excluded_as_client_is_not_let_in_by_the_waypoint() {
    let spec = "{rules: [{from: [{source: {namespaces: [shop], notPrincipals: ['*/sa/evil']}}]}]}";
    let snapshot = mesh(&format!("{MESH}{}", policy(spec))).snapshot();
    assert!(ask(&snapshot, WAYPOINT, 8080, Some("shop/front")).allowed);
    let decision = ask(&snapshot, WAYPOINT, 8080, Some("shop/evil"));
    assert!(!decision.allowed && decision.reason.to_string().contains("shop/sa/evil"), "{}", decision.reason);
}

#[test]
fn nobody_but_a_waypoint_of_the_destination_is_believed() {
    let snapshot = mesh(&format!("{MESH}{}", policy(ALLOW_FRONT))).snapshot();
    let believed = |caller, port| ask(&snapshot, caller, port, Some("shop/front")).allowed;
    assert!(believed(WAYPOINT, 8080) && believed(WAYPOINT, 8081));
    for (why, caller, port) in [
        ("another pod", ("shop/evil", "10.0.0.3"), 8080),
        ("the waypoint's account at another address", ("shop/wp", "10.0.0.3"), 8080),
        ("the waypoint's address under another account", ("shop/evil", "10.0.0.9"), 8080),
        ("the account in another namespace", ("other/wp", "10.0.0.9"), 8080),
        ("a waypoint to which nothing here is bound", OTHER, 8080),
        ("a port that no bound service leads to", WAYPOINT, 9090),
        ("plaintext", ("", "10.0.0.9"), 8080),
    ] {
        assert!(!believed(caller, port), "{why}");
    }
}

#[test]
fn a_waypoint_of_another_namespace_is_believed_as_long_as_it_may_be_bound() {
    let elsewhere = MESH
        .replace(
            "metadata: {name: cart, namespace: shop, labels: {",
            "metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint-namespace: infra, ",
        )
        .replace(
            "kind: Gateway, metadata: {name: wp, namespace: shop}",
            "kind: Gateway, metadata: {name: wp, namespace: infra}",
        )
        .replace("metadata: {name: wp, namespace: shop, labels", "metadata: {name: wp, namespace: infra, labels")
        .replace("metadata: {name: wp-1, namespace: shop", "metadata: {name: wp-1, namespace: infra");
    let allowed =
        elsewhere.replacen("protocol: HBONE}", "protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}", 1);
    let ask = |text: &str| {
        ask(
            &mesh(&format!("{text}{}", policy(ALLOW_FRONT))).snapshot(),
            ("infra/wp", "10.0.0.9"),
            8080,
            Some("shop/front"),
        )
    };
    assert!(ask(&allowed).allowed);
    assert!(!ask(&elsewhere).allowed, "its listener lets no other namespace in");
}

fn required(name: &str) -> String {
    let (before, after) = MESH.split_once(&format!("metadata: {{name: {name}")).unwrap();
    let after = after.replacen("annotations: {}", "annotations: {culvert.dev/require-waypoint: \"true\"}", 1);
    format!("{before}metadata: {{name: {name}{after}")
}

#[test]
fn what_has_to_come_through_a_waypoint_is_refused_from_anybody_else() {
    for text in [required("cart, namespace"), required("shop, labels")] {
        let snapshot = mesh(&text).snapshot();
        for port in [8080, 8081] {
            assert!(ask(&snapshot, WAYPOINT, port, None).allowed);
            for caller in [FRONT, PLAINTEXT, OTHER] {
                let decision = ask(&snapshot, caller, port, Some("shop/wp"));
                assert!(!decision.allowed, "{caller:?}");
                assert_eq!(
                    decision.reason.to_string(),
                    "service shop/cart.shop.svc.cluster.local takes connections from waypoint shop/wp alone, and this one \
                     is not from a pod of it: call the service from a pod of the mesh, or remove the annotation \
                     culvert.dev/require-waypoint"
                );
            }
        }
        assert!(ask(&snapshot, FRONT, 9090, None).allowed, "the port of a service without a waypoint");
    }
    assert!(ask(&mesh(MESH).snapshot(), PLAINTEXT, 8080, None).allowed, "nobody asked for it");
}

#[test]
fn an_object_says_otherwise_than_its_namespace() {
    let text = required("shop, labels").replacen(
        "istio.io/use-waypoint: wp}, annotations: {}",
        "istio.io/use-waypoint: wp}, annotations: {culvert.dev/require-waypoint: \"false\"}",
        1,
    );
    assert!(ask(&mesh(&text).snapshot(), FRONT, 8080, None).allowed);
}

#[test]
fn while_a_required_waypoint_is_missing_nothing_comes_in() {
    let text = required("cart, namespace").replacen("gatewayClassName: istio-waypoint", "gatewayClassName: istio", 1);
    let snapshot = mesh(&text).snapshot();
    for caller in [WAYPOINT, FRONT] {
        assert!(!ask(&snapshot, caller, 8080, None).allowed, "{caller:?}");
    }
}

#[test]
fn a_pod_that_requires_its_own_waypoint_is_closed_on_every_port() {
    let text = required("cart-1, namespace").replacen(
        "name: cart-1, namespace: shop, labels: {",
        "name: cart-1, namespace: shop, labels: {istio.io/use-waypoint: other, ",
        1,
    );
    let serving = |what: &str| {
        text.replace(
            "kind: Gateway, metadata: {name: other, namespace: shop",
            &format!(
                "kind: Gateway, metadata: {{name: other, namespace: shop, labels: {{istio.io/waypoint-for: {what}}}"
            ),
        )
    };
    let snapshot = mesh(&serving("workload")).snapshot();
    for port in [8080, 9090, 1] {
        assert!(ask(&snapshot, OTHER, port, None).allowed && !ask(&snapshot, FRONT, port, None).allowed, "{port}");
    }
    let snapshot = mesh(&serving("service")).snapshot();
    assert!(ask(&snapshot, FRONT, 9090, None).allowed, "nothing addressed to workloads goes through that waypoint");
}

#[test]
fn who_is_behind_a_bound_service_follows_every_change() {
    let mut state = mesh(&required("cart, namespace"));
    let closed = |state: &crate::mesh::Mesh| !ask(&state.snapshot(), FRONT, 8080, None).allowed;
    assert!(closed(&state));
    let change = |from: &str, to: &str| crate::mesh::tests::objects(&required("cart, namespace").replacen(from, to, 1));
    state.apply(change("labels: {app: cart}", "labels: {app: none}"));
    assert!(!closed(&state), "it is behind the service no more");
    state.apply(change("", ""));
    assert!(closed(&state));
    state.apply(change("istio.io/use-waypoint: wp", "a: b"));
    assert!(!closed(&state), "the service has no waypoint any more");
    state.apply(change("", ""));
    assert!(closed(&state));
    let service = culvert_api::ObjectRef::new(culvert_api::Kind::Service, "shop", "cart");
    state.apply([crate::mesh::Change::Remove(service)]);
    assert!(!closed(&state), "the service is gone");
}

#[test]
fn a_value_that_is_neither_true_nor_false_requires_and_is_reported() {
    let state = mesh(&required("cart, namespace").replace("\"true\"", "\"yes\""));
    assert!(!ask(&state.snapshot(), FRONT, 8080, None).allowed);
    let findings: Vec<_> = state.snapshot().findings().map(|(_, finding)| finding.to_string()).collect();
    assert_eq!(
        findings,
        [
            "error: Service shop/cart: metadata.annotations[culvert.dev/require-waypoint]: \"yes\" is neither \"true\" nor \
          \"false\": read as \"true\""
        ]
    );
}
