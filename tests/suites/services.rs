//! What is dialled by a service's address, or by none that is known, goes where the objects say; in real traffic.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use culvert_tests::http::Server;
use culvert_tests::{Agent, eventually};
use datapath::{LIMIT, Mesh, ask, carried};

/// `a` calls from node 1; `b` beside it, and `c` on node 2, serve; `d` on node 2 is not ready.
const SERVICES: &str = "\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: plain, namespace: shop}
  spec: {selector: {app: c}, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{port: 80, targetPort: web}, {port: 81, targetPort: 8080}]}
- apiVersion: v1
  kind: Service
  metadata: {name: headless, namespace: shop}
  spec: {selector: {app: c}, clusterIP: None, ports: [{port: 8080}]}
- apiVersion: v1
  kind: Service
  metadata: {name: local, namespace: shop}
  spec: {selector: {tier: web}, clusterIP: 10.96.0.2, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: 8080}]}
- apiVersion: v1
  kind: Service
  metadata: {name: only-there, namespace: shop}
  spec: {selector: {app: c}, clusterIP: 10.96.0.3, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: 8080}]}
- apiVersion: v1
  kind: Service
  metadata: {name: near, namespace: shop}
  spec: {selector: {tier: web}, clusterIP: 10.96.0.4, trafficDistribution: PreferSameNode, ports: [{port: 80, targetPort: 8080}]}
- apiVersion: v1
  kind: Service
  metadata: {name: unready, namespace: shop}
  spec: {selector: {app: d}, clusterIP: 10.96.0.5, ports: [{port: 80, targetPort: 8080}]}
- apiVersion: v1
  kind: Service
  metadata: {name: published, namespace: shop}
  spec: {selector: {app: d}, clusterIP: 10.96.0.6, publishNotReadyAddresses: true, ports: [{port: 80, targetPort: 8080}]}
- apiVersion: v1
  kind: Service
  metadata: {name: bound, namespace: shop, labels: {istio.io/use-waypoint: nowhere}}
  spec: {selector: {app: c}, clusterIP: 10.96.0.7, ports: [{port: 80, targetPort: 8080}]}
- apiVersion: networking.istio.io/v1
  kind: ServiceEntry
  metadata: {name: as-it-is, namespace: shop}
  spec: {hosts: [none.example.com], addresses: [198.51.100.0/28], resolution: NONE, ports: [{number: 8080, name: tcp, protocol: TCP}]}
- apiVersion: networking.istio.io/v1
  kind: ServiceEntry
  metadata: {name: range, namespace: shop}
  spec:
    hosts: [static.example.com]
    addresses: [203.0.113.0/24]
    resolution: STATIC
    ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 8080}]
    workloadSelector: {labels: {app: c}}
";

const REGISTRY_ONLY: &str = "\
apiVersion: v1
kind: ConfigMap
metadata: {name: culvert, namespace: istio-system}
data: {mesh: 'outboundTrafficPolicy: {mode: REGISTRY_ONLY}'}
";

fn mesh() -> Result<Mesh> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (1, "shop", "b"), (2, "shop", "c"), (2, "shop", "d")])?;
    mesh.write_pods(|pod, object| {
        let object = object.replace("image: app}", "image: app, ports: [{name: web, containerPort: 8080}]}");
        Some(match pod.name() {
            "b" | "c" => object.replace("labels: {", "labels: {tier: web, "),
            "d" => object.replace("type: Ready, status: \"True\"", "type: Ready, status: \"False\""),
            _ => object,
        })
    })?;
    mesh.directory.write("services", &[SERVICES.to_owned()])?;
    // Beyond the mesh, as two addresses of node 2: one within the ServiceEntry's range, one that nobody knows.
    let [near, far] = [1, 2].map(|node| mesh.topology.node(node));
    for ip in ["198.51.100.7", "192.0.2.1"] {
        far.netns().ip(&format!("addr add {ip}/32 dev lo"))?;
        near.netns().ip(&format!("route add {ip} via 10.2.0.1 dev {}", near.wire_to(far)))?;
    }
    Ok(mesh)
}

