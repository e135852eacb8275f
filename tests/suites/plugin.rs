//! The CNI plugin as a container runtime calls it, against a real agent: what it lets start, and what it does not.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;
mod runtime;

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_tests::{Histogram, Pod, eventually, objects};
use datapath::{LIMIT, Mesh, START, ask, at, reaches};
use runtime::{CONFLIST, Runtime};

/// The pod's object as it is when its sandbox is made: no address, no network namespace.
fn without_network(pod: &Pod) -> String {
    let object = objects::pod(pod, pod.name());
    let (head, _) = object.split_once("status:").expect("a pod of the harness has a status");
    let lines = head.lines().filter(|line| !line.contains("culvert.dev/netns") && !line.contains("annotations:"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// What the kubelet writes later, the addresses in another order.
fn with_network(pod: &Pod) -> String {
    let [ipv4, ipv6] = pod.addresses();
    without_network(pod)
        + &format!("status: {{phase: Running, podIP: \"{ipv6}\", podIPs: [{{ip: \"{ipv6}\"}}, {{ip: {ipv4}}}]}}\n")
}

/// A mesh whose first node's agent installs the plugin.
fn mesh(pods: &[(u8, &str, &str)]) -> Result<(Mesh, Runtime)> {
    let mut mesh = Mesh::new(pods)?;
    let runtime = Runtime::create(&mesh.topology)?;
    mesh.config.arguments.extend(runtime.flags());
    mesh.write_pods(|pod, object| Some(if pod.node() == "n1" { without_network(pod) } else { object }))?;
    mesh.mtls("STRICT")?;
    Ok((mesh, runtime))
}

/// How often a pod has been taken in.
fn enrolments(log: &str, pod: &str) -> usize {
    log.lines().filter(|line| line.contains(pod) && line.contains("enrolled")).count()
}

#[test]
fn a_pod_of_the_mesh_is_in_it_when_its_sandbox_is_ready_and_stays_in_when_the_api_server_catches_up() -> Result<()> {
    let (mesh, runtime) = mesh(&[(1, "shop", "a"), (2, "outside", "o")])?;
    let (a, o) = (mesh.pod("a"), mesh.pod("o"));
    let agent = mesh.agent(1)?;
    ensure!(ask(&o.place(), at(a.ipv4())).is_ok(), "captured before its sandbox was made");
    let result = runtime.add(a)?.success()?;
    ensure!(result.trim() == Runtime::result(a), "the result before is not passed on: {result}");
    ensure!(ask(&o.place(), at(a.ipv4())).is_err(), "plaintext is accepted once the plugin is done\n{}", agent.log());
    reaches(a, o).with_context(|| agent.log())?;
    runtime.call("CHECK", a)?.success()?;

    mesh.write_pods(|pod, object| Some(if pod.node() == "n1" { with_network(pod) } else { object }))?;
    eventually(LIMIT, "the addresses to be known", || {
        let dump = agent.admin("/config_dump").ok()?.body;
        let at = |ip: std::net::IpAddr| dump.find(&format!("\"{ip}\""));
        (at(a.ipv6())? < at(a.ipv4())?).then_some(())
    })
    .with_context(|| agent.log())?;
    ensure!(ask(&o.place(), at(a.ipv4())).is_err(), "in clear after the API server caught up");
    ensure!(enrolments(&agent.log(), "shop/a") == 1, "enrolled more than once:\n{}", agent.log());

    runtime.call("DEL", a)?.success()?;
    eventually(LIMIT, "the pod to be let go with its sandbox", || ask(&o.place(), at(a.ipv4())).ok())
        .with_context(|| agent.log())?;
    let counted =
        |command, result| agent.metric("culvert_cni_requests_total", &[("command", command), ("result", result)]);
    ensure!(counted("ADD", "enrolled")? == 1.0 && counted("DEL", "done")? == 1.0, "{}", agent.metrics()?);
    Ok(())
}

#[test]
fn a_pod_whose_object_comes_late_is_waited_for_and_one_outside_starts_and_can_be_labelled_later() -> Result<()> {
    let (mesh, runtime) = mesh(&[(1, "shop", "a"), (1, "outside", "b"), (2, "outside", "o")])?;
    let (a, b, o) = (mesh.pod("a"), mesh.pod("b"), mesh.pod("o"));
    mesh.write_pods(|pod, object| (pod.node() != "n1").then_some(object))?;
    let agent = mesh.agent(1)?;
    let adding = runtime.spawn("ADD", a)?;
    std::thread::sleep(Duration::from_millis(700));
    mesh.write_pods(|pod, object| Some(if pod.node() == "n1" { without_network(pod) } else { object }))?;
    adding.finish(START)?.success().with_context(|| agent.log())?;
    ensure!(ask(&o.place(), at(a.ipv4())).is_err(), "plaintext is accepted");

    runtime.add(b)?.success()?;
    ensure!(ask(&o.place(), at(b.ipv4())).is_ok(), "captured though outside");
    let outside = agent.metric("culvert_cni_requests_total", &[("command", "ADD"), ("result", "not_in_mesh")])?;
    ensure!(outside == 1.0, "{}", agent.metrics()?);
    // Its network namespace is known from then on.
    mesh.directory.write("namespaces", &[objects::namespace("shop", true), objects::namespace("outside", true)])?;
    eventually(LIMIT, "a label to take the running pod in", || {
        (enrolments(&agent.log(), "outside/b") == 1).then_some(())
    })
    .with_context(|| agent.log())
}

#[test]
fn a_list_of_what_is_in_use_that_is_missing_or_anothers_takes_no_running_pod_out_of_the_mesh() -> Result<()> {
    let (mesh, runtime) = mesh(&[(1, "shop", "a"), (1, "shop", "b"), (2, "outside", "o")])?;
    let [a, b, o] = ["a", "b", "o"].map(|name| mesh.pod(name));
    let agent = mesh.agent(1)?;
    runtime.add(a)?.success()?;
    // A name of its network namespace that can be taken away.
    let link = runtime.state().join("netns-of-b");
    std::os::unix::fs::symlink(b.netns().path(), &link)?;
    runtime.call_with("ADD", "shop", b, &link.display().to_string(), &b.addresses())?.success()?;
    let missing = runtime.collect_garbage(None, a)?;
    ensure!(!missing.status.success() && missing.stdout.contains("cni.dev/valid-attachments"), "{}", missing.stdout);
    for valid in [&["another-runtimes"][..], &[]] {
        runtime.collect_garbage(Some(valid), a)?.success()?;
    }
    std::thread::sleep(Duration::from_secs(1));
    for pod in [a, b] {
        ensure!(ask(&o.place(), at(pod.ipv4())).is_err(), "{} is let go\n{}", pod.name(), agent.log());
        reaches(pod, o).with_context(|| agent.log())?;
    }

    fs::remove_file(&link)?;
    runtime.collect_garbage(Some(&["sandbox-a"]), a)?.success()?;
    eventually(LIMIT, "what is really gone to be let go", || ask(&o.place(), at(b.ipv4())).ok())
        .with_context(|| agent.log())?;
    ensure!(ask(&o.place(), at(a.ipv4())).is_err(), "the other is let go\n{}", agent.log());
    Ok(())
}

#[test]
fn without_an_agent_nothing_of_the_mesh_starts_and_everything_else_does() -> Result<()> {
    let (mesh, runtime) = mesh(&[(1, "shop", "a"), (1, "shop", "late"), (1, "outside", "b"), (2, "outside", "o")])?;
    let [a, late, b, o] = ["a", "late", "b", "o"].map(|name| mesh.pod(name));
    let mut agent = mesh.agent(1)?;
    runtime.add(a)?.success()?;
    eventually(LIMIT, "the plugin's cache", || runtime.state().join("cni-mesh.json").exists().then_some(()))?;
    agent.kill()?;

    let (code, msg) = runtime.refusal(late)?;
    ensure!(code == 11 && msg.contains("shop/late") && msg.contains("culvert-node"), "{code}: {msg}");
    ensure!(!msg.contains('\n'), "{msg}");
    runtime.add(b)?.success()?;
    runtime.call_as("ADD", "kube-system", b)?.success()?;
    let unknown = runtime.call_as("ADD", "brand-new", b)?;
    ensure!(!unknown.status.success(), "nobody knows that namespace: {}", unknown.stdout);
    runtime.call_as("STATUS", "shop", b)?.success()?;
    // A sandbox goes all the same, and is not taken for a pod's by the next agent.
    runtime.call("DEL", b)?.success()?;
    ensure!(fs::read_dir(runtime.state().join("sandboxes"))?.count() == 1);

    // The pod that has no address in the API server yet is captured all the time.
    let mut agent = mesh.start(1)?;
    eventually(START, "the new agent to serve the pod", || {
        if ask(&o.place(), at(a.ipv4())).is_ok() {
            return Some(Err(anyhow::anyhow!("plaintext came through\n{}", agent.log())));
        }
        agent.log().contains("requires mTLS").then_some(Ok(()))
    })??;
    agent.wait_ready(START)?;
    runtime.add(late)?.success().with_context(|| agent.log())?;
    reaches(late, o).with_context(|| agent.log())
}

#[test]
fn a_sandbox_that_is_not_the_pods_does_not_start_and_leaves_the_first_pod_as_it_is() -> Result<()> {
    let (mesh, runtime) = mesh(&[(1, "shop", "a"), (1, "shop", "b"), (2, "outside", "o")])?;
    let (a, b, o) = (mesh.pod("a"), mesh.pod("b"), mesh.pod("o"));
    let agent = mesh.agent(1)?;
    runtime.add(a)?.success()?;
    let host = mesh.topology.node(1).netns().path().display().to_string();
    let (own, other) = (b.netns().path().display().to_string(), a.netns().path().display().to_string());
    let ips = |pod: &Pod| pod.addresses().to_vec();
    for (netns, addresses, says) in [
        (host, ips(b), "the node's own network namespace"),
        (other.clone(), ips(b), "holds none of its addresses"),
        (other, ips(a), "already enrolled for pod shop-a"),
        (own, ips(a), "holds none of its addresses"),
        ("/run/netns/nothing".to_owned(), ips(b), "no network namespace"),
    ] {
        let refused = runtime.call_with("ADD", "shop", b, &netns, &addresses)?;
        ensure!(!refused.status.success() && refused.stdout.contains(says), "{netns}: {}", refused.stdout);
        runtime.call("DEL", b)?.success()?;
    }
    ensure!(ask(&o.place(), at(a.ipv4())).is_err(), "the first pod is not captured any more\n{}", agent.log());
    reaches(a, o).with_context(|| agent.log())?;
    runtime.add(b)?.success().with_context(|| agent.log())?;
    reaches(b, o)
}

#[test]
fn two_pods_with_one_address_are_not_both_taken_in() -> Result<()> {
    let (mesh, runtime) = mesh(&[(1, "shop", "a"), (1, "shop", "b"), (2, "outside", "o")])?;
    let (a, b, o) = (mesh.pod("a"), mesh.pod("b"), mesh.pod("o"));
    let agent = mesh.agent(1)?;
    runtime.add(a)?.success()?;
    b.netns().ip(&format!("addr add {}/32 dev lo", a.ipv4()))?;
    let claimed = [b.ipv4(), a.ipv4()];
    let refused = runtime.call_with("ADD", "shop", b, &b.netns().path().display().to_string(), &claimed)?;
    let says = format!("its address {} is pod shop-a's", a.ipv4());
    ensure!(!refused.status.success() && refused.stdout.contains(&says), "{}", refused.stdout);
    ensure!(ask(&o.place(), at(a.ipv4())).is_err(), "the first pod is not captured any more\n{}", agent.log());
    reaches(a, o).with_context(|| agent.log())
}

#[test]
fn an_agent_that_never_answers_is_as_good_as_none() -> Result<()> {
    let (mesh, runtime) = mesh(&[(1, "shop", "a"), (1, "outside", "b")])?;
    fs::create_dir_all(runtime.socket().parent().context("a socket has a directory")?)?;
    let _silent = UnixListener::bind(runtime.socket())?;
    let started = Instant::now();
    let (code, msg) = runtime.refusal(mesh.pod("a"))?;
    ensure!(code == 11 && msg.contains("does not answer within 2 s"), "{code}: {msg}");
    ensure!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    runtime.call_as("ADD", "kube-system", mesh.pod("b"))?.success().map(drop)
}

#[test]
fn the_plugin_is_installed_repaired_kept_through_an_upgrade_and_removed_without_a_trace() -> Result<()> {
    let (mesh, runtime) = mesh(&[(1, "shop", "a")])?;
    let conflist = runtime.configurations().join("10-net.conflist");
    fs::write(runtime.configurations().join("05-broken.conflist"), "not json")?;
    let installed = || fs::read_to_string(&conflist).is_ok_and(|text| text.contains("culvert-cni"));
    let mut agent = mesh.agent(1)?;
    ensure!(installed(), "ready, and not installed");
    agent.wait_for_line(LIMIT, "a line on the broken one", |line| {
        line.contains("05-broken.conflist") && line.contains("not JSON")
    })?;
    fs::write(&conflist, CONFLIST)?;
    eventually(LIMIT, "an overwritten configuration to be repaired", || installed().then_some(()))?;

    agent.terminate(START)?;
    ensure!(installed() && runtime.plugin().exists(), "an upgrade must keep the plugin");
    runtime.uninstall()?;
    ensure!(fs::read_to_string(&conflist)? == CONFLIST, "{}", fs::read_to_string(&conflist)?);
    ensure!(fs::read_to_string(runtime.configurations().join("05-broken.conflist"))? == "not json");
    ensure!(!runtime.plugin().exists() && !runtime.socket().exists());
    ensure!(fs::read_dir(runtime.state())?.count() == 0, "something is left in the state directory");
    Ok(())
}

/// The figures are of whatever build this is: unoptimized, an upper bound.
#[test]
fn an_add_takes_a_moment() -> Result<()> {
    const PODS: usize = 12;
    let names: Vec<String> = (0..PODS).map(|number| format!("p{number}")).collect();
    let pods: Vec<_> = names.iter().map(|name| (1, "shop", name.as_str())).collect();
    let (mesh, runtime) = mesh(&pods)?;
    let same = |pod: &Pod| {
        without_network(pod).replace(&format!("serviceAccountName: {}", pod.name()), "serviceAccountName: one")
    };
    let mut agent = mesh.agent(1)?;
    for (what, limit, shared) in [("a new", Duration::from_secs(5), false), ("a warm", Duration::from_secs(5), true)] {
        mesh.write_pods(|pod, _| Some(if shared { same(pod) } else { without_network(pod) }))?;
        let mut took = Histogram::default();
        for (at, name) in names.iter().enumerate() {
            let finished = runtime.add(mesh.pod(name))?;
            finished.clone().success().with_context(|| agent.log())?;
            // The first pod of the shared account fetches its certificate.
            if !shared || at > 0 {
                took.record(finished.took);
            }
        }
        let (p50, p99) = (took.quantile(0.5), took.quantile(0.99));
        println!("CNI ADD with {what} certificate, process and all: p50 {p50:?}, p99 {p99:?}");
        ensure!(p99 < limit, "{what}: p99 {p99:?}");
        for name in &names {
            runtime.call("DEL", mesh.pod(name))?.success()?;
        }
        mesh.write_pods(|_, _| None)?;
        agent.wait_ready(START)?;
    }
    Ok(())
}
