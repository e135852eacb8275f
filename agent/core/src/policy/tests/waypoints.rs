//! Which policies apply to what a waypoint is asked for, and which to nothing.

use culvert_api::yaml;
use http::HeaderMap;

use super::*;
use crate::mesh::{Change, Mesh, Snapshot};
use crate::service::Service;

const MESH: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: bare, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: other, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}},
 spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: ext, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {hosts: [api.example], addresses: [10.97.0.1], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: wp, namespace: shop},
 spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
";

fn policy(name: &str, namespace: &str, targets: &str) -> String {
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: \
         {namespace}}}, spec: {{{targets}}}}}\n"
    )
}

fn mesh(policies: &[String]) -> Arc<Snapshot> {
    let text = format!("{MESH}{}", policies.concat());
    let parsed = yaml::parse(text.as_bytes());
    assert!(parsed.mistakes.is_empty(), "{:?}", parsed.mistakes);
    let mut mesh = Mesh::new();
    mesh.apply(parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object)));
    mesh.snapshot()
}

fn service(snapshot: &Snapshot, namespace: &str, name: &str) -> Arc<Service> {
    let found = snapshot.services().find(|s| *s.key.namespace == *namespace && *s.name == *name);
    found.unwrap_or_else(|| panic!("{namespace}/{name}")).clone()
}

/// The names of the policies that apply at shop/wp for a service, or for none.
fn at(snapshot: &Snapshot, service: Option<&Service>) -> Vec<String> {
    let gateway = NamespacedName::new("shop", "wp");
    let policies = snapshot.policies_at(RequestTarget { gateway: &gateway, service });
    policies.iter().map(|policy| policy.name.to_string()).collect()
}

const GATEWAY: &str = "group: gateway.networking.k8s.io, kind: Gateway";
const CLASS: &str = "group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint";

#[test]
fn a_policy_applies_to_its_targets_and_to_nothing_else() {
    let snapshot = mesh(&[
        policy("all", "istio-system", &format!("targetRefs: [{{{CLASS}}}]")),
        policy("gw", "shop", &format!("targetRefs: [{{{GATEWAY}, name: wp}}]")),
        policy("cart", "shop", "targetRefs: [{kind: Service, name: cart}]"),
        policy("one", "shop", "targetRef: {group: core, kind: Service, name: bare}"),
        policy("ext", "shop", "targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: ext}]"),
        policy("both", "shop", &format!("targetRefs: [{{kind: Service, name: cart}}, {{{GATEWAY}, name: wp}}]")),
        policy("foreign", "other", "targetRefs: [{kind: Service, name: cart}]"),
        policy("foreign-gw", "other", &format!("targetRefs: [{{{GATEWAY}, name: wp}}]")),
        policy("namespace", "shop", ""),
        policy("selected", "shop", "selector: {matchLabels: {app: cart}}"),
        policy("mesh", "istio-system", ""),
        policy("class", "shop", &format!("targetRefs: [{{{CLASS}}}]")),
    ]);
    let names = |namespace, name| at(&snapshot, Some(&service(&snapshot, namespace, name)));
    assert_eq!(names("shop", "cart"), ["istio-system/all", "shop/both", "shop/cart", "shop/gw"]);
    assert_eq!(names("shop", "bare"), ["istio-system/all", "shop/both", "shop/gw", "shop/one"]);
    assert_eq!(names("shop", "ext"), ["istio-system/all", "shop/both", "shop/ext", "shop/gw"]);
    assert_eq!(
        names("other", "cart"),
        ["istio-system/all", "shop/both", "other/foreign", "shop/gw"],
        "its own namespace's"
    );
    assert_eq!(at(&snapshot, None), ["istio-system/all", "shop/both", "shop/gw"], "a workload by its own address");
}

