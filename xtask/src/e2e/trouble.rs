//! What holds while something is away: the API server, an agent.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_tests::kube::container;
use culvert_tests::{eventually, http};

use super::facts::{await_redirection, encrypted, policy};
use super::install::{NAMESPACE, ready};
use super::world::{LIMIT, OUTSIDE, SECRET, SHOP, World, agent_on, fetch, is_ready, must, pod};

/// How long the API server is away before anything else happens, and how long a dead agent's pods are called.
const WHILE: Duration = Duration::from_secs(8);
const READINESS: u16 = 15021;
const ANSWER: Duration = Duration::from_secs(5);
/// What an agent says of itself that has its configuration from the disk.
const STALE: &str = "configuration from";
/// And one that has none.
const UNREAD: &str = "has not been read yet";

const NO_OUTSIDERS: &str = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-outsiders, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}]}]}
";

pub(super) fn outage(world: &mut World) -> Result<()> {
    let (web, neighbour) = (world.address(SHOP, "web")?, world.address(SHOP, "neighbour")?);
    world.cluster.apply(NO_OUTSIDERS)?;
    for to in [web, neighbour] {
        world.await_call(OUTSIDE, "legacy", to, false)?;
    }
    let id = |namespace, name| container(&world.cluster, namespace, name);
    let (client, legacy) = (id(SHOP, "client")?, id(OUTSIDE, "legacy")?);
    let agent = agent_on(world, "n1")?;
    let (agent, address) = (id(NAMESPACE, &agent)?, address(world, &agent)?);

    world.cluster.kill_apiserver()?;
    let wire = world.capture_wire()?;
    let node = world.node(1);
    let call = |container: &str, to| -> Result<bool> {
        let done = node.exec_in(container, &["/bin/sh", "-c", &fetch(to)])?;
        Ok(done.stdout.contains(SECRET))
    };
    let until = Instant::now() + WHILE;
    while Instant::now() < until {
        for to in [world.service, web, neighbour] {
            ensure!(call(&client, to)?, "with the API server away, no answer of {to}");
        }
        for to in [web, neighbour] {
            ensure!(!call(&legacy, to)?, "with the API server away, {to} answers whom a policy denies");
        }
        thread::sleep(Duration::from_millis(300));
    }
    encrypted(wire)?;

    let wire = world.capture_wire()?;
    node.kill(&agent)?;
    eventually(LIMIT, "an agent that starts without an API server to say that it has a snapshot", || {
        // Nothing is open meanwhile.
        let is_closed = !call(&legacy, neighbour).ok()?;
        let said = healthz(world, address).ok()?;
        (is_closed && said.contains(STALE) && !said.contains(UNREAD)).then_some(())
    })?;
    ensure!(!wire.finish()?.holds(SECRET.as_bytes()), "something crossed the wire in clear");

    world.cluster.start_apiserver()?;
    eventually(LIMIT, "the agent to catch up", || (healthz(world, address).ok()?.trim() == "ready").then_some(()))?;
    world.await_call(SHOP, "client", world.service, true)?;
    world.cluster.delete(NO_OUTSIDERS)?;
    for to in [web, neighbour] {
        world.await_call(OUTSIDE, "legacy", to, true)?;
    }
    policy(world)
}

pub(super) fn agent_killed(world: &mut World) -> Result<()> {
    let wire = world.capture_wire()?;
    let agent = agent_on(world, "n1")?;
    let before = restarts(world, &agent)?;
    world.node(1).kill(&container(&world.cluster, NAMESPACE, &agent)?)?;
    let until = Instant::now() + WHILE;
    while Instant::now() < until || restarts(world, &agent)? == before {
        // Refused or carried.
        let _ = world.call(SHOP, "client", world.service)?;
        ensure!(Instant::now() < until + LIMIT, "the agent was not started again");
    }
    world.await_call(SHOP, "client", world.service, true)?;
    encrypted(wire)?;
    ready(world)
}

pub(super) fn node_without_agent(world: &mut World) -> Result<()> {
    let agent = agent_on(world, "n1")?;
    // One that is stopped for good: its DaemonSet does not come back before it may.
    world.cluster.kubectl(&["label", "node", "n1", "kubernetes.io/os=none", "--overwrite"])?;
    let delete = ["delete", "pod", &agent, "--namespace", NAMESPACE, "--force", "--grace-period=0"];
    world.cluster.kubectl(&delete)?;
    world.await_call(SHOP, "client", world.service, false)?;
    let wire = world.capture_wire()?;
    for web in world.addresses(SHOP, "web")? {
        must(!world.call(SHOP, "client", web)?, "a pod without an agent reaches nobody")?;
    }
    for client in world.addresses(SHOP, "client")? {
        must(!world.call(OUTSIDE, "legacy", client)?, "nobody reaches a pod without an agent")?;
    }
    ensure!(!wire.finish()?.holds(SECRET.as_bytes()), "with no agent, something crossed the wire in clear");

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

fn address(world: &World, agent: &str) -> Result<SocketAddr> {
    let ip =
        world.pod(NAMESPACE, agent)?["status"]["podIP"].as_str().context("an agent without an address")?.parse()?;
    Ok(SocketAddr::new(ip, READINESS))
}

/// What an agent of n1 says of its health, whether it is good or not.
fn healthz(world: &World, agent: SocketAddr) -> Result<String> {
    Ok(world.topology.node(1).place().run(|| http::get(agent, "/healthz/ready", ANSWER))??.body)
}

fn restarts(world: &World, agent: &str) -> Result<u64> {
    let pod = world.pod(NAMESPACE, agent)?;
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().context("a pod without containers")
}
