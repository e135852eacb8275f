//! One agent replaces another while both run, as in a rolling upgrade with `maxSurge`: nothing is dropped, nothing is in
//! clear, and only one of them has the pods.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::{Agent, AgentConfig, Capture, Pod, eventually, http};
use datapath::{LIMIT, Mesh, PORT, START, at, carried, reaches};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long the old agent waits for what it carries: longer than it takes here.
const DRAIN: &str = "20";
/// Agents look every half second who is in charge.
const NOTICED: Duration = Duration::from_secs(10);

/// Of this node, beside the one that is there.
fn next(mesh: &Mesh) -> AgentConfig {
    AgentConfig { port: 16000, ..mesh.config.clone() }
}

/// One that knows no mesh: its API server is away, and it has never seen it.
fn ignorant(mesh: &Mesh) -> Result<AgentConfig> {
    let directory = mesh.topology.scope().directory();
    let kubeconfig = directory.join("nobody.kubeconfig");
    fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\ncurrent-context: n\ncontexts: [{name: n, context: {cluster: n, user: n}}]\n\
         clusters: [{name: n, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: n, user: {token: n}}]\n",
    )?;
    let mut config = AgentConfig { kubeconfig: Some(kubeconfig), ..next(mesh) };
    config.arguments.extend(["--state-dir".into(), directory.join("ignorant").into()]);
    Ok(config)
}

fn mesh() -> Result<Mesh> {
    let mut mesh = Mesh::new(&[(1, "shop", "a"), (1, "shop", "b"), (2, "shop", "c"), (2, "outside", "o")])?;
    mesh.config.among_pods = true;
    mesh.config.arguments = ["--workers", "1", "--drain-seconds", DRAIN].map(Into::into).to_vec();
    Ok(mesh)
}

fn start(mesh: &Mesh, config: &AgentConfig) -> Result<Agent> {
    Agent::start(&mesh.topology, mesh.topology.node(1), config)
}

fn listening(agent: &mut Agent) -> Result<()> {
    agent.wait_for_line(START, "the agent to listen", |line| line.contains("listening")).map(drop)
}

fn everyone_reaches(mesh: &Mesh) -> Result<()> {
    let [a, b, c, o] = ["a", "b", "c", "o"].map(|name| mesh.pod(name));
    [(a, c), (c, a), (a, b), (o, a), (a, o)].into_iter().try_for_each(|(from, to)| reaches(from, to))
}

#[test]
fn while_the_next_agent_has_not_read_the_mesh_the_one_before_serves_as_if_it_were_not_there() -> Result<()> {
    let mesh = mesh()?;
    let (near, _far) = (mesh.agent(1)?, mesh.agent(2)?);
    everyone_reaches(&mesh)?;
    let mut next = start(&mesh, &ignorant(&mesh)?)?;
    listening(&mut next)?;
    // Its programs are those of the node now; new tunnels are dialled all the same, and no leg is captured.
    let before = carried(&near, "source", "mutual_tls")?;
    everyone_reaches(&mesh).with_context(|| near.log())?;
    assert_eq!(carried(&near, "source", "mutual_tls")?, before + 4.0);
    assert_eq!(carried(&next, "source", "mutual_tls")?, 0.0);
    // What was refused or led in circles would be counted.
    next.kill()?;
    everyone_reaches(&mesh).with_context(|| near.log())
}

#[test]
fn a_replacement_drops_no_connection_old_or_new_and_sends_nothing_in_clear() -> Result<()> {
    const SECRET: &str = "/not-for-everyone";
    let mesh = mesh()?;
    let (mut near, far) = (mesh.agent(1)?, mesh.agent(2)?);
    let [a, b, c] = ["a", "b", "c"].map(|name| mesh.pod(name));
    reaches(a, c)?;
    let node = mesh.topology.node(1);
    let wire = Capture::start(mesh.topology.scope(), node, &node.wire_to(mesh.topology.node(2)))?;

    let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let lost = thread::scope(|scope| -> Result<Vec<String>> {
        let callers: Vec<_> = [(a, c), (c, a), (a, b)]
            .map(|(from, to)| {
                let (stop, answered) = (&stop, &answered);
                scope.spawn(move || call_until(stop, answered, from, to, SECRET))
            })
            .into();
        let replaced = (|| -> Result<Agent> {
            let mut open = [opened(a, c)?, opened(c, a)?];
            let mut next = start(&mesh, &next(&mesh))?;
            next.wait_ready(START)?;
            let old = near.pid();
            eventually(NOTICED, "the old agent to notice", || {
                near.log().contains("another agent serves").then_some(())
            })?;
            thread::sleep(Duration::from_millis(300));
            open.iter_mut().try_for_each(ask_again)?;
            kill(Pid::from_raw(i32::try_from(old)?), Signal::SIGTERM)?;
            thread::sleep(Duration::from_millis(500));
            // It has been asked to stop, and carries them.
            open.iter_mut().try_for_each(ask_again)?;
            ensure!(fs::metadata(format!("/proc/{old}")).is_ok(), "the old agent did not wait for what it carries");
            drop(open);
            near.terminate(START)?;
            everyone_reaches(&mesh).with_context(|| next.log())?;
            Ok(next)
        })();
        thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        let lost = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
        replaced.map(|_next| lost)
    })?;
    let answered = answered.load(Ordering::Relaxed);
    println!("{answered} connections meanwhile");
    ensure!(lost.is_empty(), "of {answered}: {lost:#?}\n{}\n{}", near.log(), far.log());
    ensure!(answered > 20, "only {answered} connections meanwhile");
    let seen = wire.finish()?;
    ensure!(!seen.holds(SECRET.as_bytes()), "the wire carried a request in clear");
    Ok(())
}

