//! A waypoint whose objects come from a real API server.

use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_tests::kube::ControlPlane;
use culvert_tests::{AgentConfig, Topology, Waypoint, eventually};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

const OBJECTS: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: through}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: routes, namespace: through}
spec: {hosts: [cart], tcp: [{route: [{destination: {host: cart}}]}]}
";

#[test]
fn a_waypoint_is_the_pod_that_it_is_told_and_reads_what_nodes_do_not() -> Result<()> {
    let cluster = ControlPlane::shared();
    cluster.crd_without_schema("gateway.networking.k8s.io", "gateways", "Gateway")?;
    cluster.crd_without_schema("networking.istio.io", "virtualservices", "VirtualService")?;
    cluster.namespace("through")?;
    cluster.service_account("through", "edge")?;
    cluster.node("n1")?;
    let mut topology = Topology::new(1)?;
    let pod = topology.add_pod(1, "through", "wp")?;
    let address = pod.ipv4().to_string();
    cluster.pod("through", "wp", "edge", "n1", &[&address])?;
    eventually(LIMIT, "the objects to be taken", || cluster.apply(OBJECTS).ok())?;

    let pod = topology.pod("wp");
    let _wire = cluster.reachable_in(&pod.place())?;
    let mut config = AgentConfig::new(&topology.scope().directory().join("mesh"))?;
    config.kubeconfig = Some(cluster.kubeconfig());
    let mut waypoint = Waypoint::start(pod, &config, &["--workers", "1", "--pod-name", "wp"])?;
    waypoint.wait_ready(LIMIT)?;
    let shown = |member: &str| -> Result<Value> {
        Ok(serde_json::from_str(&waypoint.admin(&format!("/config_dump/{member}"))?.body)?)
    };
    ensure!(shown("waypoint")?["identity"] == "spiffe://cluster.local/ns/through/sa/edge", "{}", shown("waypoint")?);
    let source = shown("source")?;
    let objects = |resource: &str| source["resources"][resource]["objects"].as_u64();
    ensure!(objects("virtualservices.networking.istio.io") >= Some(1), "VirtualServices are not read: {source}");
    ensure!(objects("pods") >= Some(1), "{source}");
    Ok(())
}
