//! What is proven of an installed Culvert, in this order.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::kube::container;
use culvert_tests::{Capture, eventually};

use super::install::{NAMESPACE, ready};
use super::world::{LIMIT, OUTSIDE, PORT, SECRET, SHOP, World, fetch, is_ready, must, pod};

type Fact = fn(&mut World) -> Result<()>;

const AMBIENT: &str = "istio.io/dataplane-mode=ambient";
const REDIRECTION: &str = "ambient.istio.io/redirection";
const HBONE: u16 = 15008;

pub(super) const ALL: &[(&str, Fact)] = &[
    ("the namespace labelled, its running pods are in the mesh without a restart, and the wire is encrypted", labelled),
    ("pods of one node are encrypted to each other as well, and the outside keeps its plain connections", same_node),
    ("a new pod is in the mesh before its first packet", new_pod),
    ("a pod that comes up on the other node is found there", rescheduled),
    ("a policy is enforced, and lifted again", policy),
    ("with the API server away, traffic, policy and certificates go on", outage),
    ("with the agent killed, pods are refused, never reached in clear, and no pod of the mesh starts", agent_killed),
    ("the agents are replaced one after the other, and at no moment is anything in clear", upgraded),
];

/// Whether the capture is a proof at all: without the mesh, it shows the secret.
pub(super) fn in_clear_before(world: &World) -> Result<()> {
    let (wire, bridge) = (world.capture_wire()?, world.capture_bridge()?);
    world.await_call(SHOP, "client", world.service, true)?;
    must(world.call(SHOP, "client", world.address(SHOP, "neighbour")?)?, "a call to a pod of the same node")?;
    must(wire.finish()?.holds(SECRET.as_bytes()), "the wire between the nodes shows what is not encrypted")?;
    must(bridge.finish()?.holds(SECRET.as_bytes()), "the bridge of the pods shows what is not encrypted")
}

pub(super) fn labelled(world: &mut World) -> Result<()> {
    let containers = || ["client", "neighbour", "web"].map(|name| container(&world.cluster, SHOP, name).ok());
    let before = containers();
    world.label(SHOP, AMBIENT)?;
    for name in ["client", "neighbour", "web"] {
        await_redirection(world, SHOP, name, true)?;
    }
    let wire = world.capture_wire()?;
    must(world.call(SHOP, "client", world.service)?, "a call to the Service from pod to pod in the mesh")?;
    must(world.call(SHOP, "client", world.address(SHOP, "web")?)?, "a call to the pod itself")?;
    encrypted(wire)?;
    must(before == containers(), "no container was started again")
}

fn same_node(world: &mut World) -> Result<()> {
    let bridge = world.capture_bridge()?;
    must(world.call(SHOP, "client", world.address(SHOP, "neighbour")?)?, "a call to a pod of the same node")?;
    encrypted(bridge)?;
    // PERMISSIVE, as Istio's default is.
    must(world.call(OUTSIDE, "legacy", world.address(SHOP, "web")?)?, "a call into the mesh from outside")?;
    must(world.call(SHOP, "client", world.address(OUTSIDE, "legacy")?)?, "a call from the mesh to the outside")
}

fn new_pod(world: &mut World) -> Result<()> {
    let wire = world.capture_wire()?;
    let to = world.address(SHOP, "web")?;
    // It calls as soon as it is, and says what it got.
    let script = format!("{} >/tmp/got; exec httpd -f -p {PORT} -h /tmp", fetch(to));
    let eager = pod(SHOP, "eager", "n1");
    let command = eager.find("    args:").context("a pod's arguments")?;
    world.cluster.apply(&format!("{}    args:\n    - |\n      {script}\n", &eager[..command]))?;
    world.await_running(SHOP, "eager")?;
    let got = eventually(LIMIT, "the first call of a new pod", || {
        world.shell(SHOP, "eager", "cat /tmp/got").ok()?.filter(|got| !got.is_empty())
    })?;
    must(got.contains(SECRET), "the first call of a new pod is answered")?;
    encrypted(wire)?;
    await_redirection(world, SHOP, "eager", true)
}

fn rescheduled(world: &mut World) -> Result<()> {
    world.cluster.kubectl(&["delete", "pod", "web", "--namespace", SHOP, "--wait=true"])?;
    world.cluster.apply(&pod(SHOP, "web", "n1"))?;
    world.await_running(SHOP, "web")?;
    world.await_call(SHOP, "client", world.service, true)?;
    world.cluster.kubectl(&["delete", "pod", "web", "--namespace", SHOP, "--wait=true"])?;
    world.cluster.apply(&pod(SHOP, "web", "n2"))?;
    world.await_running(SHOP, "web")?;
    world.await_call(SHOP, "client", world.service, true)?;
    let wire = world.capture_wire()?;
    must(world.call(SHOP, "client", world.service)?, "a call to the pod that came back")?;
    encrypted(wire)
}

fn policy(world: &mut World) -> Result<()> {
    let deny = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}
";
    world.cluster.apply(deny)?;
    world.await_call(SHOP, "client", world.service, false)?;
    world.cluster.delete(deny)?;
    world.await_call(SHOP, "client", world.service, true)
}

