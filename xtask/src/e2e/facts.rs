//! What is proven of an installed Culvert, in this order.

use anyhow::{Context, Result, ensure};
use culvert_tests::kube::container;
use culvert_tests::{Capture, eventually};

use super::trouble::{agent_killed, node_without_agent, outage};
use super::upgrade::upgraded;
use super::world::{LIMIT, OUTSIDE, PORT, SECRET, SHOP, World, fetch, must, pod};

type Fact = fn(&mut World) -> Result<()>;

pub(super) const AMBIENT: &str = "istio.io/dataplane-mode=ambient";
const REDIRECTION: &str = "ambient.istio.io/redirection";
const HBONE: u16 = 15008;

pub(super) const ALL: &[(&str, Fact)] = &[
    ("labelled: running pods are in the mesh without a restart, and the wire holds no byte of payload", labelled),
    (
        "two pods of one node are encrypted to each other, in both families; the outside is reached, and reaches, in plaintext",
        same_node,
    ),
    ("a new pod is in the mesh before its containers start: its first packet is encrypted", new_pod),
    ("a static pod, known to the API server under another UID, is in the mesh as well", static_pod),
    ("a DENY policy is enforced, and lifted", policy),
    ("a pod that comes up on the other node is found there, and back", rescheduled),
    ("API server away: traffic and policy go on; an agent restarted meanwhile says that it has a snapshot", outage),
    ("agent killed (-9): its pods are refused or carried, never in clear, and carried again", agent_killed),
    ("a node without an agent: its pods are refused, pods of the mesh do not start, others do", node_without_agent),
    ("agents replaced one after the other: no open or new connection is dropped, none is in clear", upgraded),
];

/// Whether the capture is a proof at all: without the mesh, it shows the secret.
pub(super) fn in_clear_before(world: &World) -> Result<()> {
    let (wire, bridge) = (world.capture_wire()?, world.capture_bridge()?);
    world.await_call(SHOP, "client", world.service, true)?;
    must(world.call(SHOP, "client", world.address(SHOP, "neighbour")?)?, "a call to a pod of the same node")?;
    must(wire.finish()?.holds(SECRET.as_bytes()), "the wire between the nodes shows what is not encrypted")?;
    let wire = world.capture_wire()?;
    must(world.call(SHOP, "client", world.addresses(SHOP, "web")?[1])?, "a call over IPv6")?;
    must(wire.finish()?.holds(SECRET.as_bytes()), "the wire shows what is not encrypted over IPv6")?;
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
    let wire = world.capture_wire()?;
    must(world.call(SHOP, "client", world.both[1])?, "a call to the Service over IPv6")?;
    must(world.call(SHOP, "client", world.addresses(SHOP, "web")?[1])?, "a call to the pod itself over IPv6")?;
    encrypted(wire)?;
    must(before == containers(), "no container was started again")
}

fn same_node(world: &mut World) -> Result<()> {
    for family in [0, 1] {
        let address = |namespace, name| -> Result<_> { Ok(world.addresses(namespace, name)?[family]) };
        let bridge = world.capture_bridge()?;
        must(world.call(SHOP, "client", address(SHOP, "neighbour")?)?, "a call to a pod of the same node")?;
        encrypted(bridge)?;
        // PERMISSIVE, as Istio's default is.
        must(world.call(OUTSIDE, "legacy", address(SHOP, "web")?)?, "a call into the mesh from outside")?;
        must(world.call(SHOP, "client", address(OUTSIDE, "legacy")?)?, "a call from the mesh to the outside")?;
    }
    Ok(())
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

/// The kubelet runs it from a file, and shows it to the API server by a mirror that has a UID of its own.
fn static_pod(world: &mut World) -> Result<()> {
    // Once while an agent is there to be asked by the plugin, and once found by its cgroup.
    world.node(1).write_static_pod("fixed", &pod(SHOP, "fixed", "n1"))?;
    world.await_running(SHOP, "fixed-n1")?;
    await_redirection(world, SHOP, "fixed-n1", true)?;
    for labelled in [false, true] {
        world.cluster.kubectl(&[
            "label",
            "pod",
            "fixed-n1",
            "--namespace",
            SHOP,
            "--overwrite",
            &format!("istio.io/dataplane-mode={}", if labelled { "ambient" } else { "none" }),
        ])?;
        await_redirection(world, SHOP, "fixed-n1", labelled)?;
    }
    let wire = world.capture_wire()?;
    must(world.call(SHOP, "fixed-n1", world.service)?, "a call from a static pod")?;
    encrypted(wire)?;
    world.node(1).remove_static_pod("fixed")?;
    eventually(LIMIT, "the static pod to be gone", || world.pod(SHOP, "fixed-n1").is_err().then_some(()))
}

fn rescheduled(world: &mut World) -> Result<()> {
    for node in ["n1", "n2"] {
        world.cluster.kubectl(&["delete", "pod", "web", "--namespace", SHOP, "--wait=true"])?;
        world.cluster.apply(&pod(SHOP, "web", node))?;
        world.await_running(SHOP, "web")?;
        world.await_call(SHOP, "client", world.service, true)?;
    }
    let wire = world.capture_wire()?;
    must(world.call(SHOP, "client", world.service)?, "a call to the pod that came back")?;
    encrypted(wire)
}

pub(super) fn policy(world: &mut World) -> Result<()> {
    let deny = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}
";
    world.cluster.apply(deny)?;
    world.await_call(SHOP, "client", world.service, false)?;
    must(world.call(OUTSIDE, "legacy", world.address(SHOP, "web")?)?, "a call that the policy does not name")?;
    world.cluster.delete(deny)?;
    world.await_call(SHOP, "client", world.service, true)
}

/// The label removed: out of the mesh, in clear, and with nothing left in their network namespaces.
pub(super) fn unlabelled(world: &World) -> Result<()> {
    let before = container(&world.cluster, SHOP, "client")?;
    world.label(SHOP, "istio.io/dataplane-mode-")?;
    for name in ["client", "neighbour", "web"] {
        await_redirection(world, SHOP, name, false)?;
    }
    for web in world.addresses(SHOP, "web")? {
        let wire = world.capture_wire()?;
        must(world.call(SHOP, "client", web)?, "a call between pods that have left the mesh")?;
        must(wire.finish()?.holds(SECRET.as_bytes()), "a pod that has left the mesh is not encrypted")?;
    }
    must(before == container(&world.cluster, SHOP, "client")?, "the pod was started again")
}

/// That what a capture saw went through the tunnel, and only through it.
pub(super) fn encrypted(capture: Capture) -> Result<()> {
    let seen = capture.finish()?;
    ensure!(!seen.holds(SECRET.as_bytes()), "the payload is on the wire, in clear");
    ensure!(seen.bytes_of_port(HBONE) > SECRET.len(), "nothing went through a tunnel");
    ensure!(seen.is_tls_records(HBONE), "what went to port {HBONE} is not TLS");
    Ok(())
}

/// Waits until a pod says of itself that it is in the mesh, or no longer.
pub(super) fn await_redirection(world: &World, namespace: &str, name: &str, enabled: bool) -> Result<()> {
    let what = format!("{namespace}/{name} to be {} the mesh", if enabled { "in" } else { "out of" });
    eventually(LIMIT, &what, || {
        let annotation = &world.pod(namespace, name).ok()?["metadata"]["annotations"][REDIRECTION];
        (enabled == (annotation.as_str() == Some("enabled"))).then_some(())
    })
}
