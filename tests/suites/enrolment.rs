//! Pods are taken in and let go without a trace, and what cannot be taken in harms nobody else.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use culvert_tests::http::Server;
use culvert_tests::{Agent, Pod, Topology, eventually};
use datapath::{Counts, LIMIT, Mesh, PORT, START, ask, at, carried, reaches};

#[test]
fn a_pod_that_leaves_finds_its_namespace_as_it_was_and_may_finish_what_it_says() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "o")])?;
    let (a, o) = (mesh.pod("a"), mesh.pod("o"));
    let untouched = plumbing(a)?;
    let agent = mesh.agent(1)?;
    reaches(a, o)?;
    ensure!(plumbing(a)? != untouched, "enrolment leaves traces, or this test sees none");

    // One connection each way is open when the label goes.
    let mut outgoing = a.run(|| TcpStream::connect_timeout(&at(o.ipv4()), LIMIT))??;
    let mut incoming = o.run(|| TcpStream::connect_timeout(&at(a.ipv4()), LIMIT))??;
    for stream in [&mut outgoing, &mut incoming] {
        ensure!(exchange(stream)?.contains(" saw "));
    }
    let before = Counts::of(&agent)?;
    mesh.enrol(false)?;
    eventually(LIMIT, "new connections to go past the agent", || {
        let counted = Counts::of(&agent).ok()?;
        reaches(o, a).and_then(|()| reaches(a, o)).ok()?;
        (Counts::of(&agent).ok()? == counted).then_some(())
    })
    .with_context(|| agent.log())?;
    for stream in [&mut outgoing, &mut incoming] {
        ensure!(exchange(stream)?.contains(" saw "), "a live connection was cut");
    }
    drop((outgoing, incoming));
    eventually(LIMIT, "the namespace to be as it was", || (plumbing(a).ok()? == untouched).then_some(()))
        .with_context(|| differences(&untouched, &plumbing(a).unwrap_or_default()))?;
    ensure!(pods(&agent)?.is_empty() && pins(&mesh.topology)?.is_empty());

    // And in again.
    mesh.enrol(true)?;
    eventually(LIMIT, "the pod to be captured again", || {
        reaches(a, o).ok()?;
        let grown = Counts::of(&agent).ok()?.since(&before);
        (grown.get("outbound").copied().unwrap_or_default() > 0 && pods(&agent).ok()?.len() == 1).then_some(())
    })
}

#[test]
fn a_wrong_netns_annotation_is_refused_with_a_clear_line_and_the_others_work() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (1, "shop", "b"), (2, "shop", "c")])?;
    let [a, b, c] = ["a", "b", "c"].map(|name| mesh.pod(name));
    let own = a.netns().path().display().to_string();
    let annotated = |netns: String| {
        let own = own.clone();
        mesh.write_pods(move |pod, object| Some(if pod.name() == "a" { object.replace(&own, &netns) } else { object }))
    };
    annotated("/run/netns/nothing-here".to_owned())?;
    let untouched = (plumbing(a)?, plumbing(b)?);
    let mut near = mesh.start(1)?;
    let _far = mesh.agent(2)?;
    let host = mesh.topology.node(1).netns();
    let before = (rules(host.path())?, host.ip_once(&["route", "show", "table", "all"])?);
    for (netns, says) in [
        ("/run/netns/nothing-here".to_owned(), "no network namespace at"),
        (b.netns().path().display().to_string(), "holds none of its addresses"),
        (host.path().display().to_string(), "the node's own network namespace"),
        ("/etc/passwd".to_owned(), "no network namespace at"),
    ] {
        annotated(netns.clone())?;
        let line = near.wait_for_line(LIMIT, says, |line| line.contains(says) && line.contains(&netns))?;
        ensure!(line.contains("shop/a"), "the line names the pod: {line}");
        eventually(LIMIT, "the others to work", || reaches(b, c).and_then(|()| reaches(c, b)).ok())
            .with_context(|| near.log())?;
        ensure!(plumbing(a)? == untouched.0, "the pod itself was touched");
        ensure!(pods(&near)?.keys().eq(["shop-b"]));
        // Or one such pod would hold up every rollout.
        near.wait_ready(START)?;
    }
    ensure!((rules(host.path())?, host.ip_once(&["route", "show", "table", "all"])?) == before, "the node was touched");
    annotated(own.clone())?;
    eventually(START, "the pod to be enrolled", || (pods(&near).ok()?.len() == 2).then_some(()))?;
    reaches(a, c)
}