#[test]
fn each_kind_of_service_leads_to_its_endpoints() -> Result<()> {
    let mesh = mesh()?;
    let (near, far) = (mesh.agent(1)?, mesh.agent(2)?);
    let (a, c) = (mesh.pod("a"), mesh.pod("c"));
    let [v4, v6] = a.addresses();
    let outside: SocketAddr = "198.51.100.7:8080".parse()?;
    let _server = Server::start(&mesh.topology.node(2).place(), outside, "outside")?;
    let headless = SocketAddr::new(c.ipv4(), 8080).to_string();
    // Each several times: a choice among endpoints would show.
    for (what, to, says, encrypted) in [
        ("a ClusterIP, by a named port of the pod", "10.96.0.1:80", format!("c saw {v4}"), true),
        ("the same over IPv6", "[fd00:96::1]:80", format!("c saw {v6}"), true),
        ("its second port, by number", "10.96.0.1:81", format!("c saw {v4}"), true),
        ("a headless service, by the pod's address", &headless, format!("c saw {v4}"), true),
        ("internalTrafficPolicy: Local", "10.96.0.2:80", format!("b saw {v4}"), true),
        ("trafficDistribution: PreferSameNode", "10.96.0.4:80", format!("b saw {v4}"), true),
        ("publishNotReadyAddresses", "10.96.0.6:80", format!("d saw {v4}"), true),
        ("resolution NONE, in a range", "198.51.100.7:8080", format!("outside saw {v4}"), false),
        ("resolution STATIC, by any address of a range", "203.0.113.99:80", format!("c saw {v4}"), true),
    ] {
        let to: SocketAddr = to.parse()?;
        for _ in 0..8 {
            let before = carried(&near, "source", if encrypted { "mutual_tls" } else { "unknown" })?;
            let said = ask(&a.place(), to).with_context(|| format!("{what}\n{}{}", near.log(), far.log()))?;
            ensure!(said.trim_end() == says, "{what}: {said}");
            let after = carried(&near, "source", if encrypted { "mutual_tls" } else { "unknown" })?;
            ensure!(after == before + 1.0, "{what}: not carried as it should be");
        }
    }
    Ok(())
}

#[test]
fn what_has_nowhere_to_go_is_refused_with_the_reason_and_never_passed_through() -> Result<()> {
    let mesh = mesh()?;
    let (near, _far) = (mesh.agent(1)?, mesh.agent(2)?);
    let a = mesh.pod("a");
    let refused = |agent: &Agent, to: &str, why: &[&str]| {
        let to: SocketAddr = to.parse()?;
        ensure!(ask(&a.place(), to).is_err(), "{to} is not refused");
        let line = |line: &&str| why.iter().all(|part| line.contains(part)) && line.contains(&to.to_string());
        let found = eventually(LIMIT, "the line", || agent.log().lines().find(line).map(drop).or(None));
        found.with_context(|| format!("{to}, {why:?}\n{}", agent.log()))
    };
    refused(&near, "10.96.0.3:80", &["only-there", "internalTrafficPolicy"])?;
    refused(&near, "10.96.0.5:80", &["unready", "none of 1 is ready"])?;
    refused(&near, "10.96.0.1:82", &["plain", "no TCP port 82"])?;
    refused(&near, "10.96.0.7:80", &["bound", "nowhere", "does not exist"])?;

    // The namespace opts out: the service is reached without its waypoint.
    let bypass = "metadata:\n  annotations: {culvert.dev/missing-waypoint: bypass}\n";
    let namespaces = [
        culvert_tests::objects::namespace("shop", true).replacen("metadata:\n", bypass, 1),
        culvert_tests::objects::namespace("outside", false),
    ];
    mesh.directory.write("namespaces", &namespaces)?;
    let said = eventually(LIMIT, "the way without a waypoint", || ask(&a.place(), "10.96.0.7:80".parse().ok()?).ok())?;
    ensure!(said.starts_with("c saw "), "{said}");

    // What nobody knows is passed through, unless the mesh is closed.
    let unknown: SocketAddr = "192.0.2.1:8080".parse()?;
    let _server = Server::start(&mesh.topology.node(2).place(), unknown, "unknown")?;
    ensure!(ask(&a.place(), unknown)?.starts_with("unknown saw "));
    mesh.directory.write("options", &[REGISTRY_ONLY.to_owned()])?;
    eventually(LIMIT, "the mesh to be closed", || ask(&a.place(), unknown).is_err().then_some(()))?;
    // By the connect hook, which tells its reason by a counter; the agent itself refuses only until the hook knows.
    eventually(LIMIT, "the hook to refuse, and to say why", || {
        ask(&a.place(), unknown).is_err().then_some(())?;
        (near.metric("culvert_redirection_total", &[("reason", "registry_only")]).ok()? >= 1.0).then_some(())
    })?;
    ensure!(ask(&a.place(), "10.96.0.1:80".parse()?)?.starts_with("c saw "));
    Ok(())
}
