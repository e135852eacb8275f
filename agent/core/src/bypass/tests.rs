use super::*;
use crate::mesh::tests::{mesh, objects};
use crate::mesh::{Mesh, Touched};

/// `shop` is in the mesh, `db` is not; `outside` claims a network.
const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Pod
metadata:
  name: front
  namespace: shop
  annotations: {ANNOTATIONS}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop, labels: {app: cart}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {clusterIPs: [10.96.0.1], selector: {app: cart}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: postgres, namespace: db, labels: {app: postgres}}
spec: {nodeName: n1}
status: {podIPs: [{ip: 10.0.0.3}]}
---
apiVersion: v1
kind: Service
metadata: {name: postgres, namespace: db}
spec: {clusterIPs: [10.96.0.2], selector: {app: postgres}, ports: [{port: 5432}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partner, namespace: outside}
spec: {hosts: [partner.example.com], addresses: [192.0.2.0/24], resolution: NONE, ports: [{number: 443, name: tls}]}
";

fn with(annotations: &str, options: &str) -> Mesh {
    let config = format!(
        "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: culvert, namespace: istio-system}}\n\
         data: {{mesh: 'culvert: {{outboundBypass: {{{options}}}}}'}}\n"
    );
    mesh(&(MESH.replace("ANNOTATIONS", annotations) + &config))
}

/// Why `front` reaches each of these without the mesh; empty where it is captured.
fn reasons<const N: usize>(mesh: &Mesh, to: [&str; N]) -> [String; N] {
    let snapshot = mesh.snapshot();
    let front = snapshot.pod("shop", "front").unwrap();
    to.map(|to| decide(&snapshot, front, to.parse().unwrap()).map(|why| why.to_string()).unwrap_or_default())
}

fn bypassed<const N: usize>(mesh: &Mesh, to: [&str; N]) -> [bool; N] {
    reasons(mesh, to).map(|reason| !reason.is_empty())
}

#[test]
fn without_rules_everything_is_captured() {
    let all = ["10.0.0.2:80", "10.96.0.1:80", "10.0.0.3:5432", "198.51.100.1:443", "[2001:db8::1]:443"];
    assert_eq!(bypassed(&with("", ""), all), [false; 5]);
}

#[test]
fn networks_and_ports_bypass_what_is_outside_the_mesh_and_nothing_in_it() {
    let to = ["10.0.0.2:80", "10.96.0.1:80", "10.0.0.3:5432", "10.96.0.2:5432", "10.9.9.9:1", "11.0.0.1:1"];
    let expected = [false, false, true, true, true, false];
    assert_eq!(bypassed(&with("culvert.dev/bypass-outbound-cidrs: 10.0.0.0/8", ""), to), expected);
    assert_eq!(bypassed(&with("", "cidrs: [10.0.0.0/8]"), to), expected);
    let expected = [false, false, false, false, true, true];
    assert_eq!(bypassed(&with("culvert.dev/bypass-outbound-ports: \"1\"", ""), to), expected);
    assert_eq!(bypassed(&with("", "ports: [1, \"2\"]"), to), expected);
    // Not even when it is named by itself.
    assert_eq!(bypassed(&with("culvert.dev/bypass-outbound-cidrs: 10.0.0.2", ""), ["10.0.0.2:80"]), [false]);
}

#[test]
fn a_namespace_is_bypassed_by_its_name_even_if_it_is_in_the_mesh() {
    let to = ["10.0.0.2:80", "10.96.0.1:80", "10.0.0.3:5432", "198.51.100.1:443"];
    let mesh = with("", "namespaces: [shop]");
    assert_eq!(bypassed(&mesh, to), [true, true, false, false]);
    assert!(reasons(&mesh, to)[0].contains("outboundBypass.namespaces"), "{:?}", reasons(&mesh, to));
}

#[test]
fn reasons_name_the_rule() {
    let mesh = with("traffic.sidecar.istio.io/excludeOutboundPorts: \"3306, 1\"", "cidrs: [198.51.100.0/24]");
    assert_eq!(
        reasons(&mesh, ["203.0.113.1:3306", "198.51.100.1:443"]),
        [
            "bypassed by traffic.sidecar.istio.io/excludeOutboundPorts: port 3306",
            "bypassed by outboundBypass.cidrs of the mesh options: 198.51.100.0/24",
        ]
    );
}

#[test]
fn istios_annotations_mean_what_they_do_for_sidecars() {
    const IN: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
    const EX: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    let to = ["203.0.113.1:1", "172.16.0.1:1", "172.16.1.1:1", "[2001:db8::1]:1"];
    for (annotations, expected) in [
        (format!("{IN}: \"*\""), [false; 4]),
        (format!("{IN}: \"\""), [true; 4]),
        (format!("{IN}: 172.16.0.0/16"), [true, false, false, true]),
        (format!("{EX}: 172.16.0.0/16"), [false, true, true, false]),
        (format!("{IN}: 172.16.0.0/16, {EX}: 172.16.1.0/24"), [true, false, true, true]),
        // What is excluded is so before what is included, however long its prefix.
        (format!("{IN}: 172.16.1.0/24, {EX}: 172.16.0.0/16"), [true; 4]),
        (
            format!("{EX}: 172.16.0.0/16, culvert.dev/bypass-outbound-cidrs: 203.0.113.0/24"),
            [true, false, false, false],
        ),
    ] {
        assert_eq!(bypassed(&with(&annotations, ""), to), expected, "{annotations}");
        // What is in the mesh is captured whatever they say.
        assert_eq!(bypassed(&with(&annotations, ""), ["10.0.0.2:80"]), [false], "{annotations}");
    }
}

#[test]
fn what_the_pod_captures_is_captured_though_the_mesh_bypasses_it() {
    let mesh = with("traffic.sidecar.istio.io/includeOutboundIPRanges: 198.51.100.0/24", "cidrs: [198.51.100.1]");
    assert_eq!(bypassed(&mesh, ["198.51.100.1:1"]), [false]);
}

#[test]
fn what_cannot_be_read_is_reported_and_captured() {
    let mesh = with(
        "culvert.dev/bypass-outbound-cidrs: \"10.1.0.0/33, x, 172.16.0.9/16\", \
         culvert.dev/bypass-outbound-ports: \"0, 65536, http, 99\"",
        "cidrs: [y, 1.2.3.4], ports: [-1, 70000, z], namespaces: [Shop, \"a/b\", ok], other: 1",
    );
    let snapshot = mesh.snapshot();
    let found: Vec<_> = snapshot.findings().map(|(_, finding)| finding.message.clone()).collect();
    for bad in ["10.1.0.0/33", "\"x\"", "\"0\"", "65536", "http", "\"y\"", "-1", "70000", "\"z\"", "Shop", "a/b"] {
        assert_eq!(found.iter().filter(|message| message.contains(bad)).count(), 1, "{bad}: {found:#?}");
    }
    assert!(snapshot.findings().any(|(_, finding)| finding.field == "data[mesh].culvert.outboundBypass.other"));
    let front = snapshot.pod("shop", "front").unwrap().outbound_rules.clone().unwrap();
    assert_eq!(front.addresses, [("172.16.0.0/16".parse().unwrap(), Action::Bypass)]);
    assert_eq!(front.ports, [99]);
    assert_eq!(snapshot.options().outbound_bypass.namespaces, BTreeSet::from(["ok".into()]));
}

#[test]
fn more_rules_than_are_kept_are_reported() {
    let ports: Vec<String> = (1..=300).map(|port: u16| port.to_string()).collect();
    let mesh = with(&format!("culvert.dev/bypass-outbound-ports: \"{}\"", ports.join(",")), "");
    assert_eq!(bypassed(&mesh, ["203.0.113.1:256", "203.0.113.1:257"]), [true, false]);
    assert!(mesh.snapshot().findings().any(|(_, finding)| finding.message.contains("more than 256")));
}

#[test]
fn destinations_are_told_apart() {
    let snapshot = with("", "namespaces: [db]").snapshot();
    let mut found: Vec<_> = snapshot.destinations().collect();
    found.sort_by_key(|(network, _)| *network);
    let expected = [
        ("10.0.0.1/32", Destination::Mesh),
        ("10.0.0.2/32", Destination::Mesh),
        ("10.0.0.3/32", Destination::Named),
        ("10.96.0.1/32", Destination::Mesh),
        ("10.96.0.2/32", Destination::Named),
        ("192.0.2.0/24", Destination::Known),
    ];
    assert_eq!(found, expected.map(|(network, destination)| (network.parse::<IpNet>().unwrap(), destination)));
    assert_eq!(snapshot.destination("192.0.2.7/32".parse().unwrap()), Some(Destination::Known));
}

/// The kernel's map, kept up by what [`Mesh::take_touched`] says, holds what a map made anew would.
#[test]
fn what_is_touched_is_enough_to_follow_every_change() {
    use crate::mesh::Change;
    use std::collections::BTreeMap;
    let text = MESH.replace("ANNOTATIONS", "");
    let changes = objects(&text);
    let mut mesh = Mesh::new();
    let mut followed: BTreeMap<IpNet, Destination> = BTreeMap::new();
    let removals: Vec<Change> = changes
        .iter()
        .rev()
        .filter_map(|change| match change {
            Change::Upsert(object) => {
                let meta = object.metadata();
                let namespace = meta.namespace.clone().unwrap_or_default();
                let name = meta.name.clone().unwrap_or_default();
                Some(Change::Remove(culvert_api::ObjectRef::new(object.kind(), namespace, name)))
            }
            Change::Remove(_) | Change::Report(..) => None,
        })
        .collect();
    for change in changes.into_iter().chain(removals) {
        mesh.apply([change]);
        let snapshot = mesh.snapshot();
        match mesh.take_touched() {
            Touched::All => followed = snapshot.destinations().collect(),
            Touched::Some(networks) => {
                for network in networks {
                    match snapshot.destination(network) {
                        Some(destination) => followed.insert(network, destination),
                        None => followed.remove(&network),
                    };
                }
            }
        }
        assert_eq!(followed, snapshot.destinations().collect());
    }
    assert!(followed.is_empty());
}

#[test]
fn a_service_is_in_the_mesh_as_soon_as_one_endpoint_is() {
    let mut mesh = with("", "cidrs: [10.96.0.0/16]");
    assert_eq!(bypassed(&mesh, ["10.96.0.2:5432"]), [true]);
    mesh.take_touched();
    mesh.apply(objects(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: db, labels: {istio.io/dataplane-mode: ambient}}\n",
    ));
    assert_eq!(bypassed(&mesh, ["10.96.0.2:5432"]), [false]);
    let Touched::Some(networks) = mesh.take_touched() else { panic!("a few addresses") };
    assert!(networks.contains(&"10.96.0.2/32".parse().unwrap()), "{networks:?}");
}