#[test]
fn a_half_done_step_is_undone_and_tried_again() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a")])?;
    let a = mesh.pod("a");
    // The steering route needs it: the fourth step of six fails.
    a.netns().ip("link set lo down")?;
    let untouched = plumbing(a)?;
    let mut agent = mesh.start(1)?;
    agent.wait_for_line(START, "the failure", |line| line.contains("cannot add the routing rules (is `lo` up"))?;
    ensure!(plumbing(a)? == untouched, "{}", differences(&untouched, &plumbing(a)?));
    ensure!(pins(&mesh.topology)?.is_empty() && pods(&agent)?.is_empty());
    a.netns().ip("link set lo up")?;
    agent.wait_ready(START)?;
    ensure!(pods(&agent)?.len() == 1);
    Ok(())
}

#[test]
fn pods_that_went_while_no_agent_ran_are_collected_and_a_new_sandbox_is_taken_in() -> Result<()> {
    let mut mesh = Mesh::new(&[(1, "shop", "a"), (1, "shop", "b"), (1, "shop", "d"), (2, "outside", "o")])?;
    let untouched = plumbing(mesh.pod("b"))?;
    let mut agent = mesh.agent(1)?;
    ensure!(pins(&mesh.topology)?.len() == 3 && pods(&agent)?.len() == 3);
    agent.kill()?;
    // One pod is gone with its namespace, one has left the mesh.
    mesh.servers.clear();
    mesh.topology.remove_pod("a");
    mesh.write_pods(|pod, object| {
        Some(if pod.name() == "b" { object.replace("{app: b}", "{istio.io/dataplane-mode: none}") } else { object })
    })?;
    let agent = mesh.agent(1)?;
    ensure!(pods(&agent)?.keys().eq(["shop-d"]), "{:?}", pods(&agent)?);
    ensure!(pins(&mesh.topology)?.len() == 1);
    let after = plumbing(mesh.pod("b"))?;
    ensure!(after == untouched, "{}", differences(&untouched, &after));
    Ok(())
}

#[test]
fn a_pod_whose_identity_changes_is_enrolled_anew_and_never_in_clear() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "o")])?;
    mesh.mtls("STRICT")?;
    let mut agent = mesh.agent(1)?;
    let (a, o) = (mesh.pod("a"), mesh.pod("o"));
    let mut open = a.run(|| TcpStream::connect_timeout(&at(o.ipv4()), LIMIT))??;
    exchange(&mut open)?;
    mesh.write_pods(|_, object| Some(object.replace("serviceAccountName: a", "serviceAccountName: other")))?;
    let obtained = |line: &str| line.contains("certificate obtained") && line.contains("/sa/other");
    let mut asked = 0;
    // Plaintext is refused at every moment, with the old enrolment, the new one, and between them.
    eventually(LIMIT, "the new identity's certificate", || {
        asked += 1;
        if ask(&o.place(), at(a.ipv4())).is_ok() {
            return Some(Err(anyhow::anyhow!("plaintext came through, call {asked}\n{}", agent.log())));
        }
        agent.log().lines().any(obtained).then_some(Ok(()))
    })??;
    for _ in 0..50 {
        ensure!(ask(&o.place(), at(a.ipv4())).is_err(), "plaintext came through\n{}", agent.log());
    }
    ensure!(exchange(&mut open)?.contains(" saw "), "a live connection was cut");
    agent.wait_ready(START)?;
    let before = carried(&agent, "source", "unknown")?;
    reaches(a, o).with_context(|| agent.log())?;
    ensure!(carried(&agent, "source", "unknown")? == before + 2.0);
    let labels = [("reporter", "source"), ("source_principal", "spiffe://cluster.local/ns/shop/sa/other")];
    ensure!(agent.metric("istio_tcp_connections_opened_total", &labels)? == 2.0, "{}", agent.metrics()?);
    Ok(())
}

