//! The whole life of an enrolled pod on the kernel this runs on: what `cargo xtask kernels` proves on each of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::agent::{Agent, AgentConfig};
use crate::deadline::eventually;
use crate::http::{self, Server};
use crate::objects::{self, ConfigDir};
use crate::topology::{Pod, Topology};

const PORT: u16 = 8080;
/// An emulated processor is some twenty times slower than the one under it.
const LIMIT: Duration = Duration::from_secs(120);
const ANSWER: Duration = Duration::from_secs(20);

/// Enrols a client and a server on two nodes and walks them through their lives; `proven` is told each fact.
///
/// # Errors
/// The first fact that does not hold.
pub fn whole_life(config: impl Fn(&ConfigDir) -> Result<AgentConfig>, proven: impl Fn(&str)) -> Result<()> {
    let mut topology = Topology::new(2)?;
    topology.add_pod(1, "shop", "client")?;
    topology.add_pod(2, "shop", "server")?;
    let directory = ConfigDir::create(&topology.scope().directory().join("mesh"))?;
    write_objects(&topology, &directory, true)?;
    let config = config(&directory)?;
    let (client, server) = (topology.pod("client"), topology.pod("server"));
    let listening = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), PORT);
    let _server4 = Server::start(&server.place(), listening, "server")?;
    let _server6 = Server::start(&server.place(), SocketAddr::new(server.ipv6(), PORT), "server")?;
    let untouched = (plumbing(client)?, plumbing(server)?);

    let mut near = Agent::start(&topology, topology.node(1), &config)?;
    near.wait_ready(LIMIT)?;
    let mut far = Agent::start(&topology, topology.node(2), &config)?;
    far.wait_ready(LIMIT)?;
    proven("every program loads, and both pods are enrolled");

    captured(client, server, &near, &far)?;
    proven("connections are captured on both sides, IPv4 and IPv6, and keep the client's address");

    let outsider = topology.node(1).place();
    far.kill()?;
    for address in server.addresses() {
        let to = SocketAddr::new(address, PORT);
        ensure!(client.run(|| http::get(to, "/", ANSWER))?.is_err(), "a dead agent lets the mesh through to {to}");
        ensure!(outsider.run(|| http::get(to, "/", ANSWER))?.is_err(), "a dead agent lets plaintext through to {to}");
    }
    proven("with the agent killed, the pod is refused, never reached in clear");

    let to = SocketAddr::new(server.ipv4(), PORT);
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let knocking = outsider.spawn(move || {
        let mut answered = 0;
        while !stopped.load(Ordering::Relaxed) {
            answered += usize::from(http::get(to, "/", ANSWER).is_ok());
        }
        answered
    });
    let mut far = Agent::start(&topology, topology.node(2), &config)?;
    far.wait_ready(LIMIT)?;
    eventually(LIMIT, "an answer after the restart", || client.run(|| http::get(to, "/", ANSWER)).ok()?.ok())?;
    stop.store(true, Ordering::Relaxed);
    let answered = knocking.join().map_err(|_| anyhow!("the outsider panicked"))??;
    ensure!(answered == 0, "plaintext got through {answered} times while the agent started again");
    proven("with the agent started again, the pod is served again, and was at no time reached in clear");

    write_objects(&topology, &directory, false)?;
    eventually(LIMIT, "plaintext to a pod that has left the mesh", || {
        outsider.run(|| http::get(to, "/", ANSWER)).ok()?.ok()
    })
    .with_context(|| far.log())?;
    eventually(LIMIT, "the pods' rules and routes to be as they were", || {
        (plumbing(client).ok()? == untouched.0 && plumbing(server).ok()? == untouched.1).then_some(())
    })?;
    let before = near.metric("istio_tcp_connections_opened_total", &[])?;
    ensure!(client.run(|| http::get(to, "/", ANSWER))?.is_ok(), "a pod that has left the mesh cannot connect");
    ensure!(near.metric("istio_tcp_connections_opened_total", &[])? == before, "a pod that has left is still captured");
    proven("un-enrolled, the pods are as they were");
    Ok(())
}

fn write_objects(topology: &Topology, directory: &ConfigDir, ambient: bool) -> Result<()> {
    let pods: Vec<_> = topology.pods().iter().map(|pod| objects::pod(pod, pod.name())).collect();
    directory.write("nodes", &topology.nodes().iter().map(objects::node).collect::<Vec<_>>())?;
    directory.write("pods", &pods)?;
    directory.write("policies", &[objects::peer_authentication("shop", "STRICT")])?;
    // Last: it is what moves the pods in and out of the mesh.
    directory.write("namespace", &[objects::namespace("shop", ambient)])
}

fn captured(client: &Pod, server: &Pod, near: &Agent, far: &Agent) -> Result<()> {
    for (from, to) in client.addresses().into_iter().zip(server.addresses()) {
        let answer = client.run(|| http::get(SocketAddr::new(to, PORT), "/", ANSWER))?;
        let answer = answer.with_context(|| format!("no answer; {}\n{}", near.log(), far.log()))?;
        ensure!(answer.body == format!("server saw {from}\n"), "wrong answer: {}", answer.body);
    }
    for (agent, reporter) in [(near, "source"), (far, "destination")] {
        let labels = [("reporter", reporter), ("connection_security_policy", "mutual_tls")];
        let opened = agent.metric("istio_tcp_connections_opened_total", &labels)?;
        ensure!(opened == 2.0, "the {reporter}'s agent carried {opened} connections of 2");
    }
    Ok(())
}

/// Everything enrolment may touch in a pod's netns.
fn plumbing(pod: &Pod) -> Result<String> {
    let mut all = String::new();
    for family in ["-4", "-6"] {
        let netns = pod.netns();
        all += &netns.ip_once(&[family, "rule", "show"])?;
        all += &netns.ip_once(&[family, "route", "show", "table", "all"])?;
    }
    for sysctl in ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"] {
        all += &pod.run(|| std::fs::read_to_string(format!("/proc/sys/net/{sysctl}")))??;
    }
    // Neighbours come and go, and with them the age of their routes.
    Ok(all)
}
