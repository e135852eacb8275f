//! What it costs, measured on the installed Culvert.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use culvert_tests::{Histogram, eventually, http};
use serde_json::json;

use super::install::{NAMESPACE, ready};
use super::world::{LIMIT, SHOP, World, agent_on, pod};

/// How long the agents are watched for requests.
const IDLE: Duration = Duration::from_secs(60);
/// How many pods are added of each kind.
const PODS: usize = 100;
const AT_ONCE: usize = 5;
/// What CNI ADD may add, at p99.
const WARM: Duration = Duration::from_millis(50);
const FRESH: Duration = Duration::from_millis(250);
const CHANGES: usize = 1000;
const ANSWER: Duration = Duration::from_secs(5);

pub(super) fn measure(world: &World) -> Result<()> {
    println!();
    idle(world)?;
    propagation(world)?;
    cni_add(world)?;
    restart(world)?;
    println!();
    Ok(())
}

fn figure(name: &str, value: impl fmt::Display) {
    println!("        {name:<64} {value}");
}

fn distribution(name: &str, took: &Histogram) {
    for (label, share) in [("median", 0.5), ("p99", 0.99), ("longest", 1.0)] {
        let value = took.quantile(share).as_secs_f64() * 1000.0;
        figure(&format!("{name}, {label} of {}", took.count()), format!("{value:.0} ms"));
    }
}

/// What agents that have nothing to do ask the API server for: renewals of watches, and nothing else.
fn idle(world: &World) -> Result<()> {
    let before = world.cluster.audit()?.len();
    thread::sleep(IDLE);
    let agent = format!("system:serviceaccount:{NAMESPACE}:culvert-node");
    let requests = world.cluster.requests_of(&agent, before)?;
    let others: Vec<_> = requests.iter().filter(|request| request.verb != "watch").collect();
    let seconds = IDLE.as_secs();
    figure(&format!("watches renewed by 2 idle agents in {seconds} s"), requests.len() - others.len());
    figure(&format!("other requests of 2 idle agents in {seconds} s"), others.len());
    ensure!(others.is_empty(), "an idle agent asks for more than watches: {others:?}");
    Ok(())
}

/// From the request that writes or deletes a policy to the first connection that is treated by it.
fn propagation(world: &World) -> Result<()> {
    let path = format!("/apis/security.istio.io/v1/namespaces/{SHOP}/authorizationpolicies");
    let policy = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "measured" },
        "spec": { "action": "DENY", "rules": [{ "to": [{ "operation": { "ports": ["8080"] } }] }] },
    });
    let web = world.address(SHOP, "web")?;
    let caller = world.topology.node(1).place();
    let mut took = Histogram::default();
    for change in 0..CHANGES {
        let denied = change % 2 == 0;
        let started = Instant::now();
        match denied {
            true => world.cluster.request("POST", &path, Some(&policy))?.success()?,
            false => world.cluster.request("DELETE", &format!("{path}/measured"), None)?.success()?,
        };
        eventually(LIMIT, "a policy to be enforced", || {
            let answered = caller.run(|| http::get(web, "/", ANSWER)).ok()?.is_ok();
            (answered != denied).then_some(())
        })?;
        took.record(started.elapsed());
    }
    distribution("a policy written: to its enforcement on the node", &took);
    ensure!(took.quantile(0.99) < Duration::from_millis(500), "a policy must be enforced within 500 ms");
    Ok(())
}

/// What the plugin adds to the start of a pod, as the container runtime sees it.
fn cni_add(world: &World) -> Result<()> {
    let machine = world.node(1).machine();
    machine.output(LIMIT, "/bin/sh", &["-euc", TIMED_PLUGIN])?.success()?;
    let warm = add_pods(world, "warm", false)?;
    let fresh = add_pods(world, "fresh", true)?;
    distribution("CNI ADD with a warm certificate", &warm);
    distribution("CNI ADD with a new certificate", &fresh);
    // The last pods may still be going, with a plugin at work.
    machine.output(LIMIT, "umount", &["--lazy", "/opt/cni/bin"])?.success()?;
    ensure!(warm.quantile(0.99) < WARM, "CNI ADD must add less than {WARM:?} with a warm certificate");
    ensure!(fresh.quantile(0.99) < FRESH, "CNI ADD must add less than {FRESH:?} with a new certificate");
    Ok(())
}

