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

/// The mesh with what is said otherwise of its objects, and further ones.
fn with(replace: &[(&str, &str)], more: &str) -> Arc<Snapshot> {
    let mut yaml = MESH.to_owned();
    for (from, to) in replace {
        assert!(yaml.contains(from), "{from}");
        yaml = yaml.replacen(from, to, 1);
    }
    snapshot_of(&(yaml + more))
}

const CANARY: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: trial, labels: {istio.io/dataplane-mode: ambient}}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: main, namespace: trial},
 spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: new, namespace: trial},
 spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: main-1, namespace: trial, labels: {gateway.networking.k8s.io/gateway-name: main}},
 spec: {nodeName: n1, serviceAccountName: main, containers: [{name: c}]},
 status: {phase: Running, podIPs: [{ip: 10.7.0.1}], conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: new-1, namespace: trial, labels: {gateway.networking.k8s.io/gateway-name: new}},
 spec: {nodeName: n1, serviceAccountName: new, containers: [{name: c}]},
 status: {phase: Running, podIPs: [{ip: 10.7.0.2}], conditions: [{type: Ready, status: 'True'}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: main, namespace: trial},
 spec: {selector: {gateway.networking.k8s.io/gateway-name: main}, clusterIP: 10.96.7.1, ports: [{port: 15008}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: new, namespace: trial},
 spec: {selector: {gateway.networking.k8s.io/gateway-name: new}, clusterIP: 10.96.7.2, ports: [{port: 15008}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: trial, LABELS},
 spec: {selector: {app: web}, clusterIP: 10.96.7.3, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: trial, labels: {app: web}},
 spec: {nodeName: n1, containers: [{name: c}]},
 status: {phase: Running, podIPs: [{ip: 10.7.0.3}], conditions: [{type: Ready, status: 'True'}]}}
";

/// How many of a hundred connections to the service go to the canary, and how many to the other waypoint.
fn shares(snapshot: &Snapshot, source: &str) -> (usize, usize) {
    let (namespace, name) = source.split_once('/').unwrap();
    let source = snapshot.pod(namespace, name).unwrap();
    let dst = OriginalDst::new("10.96.7.3:80".parse().unwrap());
    let peers: Vec<_> = (0..100)
        .map(|seed| match outbound(snapshot, source, dst, &mut SmallRng::seed_from_u64(seed)).unwrap().upstream {
            Upstream::Hbone { peer, .. } => peer.ip().to_string(),
            other => format!("{other:?}"),
        })
        .collect();
    let of = |ip: &str| peers.iter().filter(|peer| **peer == ip).count();
    (of("10.7.0.2"), of("10.7.0.1"))
}

#[test]
fn a_canary_takes_its_share_of_the_connections_and_none_where_it_cannot() {
    let labels = |canary: &str, weight: &str| {
        format!(
            "labels: {{istio.io/use-waypoint: main, istio.io/use-waypoint-canary: {canary}}}, \
             annotations: {{istio.io/use-waypoint-canary-weight: '{weight}'}}"
        )
    };
    let mesh = |labels: &str| with(&[], &CANARY.replace("LABELS", labels));
    for (canary, weight, expected) in [
        ("new", "30", 15..=45),
        ("new", "100", 100..=100),
        ("new", "0", 0..=0),
        ("new", "101", 0..=0),
        ("new", "half", 0..=0),
        ("main", "100", 0..=0),
        ("nobody", "100", 0..=0),
    ] {
        let (of_canary, of_main) = shares(&mesh(&labels(canary, weight)), "a/client");
        assert!(expected.contains(&of_canary), "{canary} {weight}: {of_canary}");
        assert_eq!(of_canary + of_main, 100, "{canary} {weight}: the rest goes to the other one");
    }
    let all = mesh(&labels("new", "100"));
    assert_eq!(shares(&all, "trial/new-1"), (0, 0), "neither goes through the other");
    assert_eq!(shares(&all, "trial/main-1"), (0, 0));
    let bad = mesh(&labels("new", "101"));
    let findings: Vec<_> = bad.unbound().map(|finding| finding.to_string()).collect();
    assert!(findings.iter().any(|line| line.contains("an integer from 0 to 100")), "{findings:?}");
}

#[test]
fn a_canary_of_the_namespace_is_for_services_that_have_their_waypoint_from_it() {
    let namespace = "{name: trial, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: main, \
                     istio.io/use-waypoint-canary: new}, annotations: {istio.io/use-waypoint-canary-weight: '100'}}";
    let mesh = |labels: &str| {
        let yaml = CANARY.replace("{name: trial, labels: {istio.io/dataplane-mode: ambient}}", namespace);
        with(&[], &yaml.replace("LABELS", labels))
    };
    assert_eq!(shares(&mesh("labels: {}"), "a/client"), (100, 0));
    assert_eq!(shares(&mesh("labels: {istio.io/use-waypoint: main}"), "a/client"), (0, 100));
    let workload = mesh("labels: {}").pod("trial", "web-1").unwrap().clone();
    assert_eq!(workload.waypoint.as_ref().unwrap().canary, None, "a share is of the connections to a service");
}

#[test]
fn a_waypoint_may_be_used_from_the_namespaces_that_its_listener_allows() {
    let selected = |selector: &str| {
        let gateway = format!(
            "
---
{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: shared, namespace: a}},
 spec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, port: 15008, protocol: HBONE,
  allowedRoutes: {{namespaces: {selector}}}}}]}}}}
---
{{apiVersion: v1, kind: Namespace, metadata: {{name: near, labels: {{team: x}}}}}}
---
{{apiVersion: v1, kind: Namespace, metadata: {{name: far, labels: {{team: y, closed: 'yes'}}}}}}
"
        );
        let snapshot = with(&[], &gateway);
        let waypoint = snapshot.waypoint(&NamespacedName::new("a", "shared")).unwrap().clone();
        ["a", "near", "far", "unknown"].map(|namespace| snapshot.may_bind(&waypoint, namespace))
    };
    for (selector, expected) in [
        ("{from: Same}", [true, false, false, false]),
        ("{from: All}", [true, true, true, true]),
        ("{from: Selector, selector: {matchLabels: {team: x}}}", [true, true, false, false]),
        // Kubernetes gives every namespace this label; files need not.
        ("{from: Selector, selector: {matchLabels: {kubernetes.io/metadata.name: far}}}", [true, false, true, false]),
        (
            "{from: Selector, selector: {matchExpressions: [{key: team, operator: In, values: [x, y]}, \
             {key: closed, operator: DoesNotExist}]}}",
            [true, true, false, false],
        ),
        (
            "{from: Selector, selector: {matchExpressions: [{key: team, operator: NotIn, values: [x]}, \
             {key: closed, operator: Exists}]}}",
            [true, false, true, false],
        ),
        // What cannot be read opens nothing.
        (
            "{from: Selector, selector: {matchExpressions: [{key: team, operator: Near, values: [x]}]}}",
            [true, false, false, false],
        ),
        ("{from: Selector}", [true, false, false, false]),
    ] {
        assert_eq!(selected(selector), expected, "{selector}");
    }
}
