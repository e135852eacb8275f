//! Several VirtualServices, and whose count.

use super::*;

/// A VirtualService that answers everything, or one path, with a status.
fn answering(namespace: &str, name: &str, age: &str, status: u16, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: '20{age}-01-01T00:00:00Z'}}\nspec: {{{spec}, http: [{{match: [{{uri: {{prefix: /{name}}}}}], \
         directResponse: {{status: {status}}}}}]}}\n---\n"
    )
}

fn outcome(objects: &str, path: &str) -> String {
    let snapshot = with(objects);
    describe(&decide(&snapshot, &format!("GET http://cart{path}"), &[], 1))
}

#[test]
fn another_tenants_virtual_service_never_captures_a_host() {
    for spec in [
        "hosts: [cart.shop.svc.cluster.local]",
        "hosts: ['*.shop.svc.cluster.local']",
        "hosts: ['*.local'], exportTo: ['*']",
        "hosts: [cart.shop.svc.cluster.local], exportTo: [shop, infra]",
    ] {
        let objects = answering("evil", "a", "20", 418, spec);
        let snapshot = with(&objects);
        assert_eq!(describe(&decide(&snapshot, "GET http://cart/a", &[], 1)), "-: cart.shop:80", "{spec}");
        assert!(findings(&snapshot).iter().any(|line| line.contains("evil/a") && line.contains("namespace shop")));
    }
}

#[test]
fn the_services_own_namespace_and_its_waypoints_route_it() {
    let full = "hosts: [cart.shop.svc.cluster.local]";
    assert_eq!(outcome(&answering("shop", "a", "20", 201, "hosts: [cart]"), "/a"), "0: 201 b\"\"");
    assert_eq!(outcome(&answering("infra", "a", "20", 201, full), "/a"), "0: 201 b\"\"");
    assert_eq!(
        outcome(&answering("shop", "a", "20", 201, "hosts: ['*.shop.svc.cluster.local']"), "/a"),
        "0: 201 b\"\""
    );
    // A short name is a host of its own namespace.
    assert_eq!(outcome(&answering("infra", "a", "20", 201, "hosts: [cart]"), "/a"), "-: cart.shop:80");
}

#[test]
fn what_is_not_exported_to_the_waypoint_does_not_count_there() {
    for (export, counts) in [("['*']", true), ("[infra]", true), ("[.]", false), ("[other]", false), ("['~']", false)] {
        let objects = answering("shop", "a", "20", 201, &format!("hosts: [cart], exportTo: {export}"));
        let expected = if counts { "0: 201 b\"\"" } else { "-: cart.shop:80" };
        assert_eq!(outcome(&objects, "/a"), expected, "{export}");
    }
}

#[test]
fn what_is_for_gateways_only_is_not_for_the_mesh() {
    for (gateways, counts) in [("[ingress]", false), ("[ingress, mesh]", true), ("[]", true)] {
        let objects = answering("shop", "a", "20", 201, &format!("hosts: [cart], gateways: {gateways}"));
        let expected = if counts { "0: 201 b\"\"" } else { "-: cart.shop:80" };
        assert_eq!(outcome(&objects, "/a"), expected, "{gateways}");
    }
}

#[test]
fn several_for_a_host_are_tried_one_after_the_other_the_oldest_first() {
    let two = [
        answering("shop", "a", "22", 201, "hosts: [cart]"),
        answering("shop", "ab", "21", 202, "hosts: [cart]"),
        answering("shop", "abc", "20", 203, "hosts: ['*.shop.svc.cluster.local']"),
    ]
    .concat();
    for (path, expected) in [("/abc", "202"), ("/a", "201"), ("/x", "404")] {
        assert!(outcome(&two, path).contains(expected), "{path} {}", outcome(&two, path));
    }
    // One for every request keeps those after it from being tried, and they are told.
    let catch_all = two
        + &rules("- directResponse: {status: 299}")
            .replace("{name: cart,", "{name: all, creationTimestamp: '2019-01-01T00:00:00Z',");
    let snapshot = with(&catch_all);
    assert_eq!(describe(&decide(&snapshot, "GET http://cart/a", &[], 1)), "0: 299 b\"\"");
    let told = findings(&snapshot).iter().filter(|line| line.contains("is never reached for cart")).count();
    assert_eq!(told, 3);
}

#[test]
fn a_change_of_a_virtual_service_is_seen_at_once_and_its_removal_too() {
    use crate::mesh::Change;
    use crate::mesh::tests::objects;
    let mut mesh = mesh(MESH);
    let ask = |mesh: &crate::mesh::Mesh| describe(&decide(&mesh.snapshot(), "GET http://cart/a", &[], 1));
    assert_eq!(ask(&mesh), "-: cart.shop:80");
    mesh.apply(objects(&answering("shop", "a", "20", 201, "hosts: [cart]")));
    assert_eq!(ask(&mesh), "0: 201 b\"\"");
    mesh.apply(objects(&answering("shop", "a", "20", 202, "hosts: ['*.shop.svc.cluster.local']")));
    assert_eq!(ask(&mesh), "0: 202 b\"\"");
    mesh.apply(objects(&answering("shop", "a", "20", 202, "hosts: [stock]")));
    assert_eq!(ask(&mesh), "-: cart.shop:80");
    mesh.apply(objects(&answering("infra", "a", "20", 203, "hosts: [cart.shop.svc.cluster.local]")));
    assert_eq!(ask(&mesh), "0: 203 b\"\"");
    // Whose waypoint it is decides whose rules count.
    mesh.apply(objects(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}",
    ));
    assert_eq!(ask(&mesh), "-: cart.shop:80");
    mesh.apply(objects(MESH));
    assert_eq!(ask(&mesh), "0: 203 b\"\"");
    let object = culvert_api::ObjectRef::new(culvert_api::Kind::VirtualService, "infra", "a");
    mesh.apply([Change::Remove(object)]);
    assert_eq!(ask(&mesh), "-: cart.shop:80");
}

#[test]
fn the_same_objects_route_alike_in_whatever_order_they_came() {
    use crate::mesh::tests::objects;
    let all = objects(&format!("{MESH}---\n{}", answering("shop", "a", "20", 201, "hosts: [cart]")));
    let mut reversed = crate::mesh::Mesh::new();
    for change in all.into_iter().rev() {
        reversed.apply([change]);
    }
    assert_eq!(describe(&decide(&reversed.snapshot(), "GET http://cart/a", &[], 1)), "0: 201 b\"\"");
}

#[test]
fn another_cluster_domain_makes_other_hosts() {
    let objects = answering("shop", "a", "20", 201, "hosts: [cart]")
        + "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: culvert, namespace: istio-system}\n\
           data: {mesh: 'culvert: {cluster-domain: my.domain}'}\n";
    let snapshot = with(&objects);
    assert_eq!(describe(&decide(&snapshot, "GET http://cart.shop.svc.my.domain/a", &[], 1)), "0: 201 b\"\"");
}
