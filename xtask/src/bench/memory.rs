//! What the agent keeps in memory.

use std::fs;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_tests::{Agent, ConfigDir, Nginx, Process, Topology, eventually, objects};

use super::contender::{HTTP, config, release, start_agents};
use super::report::Report;

const LIMIT: Duration = Duration::from_secs(120);
/// Pods added to tell the cost of one, beside those that were there before.
const PODS: u8 = 50;
/// Pods added before that: taking one in brings text back that agents gave up when they had started.
const PODS_BEFORE: u8 = 5;
/// Connections held open to tell the cost of one, beside those that were there before.
const CONNECTIONS: u32 = 3000;
/// Connections held open before that, so that what is paid once is not counted as theirs: buffers, tables, and what
/// the allocator takes from the system ahead of need.
const CONNECTIONS_BEFORE: u32 = 1000;
const WORKLOADS: usize = 10_000;

/// Measures this build; figures are of one agent.
pub(super) fn measure(report: &mut Report) -> Result<()> {
    eprintln!("bench: memory, idle connections");
    connections(report)?;
    eprintln!("bench: memory, pods");
    pods(report)?;
    eprintln!("bench: memory, workloads");
    workloads(report)
}

fn connections(report: &mut Report) -> Result<()> {
    let mut topology = Topology::new(2)?;
    topology.add_pod(1, "bench", "client")?;
    topology.add_pod(2, "bench", "server")?;
    let _nginx = Nginx::start(topology.scope(), topology.pod("server"), HTTP, "text")?;
    let agents = start_agents(&topology, &config(&topology)?)?;
    report.memory("RSS idle with one pod", "MB", settled(&agents[0])?.0 / 1e6);

    let held_before = hold(&topology, CONNECTIONS_BEFORE)?;
    let before = [settled(&agents[0])?, settled(&agents[1])?];
    let held = hold(&topology, CONNECTIONS)?;
    let after = [settled(&agents[0])?, settled(&agents[1])?];
    drop((held, held_before));
    for ((side, before), after) in ["client's node", "server's node"].iter().zip(before).zip(after) {
        let each = (after.0 - before.0) / f64::from(CONNECTIONS);
        report.memory(&format!("RSS per idle connection, {side}"), "kB", each / 1e3);
        let each = (after.1 - before.1) / f64::from(CONNECTIONS);
        report.memory(&format!("descriptors per idle connection, {side}"), "", each);
    }
    Ok(())
}

fn hold(topology: &Topology, connections: u32) -> Result<Process> {
    let mut command = topology.pod("client").place().command(release("culvert-load"))?;
    let server = topology.pod("server").ipv4();
    command.args(["hold", &format!("{server}:{HTTP}"), &connections.to_string(), &LIMIT.as_secs().to_string()]);
    let mut process = Process::spawn("culvert-load", command)?;
    process.wait_for_line(LIMIT, "all connections to be open", |line| line.starts_with("holding"))?;
    Ok(process)
}

fn pods(report: &mut Report) -> Result<()> {
    let mut topology = Topology::new(1)?;
    topology.add_pod(1, "bench", "client")?;
    let directory = config(&topology)?;
    let agents = start_agents(&topology, &directory)?;
    settled(&agents[0])?;
    enrol(&mut topology, &directory, &agents[0], 0..PODS_BEFORE)?;
    let before = settled(&agents[0])?;
    enrol(&mut topology, &directory, &agents[0], PODS_BEFORE..PODS_BEFORE + PODS)?;
    let after = settled(&agents[0])?;
    report.memory("RSS per pod", "kB", (after.0 - before.0) / f64::from(PODS) / 1e3);
    report.memory("descriptors per pod", "", (after.1 - before.1) / f64::from(PODS));
    Ok(())
}

/// Adds pods, and waits until all are enrolled.
fn enrol(topology: &mut Topology, directory: &ConfigDir, agent: &Agent, numbers: Range<u8>) -> Result<()> {
    for n in numbers {
        topology.add_pod(1, "bench", &format!("pod-{n}"))?;
    }
    let objects: Vec<_> = topology.pods().iter().map(|pod| objects::pod(pod, pod.name())).collect();
    directory.write("pods", &objects)?;
    let all = objects.len() as f64;
    eventually(LIMIT, "all pods to be enrolled", || {
        let active = agent.metric("workload_manager_active_proxy_count", &[]).ok()?;
        (active >= all).then_some(())
    })
}

fn workloads(report: &mut Report) -> Result<()> {
    let mut topology = Topology::new(1)?;
    topology.add_pod(1, "bench", "client")?;
    let directory = config(&topology)?;
    // In files of a hundred, as a cluster's objects come from many hands.
    for file in 0..WORKLOADS / 100 {
        let elsewhere: Vec<_> = (0..100).map(|n| workload(file * 100 + n)).collect();
        directory.write(&format!("elsewhere-{file}"), &elsewhere)?;
    }
    let started = Instant::now();
    let agents = start_agents(&topology, &directory)?;
    report.memory("ready with 10k workloads", "s", started.elapsed().as_secs_f64());
    report.memory("RSS with 10k workloads", "MB", settled(&agents[0])?.0 / 1e6);
    Ok(())
}

/// A pod on some other node.
fn workload(n: usize) -> String {
    let (high, low) = (n / 250, n % 250 + 1);
    format!(
        "\
apiVersion: v1
kind: Pod
metadata:
  name: app-{app}-7d9c5b8f6d-{n:05}
  namespace: bench
  uid: 6f1c2a34-0000-4000-8000-{n:012}
  labels: {{app: app-{app}, version: v1, pod-template-hash: 7d9c5b8f6d}}
  ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: app-{app}-7d9c5b8f6d, uid: r-{app}, controller: true}}]
spec:
  nodeName: elsewhere-{node}
  serviceAccountName: app-{app}
  containers: [{{name: app, image: app}}]
status:
  phase: Running
  conditions: [{{type: Ready, status: \"True\"}}]
  podIP: 10.200.{high}.{low}
  podIPs: [{{ip: 10.200.{high}.{low}}}]
",
        app = n / 10,
        node = n / 100,
    )
}

/// Resident bytes and descriptors of an agent, once they have stopped to change.
pub(super) fn settled(agent: &Agent) -> Result<(f64, f64)> {
    let mut last = (usage(agent)?, Instant::now());
    eventually(LIMIT, "the agent's memory to settle", || {
        let now = usage(agent).ok()?;
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(2)).then_some(last.0)
    })
}

fn usage(agent: &Agent) -> Result<(f64, f64)> {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    ensure!(kilobytes > 0.0, "the agent is gone");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count();
    Ok((kilobytes * 1024.0, descriptors as f64))
}
