//! What it costs, measured on the installed Culvert.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_tests::{Histogram, eventually};

use super::facts::agent_on;
use super::install::{NAMESPACE, ready};
use super::world::{LIMIT, OUTSIDE, SHOP, World, pod};

/// How long the agents are watched for requests.
const IDLE: Duration = Duration::from_secs(60);
const PODS: u32 = 10;

pub(super) fn measure(world: &World) -> Result<()> {
    println!();
    idle(world)?;
    cni_add(world)?;
    restart(world)
}

fn figure(name: &str, value: impl fmt::Display) {
    println!("         {name:<60} {value}");
}

/// What agents that have nothing to do ask the API server for: renewals of watches, and nothing else.
fn idle(world: &World) -> Result<()> {
    let before = world.cluster.audit()?.len();
    thread::sleep(IDLE);
    let agent = format!("system:serviceaccount:{NAMESPACE}:culvert-node");
    let requests = world.cluster.requests_of(&agent, before)?;
    let others: Vec<_> = requests.iter().filter(|request| request.verb != "watch").collect();
    figure(&format!("requests of 2 idle agents in {} s, other than watches", IDLE.as_secs()), others.len());
    ensure!(others.is_empty(), "an idle agent asks for more than watches: {others:?}");
    Ok(())
}

/// From a pod's creation to its first process, in the mesh and outside: the difference is what ADD adds.
fn cni_add(world: &World) -> Result<()> {
    let mut medians = Vec::new();
    for namespace in [OUTSIDE, SHOP] {
        let mut took = Histogram::default();
        for number in 0..PODS {
            let name = format!("measured-{number}");
            let started = Instant::now();
            world.cluster.apply(&pod(namespace, &name, "n1"))?;
            world.await_running(namespace, &name)?;
            took.record(started.elapsed());
            world.cluster.kubectl(&["delete", "pod", &name, "--namespace", namespace, "--wait=true"])?;
        }
        medians.push((took.quantile(0.5), took.quantile(1.0)));
    }
    for (name, (median, longest)) in ["outside the mesh", "in the mesh"].iter().zip(&medians) {
        figure(&format!("a pod {name}: kubectl apply to Ready, median"), format!("{} ms", median.as_millis()));
        figure(
            &format!("a pod {name}: kubectl apply to Ready, longest of {PODS}"),
            format!("{} ms", longest.as_millis()),
        );
    }
    Ok(())
}

/// From an agent's end to the next answer.
fn restart(world: &World) -> Result<()> {
    let agent = agent_on(world, "n1")?;
    let uid = world.pod(NAMESPACE, &agent)?["status"]["containerStatuses"][0]["containerID"].clone();
    let id = uid.as_str().and_then(|id| id.strip_prefix("containerd://")).context("an agent without a container")?;
    let started = Instant::now();
    world.node(1).kill(id)?;
    world.await_call(SHOP, "client", world.service, true)?;
    figure(
        "an agent killed: to the next answer, the kubelet's part included",
        format!("{} ms", started.elapsed().as_millis()),
    );
    eventually(LIMIT, "the agent to be ready", || ready(world).ok())
}