#[test]
fn one_agent_has_the_pods_the_other_takes_none_and_has_them_again_when_the_first_dies() -> Result<()> {
    let mesh = mesh()?;
    let (near, _far) = (mesh.agent(1)?, mesh.agent(2)?);
    let [a, c] = ["a", "c"].map(|name| mesh.pod(name));
    let mut next = start(&mesh, &next(&mesh))?;
    next.wait_ready(START)?;
    reaches(a, c)?;
    assert_eq!(carried(&near, "source", "mutual_tls")?, 0.0);
    eventually(NOTICED, "the old agent to notice", || near.log().contains("another agent serves").then_some(()))?;

    // A change for which the pod is taken in anew: by one of them.
    mesh.write_pods(|_, object| {
        Some(object.replace("annotations:", "annotations:\n    ambient.istio.io/dns-capture: \"false\""))
    })?;
    let enrolments = |agent: &Agent| agent.log().matches("enrolled").count();
    let before = enrolments(&near);
    eventually(START, "the pods to be taken in anew", || (enrolments(&next) >= 4).then_some(()))
        .with_context(|| next.log())?;
    reaches(a, c)?;
    assert_eq!(enrolments(&near), before, "{}", near.log());
    assert_eq!(carried(&near, "source", "mutual_tls")?, 0.0);

    next.kill()?;
    eventually(NOTICED, "the old agent to serve again", || reaches(a, c).ok()).with_context(|| near.log())?;
    everyone_reaches(&mesh).with_context(|| near.log())?;
    ensure!(carried(&near, "source", "mutual_tls")? > 0.0, "who carried it? {}", near.log());
    Ok(())
}

#[test]
fn a_pod_that_left_while_the_agent_that_had_it_hung_is_let_go_by_the_one_that_takes_over() -> Result<()> {
    let mesh = mesh()?;
    let (near, _far) = (mesh.agent(1)?, mesh.agent(2)?);
    let mut next = start(&mesh, &next(&mesh))?;
    next.wait_ready(START)?;
    eventually(NOTICED, "the old agent to notice", || near.log().contains("another agent serves").then_some(()))?;
    kill(Pid::from_raw(i32::try_from(next.pid())?), Signal::SIGSTOP)?;
    mesh.write_pods(|pod, object| (pod.name() != "b").then_some(object))?;
    eventually(START, "the pod to leave", || near.log().contains("left the mesh").then_some(()))?;
    let captured = || Ok::<_, anyhow::Error>(near.admin("/redirection")?.body.contains("shop-b"));
    ensure!(captured()?, "it was not this agent's to let go");

    next.kill()?;
    eventually(NOTICED, "the pod to be let go", || captured().is_ok_and(|captured| !captured).then_some(()))
        .with_context(|| near.log())?;
    // Each pod is taken over on its own, in no order.
    eventually(NOTICED, "the pod that stays to be served", || reaches(mesh.pod("a"), mesh.pod("c")).ok())
        .with_context(|| near.log())
}

/// Calls one connection after the other; what was not answered, and how.
fn call_until(stop: &AtomicBool, answered: &AtomicUsize, from: &Pod, to: &Pod, path: &str) -> Vec<String> {
    let mut lost = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        for ip in to.addresses() {
            let said = from.run(|| http::get(at(ip), path, LIMIT)).unwrap();
            match said {
                Ok(answer) if answer.body.contains(" saw ") => answered.fetch_add(1, Ordering::Relaxed),
                other => {
                    lost.push(format!("{} to {ip}: {other:?}", from.name()));
                    0
                }
            };
        }
    }
    lost
}

fn opened(from: &Pod, to: &Pod) -> Result<BufReader<TcpStream>> {
    let to = SocketAddr::new(to.ipv4(), PORT);
    let stream = from.run(|| TcpStream::connect_timeout(&to, LIMIT))??;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut open = BufReader::new(stream);
    ask_again(&mut open)?;
    Ok(open)
}

/// One more request on a connection that stays open.
fn ask_again(open: &mut BufReader<TcpStream>) -> Result<()> {
    open.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut line = String::new();
    while !line.contains(" saw ") {
        line.clear();
        ensure!(open.read_line(&mut line).context("an open connection")? > 0, "an open connection was closed");
    }
    Ok(())
}
