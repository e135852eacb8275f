use super::*;
use crate::mesh::Mesh;
use crate::mesh::tests::{mesh, objects};

const SHOP: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: other}}
---
{apiVersion: v1, kind: Pod, metadata: {name: cart-1, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {serviceAccountName: cart}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Service, metadata: {name: cart, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: bare, namespace: shop}, spec: {clusterIP: 10.96.0.2, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: elsewhere, namespace: shop, labels: {istio.io/use-waypoint: wp2}},
 spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: guest, namespace: other, labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}},
 spec: {clusterIP: 10.96.0.4, ports: [{port: 80}]}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: mine, namespace: shop, labels: {istio.io/use-waypoint: wp}},
 spec: {hosts: [api.example], addresses: [10.97.0.1], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}}
---
{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: theirs, namespace: other},
 spec: {hosts: [api.example], addresses: [10.97.0.2], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}}
";

/// The waypoint `shop/wp`, with this label and these namespaces in `allowedRoutes`.
fn gateway(serves: &str, from: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: wp, namespace: shop, labels: \
         {{istio.io/waypoint-for: {serves}}}}}, spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, \
         port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: {from}}}}}}}]}}}}"
    )
}

fn shop(serves: &str, from: &str) -> Mesh {
    let mut mesh = mesh(SHOP);
    mesh.apply(objects(&gateway(serves, from)));
    mesh
}

/// What `shop/wp` makes of `authority`: who it is for, or the status and the reason.
fn asked(mesh: &Mesh, authority: &str) -> Result<String, (u16, String)> {
    let gateway = NamespacedName::new("shop", "wp");
    let authority = authority.parse().unwrap();
    match SessionTarget::resolve(&mesh.snapshot(), &gateway, &authority, "shop") {
        Ok(SessionTarget::Service(service, port)) => Ok(format!("{}:{port}", service.name)),
        Ok(SessionTarget::Workload(workload, port)) => Ok(format!("{}:{port}", workload.name)),
        Err(why) => Err((why.status(), why.to_string())),
    }
}

fn refused(mesh: &Mesh, authority: &str, status: u16, why: &str) {
    let (given, reason) = asked(mesh, authority).unwrap_err();
    assert!(given == status && reason.contains(why), "{authority}: {given} {reason}");
}

#[test]
fn what_is_bound_to_the_waypoint_is_served_by_address_and_by_name() {
    let all = shop("all", "All");
    for (authority, who) in [
        ("10.96.0.1:80", "cart:80"),
        ("cart.shop.svc.cluster.local:80", "cart:80"),
        ("10.0.0.1:8080", "cart-1:8080"),
        ("10.96.0.4:80", "guest:80"),
        ("10.97.0.1:443", "mine:443"),
        // Of two claims to the name, the one that is bound here.
        ("api.example:443", "mine:443"),
    ] {
        assert_eq!(asked(&all, authority), Ok(who.to_owned()), "{authority}");
    }
}

#[test]
fn what_is_not_bound_to_the_waypoint_is_refused() {
    let all = shop("all", "All");
    refused(&all, "10.96.0.2:80", 400, "shop/bare.shop.svc.cluster.local is bound to no waypoint, not to shop/wp");
    refused(&all, "10.96.0.3:80", 400, "is bound to waypoint shop/wp2");
    refused(&all, "10.97.0.2:443", 400, "bound to no waypoint");
    refused(&all, "192.0.2.1:80", 400, "belongs to no service");
    refused(&all, "nobody.example:80", 503, "belongs to no service");
    refused(&all, "10.96.0.1:81", 503, "no TCP port 81");
    refused(&all, "10.0.0.1:15008", 503, "proxies' own");
}

#[test]
fn a_waypoint_serves_what_it_is_for_and_those_that_it_allows() {
    let services = shop("service", "Same");
    assert_eq!(asked(&services, "10.96.0.1:80"), Ok("cart:80".to_owned()));
    refused(&services, "10.0.0.1:8080", 400, "istio.io/waypoint-for");
    refused(&services, "10.96.0.4:80", 400, "allowedRoutes");
    let workloads = shop("workload", "All");
    assert_eq!(asked(&workloads, "10.0.0.1:8080"), Ok("cart-1:8080".to_owned()));
    refused(&workloads, "10.96.0.1:80", 400, "istio.io/waypoint-for");
    refused(&mesh(SHOP), "10.96.0.1:80", 503, "no waypoint shop/wp");
}

#[test]
fn a_session_learns_that_its_target_is_served_no_longer() {
    let mut mesh = shop("all", "All");
    let gateway = NamespacedName::new("shop", "wp");
    let resolve = |mesh: &Mesh, authority: &str| {
        SessionTarget::resolve(&mesh.snapshot(), &gateway, &authority.parse().unwrap(), "shop").unwrap()
    };
    let (service, workload) = (resolve(&mesh, "10.96.0.1:80"), resolve(&mesh, "10.0.0.1:8080"));
    assert_eq!(service.renew(&mesh.snapshot(), &gateway), Ok(service.clone()));
    assert_eq!(workload.renew(&mesh.snapshot(), &gateway), Ok(workload.clone()));
    let unbound = SHOP.replace("{istio.io/use-waypoint: wp}", "{}");
    mesh.apply(objects(&unbound));
    for target in [&service, &workload] {
        assert!(matches!(target.renew(&mesh.snapshot(), &gateway), Err(NotServed::NotBound { .. })));
    }
    mesh.apply(["Service/cart", "Pod/cart-1"].map(|object| {
        let (kind, name) = object.split_once('/').unwrap();
        crate::mesh::Change::Remove(culvert_api::ObjectRef::new(
            culvert_api::Kind::of("v1", kind).unwrap(),
            "shop",
            name,
        ))
    }));
    for target in [&service, &workload] {
        assert!(matches!(target.renew(&mesh.snapshot(), &gateway), Err(NotServed::Unknown(_))));
    }
}
