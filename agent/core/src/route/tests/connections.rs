//! `tls` and `tcp`.

use super::*;
use crate::route::decide::route_connection;

fn object(rest: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cart, namespace: shop}}\n\
         spec:\n  hosts: [cart, '*.cart.example']\n{rest}\n"
    )
}

fn connect(rest: &str, sni: Option<&str>, port: u16) -> String {
    let snapshot = with(&object(rest));
    assert_eq!(findings(&snapshot), [""; 0], "{rest}");
    connect_in(&snapshot, sni, port)
}

fn connect_in(snapshot: &Snapshot, sni: Option<&str>, port: u16) -> String {
    let service = snapshot.services_by_hostname("cart.shop.svc.cluster.local").next().unwrap();
    let client = Some(&**snapshot.pod("shop", "front").unwrap());
    let origin = Origin { port, sni, client, ..origin_of(service) };
    match route_connection(snapshot, &origin, &mut SmallRng::seed_from_u64(1)) {
        Ok((to, rule)) => format!("{} {}", rule.map_or("-".to_owned(), |rule| rule.rule.to_string()), target(&to)),
        Err(why) => format!("{} {}", why.status(), why.flag()),
    }
}

#[test]
fn every_field_of_tcp_matches() {
    let rule =
        |matched: &str| format!("  tcp: [{{match: [{{{matched}}}], route: [{{destination: {{host: stock}}}}]}}]");
    for (matched, taken) in [
        ("port: 80", true),
        ("port: 81", false),
        ("destinationSubnets: [10.96.0.0/16]", true),
        ("destinationSubnets: [10.96.0.1]", true),
        ("destinationSubnets: [10.97.0.0/16, 'fd00::/8']", false),
        ("sourceSubnet: 10.0.0.0/8", true),
        ("sourceSubnet: 192.168.0.0/16", false),
        ("sourceNamespace: shop", true),
        ("sourceLabels: {app: nobody}", false),
        ("gateways: [mesh]", true),
        ("gateways: [ingress]", false),
        ("port: 80, sourceNamespace: other", false),
    ] {
        let expected = if taken { "0 stock.shop:8000" } else { "- cart.shop:80" };
        assert_eq!(connect(&rule(matched), None, 80), expected, "{matched}");
    }
    assert_eq!(
        connect("  tcp: [{route: [{destination: {host: stock, subset: v1}}]}]", None, 80),
        "0 stock.shop:8000/v1"
    );
}

#[test]
fn tls_is_routed_by_its_server_name_and_before_tcp() {
    let both = "  tls: [{match: [{sniHosts: [a.cart.example], port: 80}], route: [{destination: {host: stock}}]}]
  tcp: [{route: [{destination: {host: cart, port: {number: 81}}}]}]";
    for (sni, expected) in [
        (Some("a.cart.example"), "0 stock.shop:8000"),
        (Some("A.CART.example"), "0 stock.shop:8000"),
        (Some("b.cart.example"), "0 cart.shop:81"),
        (None, "0 cart.shop:81"),
    ] {
        assert_eq!(connect(both, sni, 80), expected, "{sni:?}");
    }
}

#[test]
fn connections_are_shared_out_by_weight() {
    let rest = "  tcp: [{route: [{destination: {host: stock}, weight: 0}, {destination: {host: cart}, weight: 5}]}]";
    assert_eq!(connect(rest, None, 81), "0 cart.shop:81");
}

#[test]
fn what_is_wrong_is_told() {
    for (rest, field, outcome) in [
        ("  tls: [{route: [{destination: {host: stock}}]}]", "spec.tls[0].match", "- cart.shop:80"),
        (
            "  tls: [{match: [{sniHosts: [evil.example]}], route: [{destination: {host: stock}}]}]",
            "spec.tls[0].match[0].sniHosts[0]",
            "- cart.shop:80",
        ),
        ("  tcp: [{match: [{port: 80}]}]", "spec.tcp[0].route", "500 NR"),
        (
            "  tcp: [{match: [{destinationSubnets: [x]}], route: [{destination: {host: stock}}]}]",
            "spec.tcp[0].match[0].destinationSubnets[0]",
            "- cart.shop:80",
        ),
        (
            "  tcp: [{match: [{sourceSubnet: x}], route: [{destination: {host: stock}}]}]",
            "spec.tcp[0].match[0].sourceSubnet",
            "- cart.shop:80",
        ),
        ("  tcp: [{route: [{destination: {host: a}, weight: -1}]}]", "spec.tcp[0].route", "500 NR"),
    ] {
        let snapshot = with(&object(rest));
        let fields: Vec<_> = snapshot.findings().map(|(_, finding)| finding.field.clone()).collect();
        assert_eq!(
            (fields, connect_in(&snapshot, Some("evil.example"), 80)),
            (vec![field.to_owned()], outcome.to_owned())
        );
    }
}