#[test]
fn a_pod_that_gets_another_address_is_captured_at_it_and_never_in_clear() -> Result<()> {
    const ANOTHER: [u8; 4] = [10, 1, 1, 200];
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "o")])?;
    mesh.mtls("STRICT")?;
    let agent = mesh.agent(1)?;
    let (a, o) = (mesh.pod("a"), mesh.pod("o"));
    let (old, new) = (a.ipv4(), IpAddr::from(ANOTHER));
    let mut open = a.run(|| TcpStream::connect_timeout(&at(o.ipv4()), LIMIT))??;
    exchange(&mut open)?;

    // The address is there before the object says so.
    a.netns().ip(&format!("addr add {new}/32 dev eth0"))?;
    mesh.topology.node(1).netns().ip(&format!("route add {new}/32 dev pod1 src 10.1.0.1"))?;
    let before = Counts::of(&agent)?;
    ensure!(ask(&o.place(), at(new)).is_err(), "plaintext came through\n{}", agent.log());
    ensure!(Counts::of(&agent)?.since(&before).contains_key("inbound_unknown_address"));
    mesh.write_pods(|_, object| Some(object.replace(&old.to_string(), &new.to_string())))?;
    let mut asked = 0;
    eventually(LIMIT, "the pod to be taken in anew", || {
        asked += 1;
        if ask(&o.place(), at(new)).is_ok() {
            return Some(Err(anyhow::anyhow!("plaintext came through, call {asked}\n{}", agent.log())));
        }
        (agent.log().matches("enrolled\tpod=").count() == 2).then_some(Ok(()))
    })??;
    ensure!(exchange(&mut open)?.contains(" saw "), "a live connection was cut");
    mesh.mtls("PERMISSIVE")?;
    let before = Counts::of(&agent)?;
    eventually(LIMIT, "plaintext by way of the agent", || ask(&o.place(), at(new)).ok())?;
    let grown = Counts::of(&agent)?.since(&before);
    ensure!(grown.contains_key("plaintext") && !grown.contains_key("inbound_unknown_address"), "{grown:?}");
    ensure!(pods(&agent)?.into_iter().eq([("shop-a".to_owned(), "[]".to_owned())]), "{:?}", pods(&agent)?);
    Ok(())
}

#[test]
fn a_new_sandbox_under_the_same_uid_takes_the_place_of_the_old() -> Result<()> {
    let mut mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "o")])?;
    let agent = mesh.agent(1)?;
    let old = mesh.pod("a").ipv4();
    mesh.servers.clear();
    mesh.topology.remove_pod("a");
    // As a CNI plugin does: the namespace itself lives on while the agent holds it.
    mesh.topology.node(1).netns().ip("link del pod1")?;
    // Takes the address, as pods that start meanwhile do.
    mesh.topology.add_pod(1, "outside", "other")?;
    let new = mesh.topology.add_pod(1, "shop", "a")?;
    ensure!(new.ipv4() != old);
    mesh.servers.push(Server::start(&new.place(), SocketAddr::new([0, 0, 0, 0].into(), PORT), "a")?);
    mesh.write_pods(|_, object| Some(object))?;
    let (a, o) = (mesh.pod("a"), mesh.pod("o"));
    eventually(LIMIT, "the new sandbox to be captured", || {
        let before = Counts::of(&agent).ok()?;
        let said = ask(&o.place(), at(a.ipv4())).ok()?;
        let grown = Counts::of(&agent).ok()?.since(&before);
        (said.starts_with("a saw ") && grown.contains_key("plaintext")).then_some(())
    })
    .with_context(|| agent.log())?;
    ensure!(pods(&agent)?.into_iter().eq([("shop-a".to_owned(), "[]".to_owned())]), "{:?}", pods(&agent)?);
    ensure!(pins(&mesh.topology)?.len() == 1, "the old sandbox is still pinned");
    Ok(())
}