fn outage(world: &mut World) -> Result<()> {
    let (client, web) = (container(&world.cluster, SHOP, "client")?, world.address(SHOP, "web")?);
    let node = world.node_of(SHOP, "client")?;
    world.cluster.kill_apiserver()?;
    let wire = world.capture_wire()?;
    let deadline = std::time::Instant::now() + Duration::from_secs(15);
    while std::time::Instant::now() < deadline {
        for to in [world.service, web] {
            let done = node.exec_in(&client, &["/bin/sh", "-c", &fetch(to)])?;
            ensure!(done.stdout.contains(SECRET), "with the API server away, no answer of {to}: {}", done.stderr);
        }
        thread::sleep(Duration::from_millis(500));
    }
    encrypted(wire)?;
    world.cluster.start_apiserver()?;
    policy(world)
}

fn agent_killed(world: &mut World) -> Result<()> {
    let agent = agent_on(world, "n1")?;
    // One that is stopped for good: a node without an agent. Its DaemonSet does not come back before it may.
    world.cluster.kubectl(&["label", "node", "n1", "kubernetes.io/os=none", "--overwrite"])?;
    let delete = ["delete", "pod", &agent, "--namespace", NAMESPACE, "--force", "--grace-period=0"];
    world.cluster.kubectl(&delete)?;
    let wire = world.capture_wire()?;
    world.await_call(SHOP, "client", world.service, false)?;
    must(!world.call(SHOP, "client", world.address(SHOP, "web")?)?, "a pod without an agent reaches nobody")?;
    must(!world.call(OUTSIDE, "legacy", world.address(SHOP, "client")?)?, "nobody reaches a pod without an agent")?;
    ensure!(!wire.finish()?.holds(SECRET.as_bytes()), "with the agent dead, something crossed the wire in clear");

    world.cluster.apply(&pod(SHOP, "waiting", "n1"))?;
    world.cluster.apply(&pod(OUTSIDE, "careless", "n1"))?;
    world.await_running(OUTSIDE, "careless")?;
    must(!is_ready(&world.pod(SHOP, "waiting")?), "no pod of the mesh starts without an agent")?;
    world.cluster.kubectl(&["label", "node", "n1", "kubernetes.io/os=linux", "--overwrite"])?;
    ready(world)?;
    world.await_call(SHOP, "client", world.service, true)?;
    world.await_running(SHOP, "waiting")?;
    await_redirection(world, SHOP, "waiting", true)
}

fn upgraded(world: &mut World) -> Result<()> {
    let before = [agent_on(world, "n1")?, agent_on(world, "n2")?];
    let wire = world.capture_wire()?;
    let patch = r#"{"spec":{"template":{"metadata":{"annotations":{"culvert.dev/rolled":"1"}}}}}"#;
    world.cluster.kubectl(&["patch", "daemonset", "culvert-node", "--namespace", NAMESPACE, "--patch", patch])?;
    eventually(LIMIT, "new agents on both nodes", || {
        // Called all the while: what gets through must be encrypted.
        let _ = world.call(SHOP, "client", world.service);
        let now = [agent_on(world, "n1").ok()?, agent_on(world, "n2").ok()?];
        (now[0] != before[0] && now[1] != before[1]).then_some(())
    })?;
    world.await_call(SHOP, "client", world.service, true)?;
    encrypted(wire)
}

/// The label removed: out of the mesh, and in clear.
pub(super) fn unlabelled(world: &World) -> Result<()> {
    let before = container(&world.cluster, SHOP, "client")?;
    world.label(SHOP, "istio.io/dataplane-mode-")?;
    for name in ["client", "neighbour", "web"] {
        await_redirection(world, SHOP, name, false)?;
    }
    let wire = world.capture_wire()?;
    must(world.call(SHOP, "client", world.address(SHOP, "web")?)?, "a call between pods that have left the mesh")?;
    must(wire.finish()?.holds(SECRET.as_bytes()), "a pod that has left the mesh is not encrypted")?;
    must(before == container(&world.cluster, SHOP, "client")?, "the pod was started again")
}

/// That what a capture saw went through the tunnel, and only through it.
fn encrypted(capture: Capture) -> Result<()> {
    let seen = capture.finish()?;
    ensure!(!seen.holds(SECRET.as_bytes()), "the payload is on the wire, in clear");
    ensure!(seen.bytes_of_port(HBONE) > SECRET.len(), "nothing went through a tunnel");
    ensure!(seen.is_tls_records(HBONE), "what went to port {HBONE} is not TLS");
    Ok(())
}

/// Waits until a pod says of itself that it is in the mesh, or no longer.
fn await_redirection(world: &World, namespace: &str, name: &str, enabled: bool) -> Result<()> {
    let what = format!("{namespace}/{name} to be {} the mesh", if enabled { "in" } else { "out of" });
    eventually(LIMIT, &what, || {
        let annotation = &world.pod(namespace, name).ok()?["metadata"]["annotations"][REDIRECTION];
        (enabled == (annotation.as_str() == Some("enabled"))).then_some(())
    })
}

/// The name of the ready agent of a node.
pub(super) fn agent_on(world: &World, node: &str) -> Result<String> {
    let pods = world.pods_of(NAMESPACE, "culvert-node")?;
    let agent = pods.iter().find(|pod| pod["spec"]["nodeName"] == node && is_ready(pod));
    let agent = agent.with_context(|| format!("{node} has no ready agent"))?;
    Ok(agent["metadata"]["name"].as_str().unwrap_or_default().to_owned())
}
