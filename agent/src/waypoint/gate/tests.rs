//! What becomes of requests, in Istio's order.

pub(super) mod reach;
mod tokens;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwap;
use culvert_core::identity::Identity;
use culvert_core::mesh::{Change, Mesh, Snapshot};
use culvert_core::policy::RequestTarget;
use culvert_core::service::Service;
use culvert_core::workload::NamespacedName;
use http::Request;
use http::request::Parts;

pub(super) use self::reach::To;
use super::*;
use crate::identity::TokioClock;

/// A mesh of the objects of a YAML text.
pub(super) fn mesh(yaml: &str) -> Arc<Snapshot> {
    let parsed = culvert_api::yaml::parse(yaml.as_bytes());
    assert_eq!(parsed.mistakes, [], "{yaml}");
    let mut mesh = Mesh::new();
    mesh.apply(parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object)));
    mesh.snapshot()
}

const MESH: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {selector: {app: cart}, clusterIP: 10.96.0.1, ports: [{name: http, port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: other, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {selector: {app: other}, clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: opa, namespace: shop},
 spec: {selector: {app: opa}, clusterIP: 10.96.0.3, ports: [{name: http, port: 8000}, {name: grpc, port: 9000}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: wp, namespace: shop, annotations: {}},
 spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
";

/// When tests happen, in seconds since 1970.
pub(super) const NOW: u64 = 1_700_000_000;

/// A waypoint's gate, and the mesh it is in.
pub(super) struct World {
    pub(super) gate: Gate,
    pub(super) snapshot: Arc<Snapshot>,
    client: Option<Identity>,
}

impl World {
    /// The mesh with these objects beside it. Servers of the mesh are reached by `reach`.
    pub(super) fn new(objects: &[String], reach: To) -> Self {
        Self::of(&format!("{MESH}{}", objects.concat()), reach)
    }

    pub(super) fn of(yaml: &str, reach: To) -> Self {
        let snapshot = mesh(yaml);
        let clock = Arc::new(TokioClock::starting_at(UNIX_EPOCH + Duration::from_secs(NOW)));
        let gate = Gate::new(Arc::new(ArcSwap::new(snapshot.clone())), Arc::new(reach), clock);
        Self { gate, snapshot, client: Some(Identity::new("cluster.local", "shop", "front")) }
    }

    fn service(&self, name: &str) -> Arc<Service> {
        self.snapshot.services().find(|service| *service.name == *name).unwrap().clone()
    }

    /// What becomes of a request of `service`.
    pub(super) async fn ask(&self, service: &str, request: Request<Body>) -> (Verdict, Parts, Body) {
        let own = Identity::new("cluster.local", "shop", "wp");
        let session = SessionFacts {
            principal: self.client.as_ref(),
            client_address: "10.0.0.1:4000".parse().unwrap(),
            destination: "10.96.0.1:80".parse().unwrap(),
            sni: None,
            own: Some(&own),
        };
        let gateway = NamespacedName::new("shop", "wp");
        let service = self.service(service);
        let target = RequestTarget { gateway: &gateway, service: Some(&service) };
        let (mut head, mut body) = request.into_parts();
        let verdict = self.gate.check(&self.snapshot, target, &session, &mut head, &mut body).await;
        (verdict, head, body)
    }

    /// What becomes of a request of the cart that has this head.
    pub(super) async fn cart(&self, request: http::request::Builder) -> (Verdict, Parts) {
        let (verdict, head, _) = self.ask("cart", request.body(Body::empty()).unwrap()).await;
        (verdict, head)
    }
}

pub(super) fn get(path: &str) -> http::request::Builder {
    Request::get(format!("http://cart.shop{path}"))
}

pub(super) fn allowed(verdict: Verdict) -> Allowed {
    match verdict {
        Verdict::Allow(allowed) => allowed,
        Verdict::Deny(reply) => panic!("{reply:?}"),
    }
}

/// Status, body and details of a refusal.
pub(super) fn refused(verdict: Verdict) -> (u16, String, String) {
    match verdict {
        Verdict::Allow(allowed) => panic!("{allowed:?}"),
        Verdict::Deny(reply) => {
            (reply.status.as_u16(), String::from_utf8(reply.body.to_vec()).unwrap(), reply.details.into_owned())
        }
    }
}

/// A policy of the cart.
pub(super) fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: {name}, namespace: shop, \
         annotations: {{istio.io/dry-run: \"{}\"}}}}, spec: {{targetRefs: [{{kind: Service, name: cart}}], {spec}}}}}\n",
        name.starts_with("dry")
    )
}

#[tokio::test]
async fn to_grpc_a_refusal_is_a_status_of_its_own() {
    use crate::waypoint::http::reply::Asked;
    let world = World::new(&[policy("d", "action: DENY, rules: [{}]")], To::nowhere());
    let Verdict::Deny(reply) = world.cart(get("/")).await.0 else { panic!("allowed") };
    let response = reply.into_response(Asked { grpc: true, ..Asked::default() });
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"7".parse().unwrap()));
    assert_eq!(response.headers()["grpc-message"], RBAC);
}

const RBAC: &str = "RBAC: access denied";

#[tokio::test]
async fn where_nothing_applies_a_request_goes_on_as_it_is() {
    let world = World::new(&[policy("p", "rules: []")], To::nowhere());
    let request = Request::get("http://other.shop/a/../b?c").body(Body::empty()).unwrap();
    let (verdict, head, _) = world.ask("other", request).await;
    allowed(verdict);
    assert_eq!(head.uri, "http://other.shop/a/../b?c");
}

#[tokio::test]
async fn policies_decide_as_envoy_words_it() {
    let allow = "rules: [{to: [{operation: {methods: [GET], paths: [/public*]}}]}]";
    let deny = "action: DENY, rules: [{to: [{operation: {paths: [/public/secret]}}]}]";
    let world = World::new(&[policy("a", allow), policy("d", deny)], To::nowhere());
    allowed(world.cart(get("/public/x?y")).await.0);
    let (status, body, details) = refused(world.cart(get("/public/secret")).await.0);
    assert_eq!((status, &*body), (403, RBAC));
    assert_eq!(details, "rbac_access_denied_matched_policy[ns[shop]-policy[d]-rule[0]]");
    let (status, body, details) = refused(world.cart(get("/other")).await.0);
    assert_eq!((status, &*body, &*details), (403, RBAC, "rbac_access_denied_matched_policy[none]"));
    let post = Request::post("http://cart.shop/public/x");
    assert_eq!(refused(world.cart(post).await.0).0, 403);
}

#[tokio::test]
async fn a_path_is_judged_and_sent_on_in_one_spelling() {
    let deny = "action: DENY, rules: [{to: [{operation: {paths: ['/admin/{*}', '/admin']}}]}]";
    let world = World::new(&[policy("d", deny)], To::nowhere());
    for path in ["/admin/x", "/%61dmin/x", "/a/../admin/x", "/admin/./x", "/a/%2e%2e/admin", "/.//../admin/x?q=1"] {
        assert_eq!(refused(world.cart(get(path)).await.0).0, 403, "{path}");
    }
    for (path, sent) in [("/admin/x/y", "/admin/x/y"), ("/b/../c?d=/../e", "/c?d=/../e"), ("/%7Ea", "/~a")] {
        let (verdict, head) = world.cart(get(path)).await;
        allowed(verdict);
        assert_eq!(head.uri.path_and_query().unwrap().as_str(), sent);
        assert_eq!(head.uri.authority().unwrap(), "cart.shop");
    }
    assert_eq!(refused(world.cart(get("/a%00")).await.0).0, 400);
}

#[tokio::test]
async fn policies_that_may_be_missing_are_taken_to_deny() {
    let mut mesh = Mesh::new();
    let parsed = culvert_api::yaml::parse(MESH.as_bytes());
    mesh.set_completeness(false, Some("a file was never read".into()));
    mesh.apply(parsed.objects.into_iter().map(|(object, _)| Change::Upsert(object)));
    let world = World { snapshot: mesh.snapshot(), ..World::new(&[], To::nowhere()) };
    assert_eq!(refused(world.cart(get("/")).await.0).0, 403);
}

#[tokio::test]
async fn a_change_of_the_mesh_counts_for_the_next_request() {
    let closed = World::new(&[policy("d", "action: DENY, rules: [{}]")], To::nowhere());
    let open = World::new(&[], To::nowhere());
    for _ in 0..2 {
        assert_eq!(refused(closed.cart(get("/")).await.0).0, 403);
        allowed(open.cart(get("/")).await.0);
    }
}

#[tokio::test]
async fn audit_marks_and_what_is_on_trial_decides_nothing() {
    let world = World::new(
        &[policy("a", "action: AUDIT, rules: [{}]"), policy("dry", "action: DENY, rules: [{}]")],
        To::nowhere(),
    );
    let audit = allowed(world.cart(get("/")).await.0).audit.unwrap();
    assert_eq!(audit.policy.name.to_string(), "shop/a");
}

#[tokio::test]
async fn where_a_request_first_came_from_is_what_the_last_proxy_says() {
    let deny = "action: DENY, rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}]";
    let world = World::new(&[policy("d", deny)], To::nowhere());
    let from = |value: &str| get("/").header("x-forwarded-for", value);
    for value in ["203.0.113.9", "1.2.3.4, 203.0.113.9", "1.2.3.4,203.0.113.9:80"] {
        assert_eq!(refused(world.cart(from(value)).await.0).0, 403, "{value}");
    }
    for value in ["203.0.113.9, 1.2.3.4", "nobody", ""] {
        allowed(world.cart(from(value)).await.0);
    }
}

#[tokio::test]
async fn a_client_cannot_say_who_it_is_and_the_waypoint_says_it_where_it_is_told_to() {
    let forged = || get("/").header("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/shop/sa/admin");
    let silent = World::new(&[], To::nowhere());
    let (verdict, head) = silent.cart(forged()).await;
    assert!(allowed(verdict).reroute, "a route must not be chosen by what was forged");
    assert!(!allowed(silent.cart(get("/")).await.0).reroute);
    assert!(!head.headers.contains_key("x-forwarded-client-cert"));
    let annotated =
        MESH.replace("annotations: {}", "annotations: {ambient.istio.io/xfcc-include-client-identity: \"true\"}");
    let telling = World::of(&annotated, To::nowhere());
    let (_, head) = telling.cart(forged()).await;
    assert_eq!(
        head.headers.get_all("x-forwarded-client-cert").iter().collect::<Vec<_>>(),
        ["By=spiffe://cluster.local/ns/shop/sa/wp;URI=spiffe://cluster.local/ns/shop/sa/front"]
    );
    let nobody = World { client: None, ..telling };
    assert!(!nobody.cart(forged()).await.1.headers.contains_key("x-forwarded-client-cert"));
}

/// A limit on what every request pays, whether anything applies to it or not.
#[test]
fn what_is_asked_of_nobody_takes_little_room() {
    let world = World::new(&[], To::nowhere());
    let (mut head, mut body) = Request::get("http://cart.shop/").body(Body::empty()).unwrap().into_parts();
    let gateway = NamespacedName::new("shop", "wp");
    let session = SessionFacts {
        principal: None,
        client_address: "10.0.0.1:4000".parse().unwrap(),
        destination: "10.96.0.1:80".parse().unwrap(),
        sni: None,
        own: None,
    };
    let target = RequestTarget { gateway: &gateway, service: None };
    let size = size_of_val(&world.gate.check(&world.snapshot, target, &session, &mut head, &mut body));
    assert!(size <= 3072, "{size} bytes a request");
}