#[test]
fn a_restart_leaves_no_moment_in_clear() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "o")])?;
    mesh.mtls("STRICT")?;
    let mut agent = mesh.agent(1)?;
    let (a, o) = (mesh.pod("a"), mesh.pod("o"));
    agent.kill()?;
    let mut agent = mesh.start(1)?;
    let mut asked = 0;
    eventually(START, "the new agent to serve the pod", || {
        asked += 1;
        if ask(&o.place(), at(a.ipv4())).is_ok() {
            return Some(Err(anyhow::anyhow!("plaintext came through, call {asked}\n{}", agent.log())));
        }
        agent.log().contains("requires mTLS").then_some(Ok(()))
    })??;
    agent.wait_ready(START)
}

#[test]
fn an_idle_pod_costs_at_most_eight_descriptors() -> Result<()> {
    let names = ["a", "b", "d", "e", "f"].map(|name| (1, "shop", name));
    let mesh = Mesh::new(&names)?;
    mesh.enrol(false)?;
    let mut agent = mesh.agent(1)?;
    let descriptors =
        |agent: &Agent| Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count());
    let before = descriptors(&agent)?;
    mesh.enrol(true)?;
    eventually(LIMIT, "five pods", || (pods(&agent).ok()?.len() == names.len()).then_some(()))?;
    agent.wait_ready(START)?;
    // Enrolling takes more than being enrolled; what was lent for it is given back a moment later.
    let most = before + 8 * names.len();
    eventually(LIMIT, "at most eight descriptors a pod", || (descriptors(&agent).ok()? <= most).then_some(()))
}

/// A request on a connection that stays open, and what is answered.
fn exchange(stream: &mut TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 512];
    while !answer.ends_with(b"\n") || !String::from_utf8_lossy(&answer).contains(" saw ") {
        let read = stream.read(&mut piece)?;
        ensure!(read > 0, "the connection ended after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&piece[..read]);
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Everything that enrolment may touch in a pod's netns: rules, routes, and every kernel parameter of both families.
fn plumbing(pod: &Pod) -> Result<String> {
    let mut all = rules(pod.netns().path())?;
    for family in ["-4", "-6"] {
        all += &pod.netns().ip_once(&[family, "route", "show", "table", "all"])?;
    }
    Ok(all + &pod.run(|| parameters(Path::new("/proc/sys/net")))?)
}

fn rules(netns: &Path) -> Result<String> {
    let name = netns.file_name().and_then(|name| name.to_str()).context("a netns has a name")?;
    let mut all = String::new();
    for family in ["-4", "-6"] {
        let output = std::process::Command::new("ip").args(["-n", name, family, "rule", "show"]).output()?;
        all += &String::from_utf8_lossy(&output.stdout);
    }
    Ok(all)
}

fn parameters(directory: &Path) -> String {
    let mut entries: Vec<_> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let each = entries.iter().map(|path| {
        if path.is_dir() {
            return parameters(path);
        }
        // Those of the whole machine change by themselves.
        let value = fs::read_to_string(path).unwrap_or_default();
        format!("{} = {}\n", path.display(), value.trim())
    });
    each.collect()
}

fn differences(before: &str, after: &str) -> String {
    let missing = before.lines().filter(|line| !after.lines().any(|other| other == *line));
    let new = after.lines().filter(|line| !before.lines().any(|other| other == *line));
    missing.map(|line| format!("- {line}\n")).chain(new.map(|line| format!("+ {line}\n"))).collect()
}

/// The pods that the first node's programs capture, by uid, and what is wrong with each.
fn pods(agent: &Agent) -> Result<BTreeMap<String, String>> {
    let report: serde_json::Value = serde_json::from_str(&agent.admin("/redirection")?.body)?;
    let programs = report.get("programs").and_then(|programs| programs.as_array()).context("no programs")?;
    let each = programs
        .iter()
        .filter_map(|pod| Some((pod.get("uid")?.as_str()?.to_owned(), pod.get("problems")?.to_string())));
    Ok(each.collect())
}

/// The links of pods that are pinned on the first node.
fn pins(topology: &Topology) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for version in fs::read_dir(topology.scope().pin_directory("n1")?)? {
        for pin in fs::read_dir(version?.path().join("pods"))? {
            found.push(pin?.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}