fn add_pods(world: &World, kind: &str, own_account: bool) -> Result<Histogram> {
    let times = world.node(1).machine().path("/run/cni-times");
    let _ = std::fs::remove_file(&times);
    let names: Vec<_> = (0..PODS).map(|number| format!("{kind}-{number}")).collect();
    for names in names.chunks(AT_ONCE) {
        let mut documents = Vec::new();
        for name in names {
            let mut document = pod(SHOP, name, "n1");
            if own_account {
                world.cluster.service_account(SHOP, name)?;
                document = document.replace("spec:\n", &format!("spec:\n  serviceAccountName: {name}\n"));
            }
            documents.push(document);
        }
        let documents = documents.join("---\n");
        world.cluster.apply(&documents)?;
        names.iter().try_for_each(|name| world.await_running(SHOP, name))?;
        world.cluster.delete(&documents)?;
    }
    let mut took = Histogram::default();
    for line in std::fs::read_to_string(&times)?.lines() {
        let [started, ended] = *line.split(' ').collect::<Vec<_>>() else { continue };
        took.record(Duration::from_nanos(ended.parse::<u64>()?.saturating_sub(started.parse()?)));
    }
    ensure!(took.count() >= PODS as u64, "the plugin was called {} times for {PODS} pods", took.count());
    Ok(took)
}

/// Over the directory of plugins, one in which ours is a script that says when it ran. Only the container runtime sees
/// it: the agent has its own view of the directory.
const TIMED_PLUGIN: &str = r#"
mkdir -p /run/timed/real
cp /opt/cni/bin/* /run/timed/
mv /run/timed/culvert-cni /run/timed/real/
cat >/run/timed/culvert-cni <<'SCRIPT'
#!/bin/bash
started=$(date +%s%N)
/run/timed/real/culvert-cni "$@"
code=$?
[ "$CNI_COMMAND" != ADD ] || echo "$started $(date +%s%N)" >>/run/cni-times
exit $code
SCRIPT
chmod +x /run/timed/culvert-cni
mount --bind /run/timed /opt/cni/bin
"#;

/// From an agent's end to the first connection that its pods take again.
fn restart(world: &World) -> Result<()> {
    let web = world.address(SHOP, "web")?;
    let caller = world.topology.node(1).place();
    let agent = agent_on(world, "n2")?;
    let id = culvert_tests::kube::container(&world.cluster, NAMESPACE, &agent)?;
    let started = Instant::now();
    world.node(2).kill(&id)?;
    let call = || caller.run(|| http::get(web, "/", ANSWER)).is_ok_and(|answer| answer.is_ok());
    eventually(LIMIT, "a dead agent's pods to be out of reach", || (!call()).then_some(()))?;
    eventually(LIMIT, "a new agent's pods to be reached", || call().then_some(()))?;
    let served = SystemTime::now().duration_since(UNIX_EPOCH)?;
    figure(
        "an agent killed: to the next answer, the kubelet's part included",
        format!("{} ms", started.elapsed().as_millis()),
    );
    let log = world.node(2).log(&world.cluster, NAMESPACE, &agent)?;
    let began = log.lines().rev().find(|line| line.contains("culvert node")).context("the agent logged no start")?;
    let time = began.split_whitespace().next().unwrap_or_default();
    let printed = world.node(2).machine().output(LIMIT, "date", &["--date", time, "+%s%N"])?.success()?;
    let began = Duration::from_nanos(printed.trim().parse()?);
    let took = served.saturating_sub(began);
    figure("an agent started: from its first line to the next answer", format!("{} ms", took.as_millis()));
    ensure!(took < Duration::from_secs(2), "an agent must serve within 2 s of its start");
    ready(world)
}
