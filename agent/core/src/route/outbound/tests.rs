use std::collections::HashMap;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::mesh::Mesh;
use crate::mesh::tests::objects;

/// Two nodes in two zones, a client on the first, and a service for each case.
const MESH: &str = include_str!("tests.yaml");

fn snapshot_of(yaml: &str) -> Arc<Snapshot> {
    let mut mesh = Mesh::new();
    mesh.apply(objects(yaml));
    mesh.snapshot()
}

/// What becomes of a connection of pod `source` to `dst`, in one line.
fn route(snapshot: &Snapshot, source: &str, dst: &str) -> String {
    let (namespace, name) = source.split_once('/').unwrap();
    let source = snapshot.pod(namespace, name).unwrap();
    let dst = OriginalDst::new(dst.parse().unwrap());
    match outbound(snapshot, source, dst, &mut SmallRng::seed_from_u64(1)) {
        Ok(outbound) => describe(&outbound),
        Err(refusal) => format!("refused: {refusal}"),
    }
}

fn describe(outbound: &Outbound) -> String {
    let service = outbound.service.as_ref().map(|service| format!(" for {}", service.key)).unwrap_or_default();
    match &outbound.upstream {
        Upstream::Hbone { peer, authority, expected, through } => {
            let expected: Vec<_> = expected.iter().map(|identity| identity.principal()).collect();
            let through = if *through == Hop::Waypoint { "waypoint" } else { "workload" };
            format!("{through} {peer} asked for {authority} as {}{service}", expected.join(" or "))
        }
        Upstream::Tcp { peer } => format!("tcp {peer}{service}"),
        Upstream::Resolve { hostname, port } => format!("resolve {hostname}:{port}{service}"),
    }
}

#[test]
fn every_case_goes_where_it_should() {
    let snapshot = snapshot_of(MESH);
    let client = "cluster.local/ns/a/sa/client";
    let server = "cluster.local/ns/a/sa/server";
    let waypoint = "cluster.local/ns/a/sa/waypoint";
    for (fact, source, dst, expected) in [
        (
            "a service's address goes to the endpoint's tunnel, by the endpoint's port",
            "a/client",
            "10.96.0.1:80",
            format!("workload 10.0.1.1:15008 asked for 10.0.1.1:8080 as {server} for a/server.a.svc.cluster.local"),
        ),
        (
            "an IPv6 service address goes to the endpoint's IPv6 address",
            "a/client",
            "[fd96::1]:80",
            format!(
                "workload [fd00::1:1]:15008 asked for [fd00::1:1]:8080 as {server} for a/server.a.svc.cluster.local"
            ),
        ),
        (
            "a mapped address is the IPv4 address",
            "a/client",
            "[::ffff:10.96.0.1]:80",
            format!("workload 10.0.1.1:15008 asked for 10.0.1.1:8080 as {server} for a/server.a.svc.cluster.local"),
        ),
        (
            "a pod's own address goes to its tunnel",
            "a/client",
            "10.0.1.1:1234",
            format!("workload 10.0.1.1:15008 asked for 10.0.1.1:1234 as {server}"),
        ),
        ("a pod outside the mesh is dialled in the clear", "a/client", "10.0.9.1:80", "tcp 10.0.9.1:80".into()),
        ("an unknown address is passed through", "a/client", "203.0.113.9:443", "tcp 203.0.113.9:443".into()),
        (
            "an endpoint in the node's network is dialled in the clear",
            "a/client",
            "10.96.0.2:80",
            "tcp 192.168.0.1:80 for a/host.a.svc.cluster.local".into(),
        ),
        ("a node's address is passed through", "a/client", "192.168.0.1:80", "tcp 192.168.0.1:80".into()),
        (
            "a bound service goes to its waypoint, whatever the port, by its original address",
            "a/client",
            "10.96.0.3:9999",
            format!("waypoint 10.0.2.1:15008 asked for 10.96.0.3:9999 as {waypoint} for a/bound.a.svc.cluster.local"),
        ),
        (
            "a workload whose waypoint serves services only is dialled directly",
            "a/client",
            "10.0.1.5:80",
            format!("workload 10.0.1.5:15008 asked for 10.0.1.5:80 as {server}"),
        ),
        (
            "a workload whose waypoint serves workloads goes through it",
            "a/client",
            "10.0.1.6:80",
            "waypoint 10.0.2.2:15008 asked for 10.0.1.6:80 as cluster.local/ns/a/sa/default".into(),
        ),
        (
            "a waypoint does not go through a workload's waypoint again",
            "a/workloads-1",
            "10.0.1.6:80",
            format!("workload 10.0.1.6:15008 asked for 10.0.1.6:80 as {server}"),
        ),
        (
            "a waypoint does not go through itself",
            "a/waypoint-1",
            "10.96.0.3:80",
            format!("workload 10.0.1.5:15008 asked for 10.0.1.5:80 as {server} for a/bound.a.svc.cluster.local"),
        ),
        (
            "the waypoint's own service is not behind a waypoint",
            "a/client",
            "10.96.0.10:15008",
            "tcp 10.0.2.1:15008 for a/waypoint.a.svc.cluster.local".into(),
        ),
        (
            "a waypoint of another namespace that lets everyone in is used",
            "a/client",
            "10.96.1.1:80",
            format!("waypoint 10.0.2.1:15008 asked for 10.96.1.1:80 as {waypoint} for b/remote.b.svc.cluster.local"),
        ),
        (
            "a missing waypoint is bypassed where the namespace says so",
            "a/client",
            "10.96.2.1:80",
            "tcp 10.0.3.1:80 for lax/s.lax.svc.cluster.local".into(),
        ),
        (
            "an address of resolution NONE is dialled as it is",
            "a/client",
            "198.51.100.5:1",
            "tcp 198.51.100.5:1 for a/none.example.com".into(),
        ),
        (
            "a pod behind an address of resolution NONE is still spoken to by its tunnel",
            "a/client",
            "10.0.7.1:80",
            format!("workload 10.0.7.1:15008 asked for 10.0.7.1:80 as {server} for a/none.example.com"),
        ),
        (
            "a name without endpoints is resolved itself, with the target port",
            "a/client",
            "240.240.0.1:443",
            "resolve dns.example.com:8443 for a/dns.example.com".into(),
        ),
        (
            "an endpoint that is a name is resolved",
            "a/client",
            "240.240.0.2:443",
            "resolve backend.example.net:443 for a/dns2.example.com".into(),
        ),
        (
            "an address in an EndpointSlice that is a pod's is spoken to by the pod's tunnel",
            "a/client",
            "10.96.0.4:80",
            format!("workload 10.0.1.1:15008 asked for 10.0.1.1:8080 as {server} for a/manual.a.svc.cluster.local"),
        ),
        (
            "a service may name further identities",
            "a/client",
            "198.18.0.1:80",
            format!(
                "workload 10.0.1.1:15008 asked for 10.0.1.1:80 as {server} or other/ns/x/sa/y for a/static.example.com"
            ),
        ),
        (
            "endpoints that are not ready are used where the service publishes them",
            "a/client",
            "10.96.0.6:80",
            format!(
                "workload 10.0.1.7:15008 asked for 10.0.1.7:80 as {server} for a/unready-published.a.svc.cluster.local"
            ),
        ),
        (
            "a node-local service uses the endpoint on the node",
            "a/client",
            "10.96.0.7:80",
            format!("workload 10.0.1.3:15008 asked for 10.0.1.3:80 as {client} for a/local.a.svc.cluster.local"),
        ),
        (
            "the nearest endpoint is used",
            "a/client",
            "10.96.0.8:80",
            format!("workload 10.0.1.3:15008 asked for 10.0.1.3:80 as {client} for a/zoned.a.svc.cluster.local"),
        ),
    ] {
        assert_eq!(route(&snapshot, source, dst), expected, "{fact}");
    }
}