#[test]
fn a_policy_that_goes_applies_no_more() {
    let text = policy("cart", "shop", "targetRefs: [{kind: Service, name: cart}]");
    let parsed = yaml::parse(format!("{MESH}{text}").as_bytes());
    let mut mesh = Mesh::new();
    mesh.apply(parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object)));
    let cart = service(&mesh.snapshot(), "shop", "cart");
    assert_eq!(at(&mesh.snapshot(), Some(&cart)), ["shop/cart"]);
    mesh.apply([Change::Remove(culvert_api::ObjectRef::new(culvert_api::Kind::AuthorizationPolicy, "shop", "cart"))]);
    assert_eq!(at(&mesh.snapshot(), Some(&cart)), [""; 0]);
}

#[test]
fn nodes_do_not_enforce_policies_with_targets() {
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: cart, namespace: shop}, spec: {nodeName: n, \
               serviceAccountName: cart}, status: {podIP: 10.0.0.1}}\n";
    let deny = policy("cart", "shop", "targetRefs: [{kind: Service, name: cart}], action: DENY, rules: [{}]");
    let snapshot = mesh(&[pod.to_owned(), deny]);
    let workload = snapshot.pod("shop", "cart").unwrap();
    assert!(snapshot.policies_for(workload).is_empty());
    assert!(authorize(&snapshot, workload, &Caller::new("cluster.local/ns/shop/sa/a").call(), None).allowed);
}

#[test]
fn a_target_that_nothing_enforces_is_found_with_its_cure() {
    let snapshot = mesh(&[
        policy("good", "shop", "targetRefs: [{kind: Service, name: cart}]"),
        policy("bare", "shop", "targetRefs: [{kind: Service, name: bare}]"),
        policy("gone", "shop", "targetRefs: [{kind: Service, name: nothing}]"),
        policy("refused", "other", "targetRefs: [{kind: Service, name: cart}]"),
        policy("gateway", "other", &format!("targetRefs: [{{{GATEWAY}, name: wp}}]")),
    ]);
    let mut found: Vec<_> = snapshot.unbound().map(|finding| finding.to_string()).collect();
    found.sort();
    insta::assert_snapshot!(found.join("\n"), @r"
    error: AuthorizationPolicy other/gateway: spec.targetRefs: not enforced for a target: Gateway wp in other is not there: create it, or correct targetRefs
    error: AuthorizationPolicy other/refused: spec.targetRefs: not enforced for a target: the waypoint shop/wp does not allow the namespace of Service cart in other to use it: see its allowedRoutes
    error: AuthorizationPolicy shop/bare: spec.targetRefs: not enforced for a target: Service bare in shop has no waypoint: label it, or its namespace, with istio.io/use-waypoint
    error: AuthorizationPolicy shop/gone: spec.targetRefs: not enforced for a target: Service nothing in shop is not there: create it, or correct targetRefs
    error: Service other/cart: metadata.labels[istio.io/use-waypoint]: the waypoint shop/wp does not allow the namespace of Service cart in other to use it: see its allowedRoutes
    ");
}

#[test]
fn where_objects_may_be_missing_nothing_is_allowed() {
    let mut mesh = Mesh::new();
    mesh.set_completeness(false, Some("AuthorizationPolicies are not read yet".into()));
    mesh.publish();
    let (caller, headers) = (Caller::new("cluster.local/ns/shop/sa/a"), HeaderMap::new());
    let facts = RequestFacts {
        call: caller.call(),
        remote_ip: caller.source_ip,
        sni: None,
        http: Some(HttpFacts { method: "GET", host: "a", path: "/", headers: &headers }),
        authenticated: None,
        agreed: &[],
    };
    let gateway = NamespacedName::new("shop", "wp");
    let target = RequestTarget { gateway: &gateway, service: None };
    let decision = authorize_request(&mesh.snapshot(), target, &facts);
    assert!(!decision.is_allowed() && matches!(decision.reason, Reason::Incomplete(_)));
    assert!(ask(&mesh.snapshot(), target, &facts).is_some_and(|decision| !decision.is_allowed()));
}