#[test]
fn every_refusal_says_what_to_check() {
    let snapshot = snapshot_of(MESH);
    for (fact, source, dst, parts) in [
        ("a missing waypoint", "a/client", "10.96.0.9:80", &["service a/lost", "a/nowhere", "does not exist"][..]),
        ("a waypoint that is not for this namespace", "a/client", "10.96.1.2:80", &["b/private", "allowedRoutes"]),
        ("a waypoint without pods", "a/client", "10.96.0.11:80", &["a/empty", "cannot be reached", "no such service"]),
        ("a missing waypoint of a workload", "a/client", "10.0.1.8:80", &["workload a/lost-1", "does not exist"]),
        ("a port that the service lacks", "a/client", "10.96.0.1:81", &["no TCP port 81", "it has 80, 443"]),
        ("no endpoints", "a/client", "10.96.0.12:80", &["it has none", "selector"]),
        ("none ready", "a/client", "10.96.0.5:80", &["none of 1 is ready"]),
        ("a named port that no pod has", "a/client", "10.96.0.1:443", &["\"tls\"", "targetPort"]),
        ("none on the node", "a/server-1", "10.96.0.7:80", &["node \"n2\"", "internalTrafficPolicy"]),
        ("another network", "a/client", "10.96.0.13:80", &["network \"far\""]),
        ("a workload in another network", "a/client", "10.0.1.9:80", &["a/far-1", "network \"far\""]),
    ] {
        let route = route(&snapshot, source, dst);
        assert!(route.starts_with("refused: ") && parts.iter().all(|part| route.contains(part)), "{fact}: {route}");
    }
}

#[test]
fn unknown_addresses_are_refused_under_registry_only() {
    let options = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: culvert, namespace: istio-system}\n\
                   data: {mesh: \"outboundTrafficPolicy: {mode: REGISTRY_ONLY}\"}\n";
    let snapshot = snapshot_of(&format!("{MESH}{options}"));
    let unknown = route(&snapshot, "a/client", "203.0.113.9:443");
    assert!(unknown.contains("203.0.113.9:443") && unknown.contains("REGISTRY_ONLY"), "{unknown}");
    assert_eq!(route(&snapshot, "a/client", "198.51.100.5:1"), "tcp 198.51.100.5:1 for a/none.example.com");
    assert_eq!(route(&snapshot, "a/client", "10.0.9.1:80"), "tcp 10.0.9.1:80");
}

#[test]
fn load_is_shared_by_weight() {
    let snapshot = snapshot_of(MESH);
    let source = snapshot.pod("a", "client").unwrap();
    let dst = OriginalDst::new("198.18.0.2:80".parse().unwrap());
    let mut rng = SmallRng::seed_from_u64(7);
    let mut counts: HashMap<String, u32> = HashMap::new();
    for _ in 0..4000 {
        *counts.entry(describe(&outbound(&snapshot, source, dst, &mut rng).unwrap())).or_default() += 1;
    }
    let count = |ip: &str| counts.iter().find(|(route, _)| route.contains(ip)).map_or(0, |(_, count)| *count);
    // 3 : 1, with a margin of about six standard deviations.
    assert!((2830..3170).contains(&count("192.0.2.1:")), "{counts:?}");
    assert_eq!(count("192.0.2.1:") + count("192.0.2.2:"), 4000);
}
