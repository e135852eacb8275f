//! Running pods are found by the cgroups of their processes, whatever else sits in those.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use culvert_tests::{Place, Pod, Process, eventually, objects};
use datapath::{LIMIT, Mesh, START, ask, at, reaches};

/// A pod's cgroup is `podUID`: a pod of this name has the cgroup of the UID behind `pod`. No other test's pod may have
/// it, since an agent looks at every process of the machine.
fn name(test: u8) -> String {
    format!("podx{test}-{}", std::process::id())
}

/// The pod's object as the kubelet has it: a UID, addresses, and no word of its network namespace.
fn object(pod: &Pod) -> String {
    let uid = pod.name().trim_start_matches("pod");
    let object = objects::pod(pod, pod.name()).replace(&format!("uid: shop-{}", pod.name()), &format!("uid: {uid}"));
    let lines = object.lines().filter(|line| !line.contains("culvert.dev/netns") && !line.contains("annotations:"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// A process that does nothing.
fn idle(place: &Place, program: &Path) -> Result<Process> {
    let mut command = place.command(program)?;
    command.arg("600");
    Process::spawn("sleep", command)
}

fn mesh(name: &str) -> Result<Mesh> {
    let mesh = Mesh::new(&[(1, "shop", name), (1, "outside", "b"), (2, "outside", "o")])?;
    mesh.write_pods(|pod, yaml| Some(if pod.name() == name { object(pod) } else { yaml }))?;
    mesh.mtls("STRICT")?;
    Ok(mesh)
}

#[test]
fn a_running_pod_is_found_though_a_foreign_process_sits_in_its_cgroup() -> Result<()> {
    let name = name(1);
    let mesh = mesh(&name)?;
    let (pod, b, o) = (mesh.pod(&name), mesh.pod("b"), mesh.pod("o"));
    let sleep = Path::new("/bin/sleep");
    // Of another pod's network namespace and of the node's, both there before the pod's own process.
    let other = Place::netns(b.netns().path()).in_cgroup(pod.cgroup());
    let host = mesh.topology.node(1).place().in_cgroup(pod.cgroup());
    let _foreign = [idle(&other, sleep)?, idle(&host, sleep)?];
    let mut agent = mesh.start(1)?;
    agent.wait_for_line(START, "a line on the foreign process", |line| line.contains("holds none of its addresses"))?;
    ensure!(ask(&o.place(), at(b.ipv4())).is_ok(), "the other pod was taken for it");
    ensure!(ask(&o.place(), at(pod.ipv4())).is_ok(), "captured by nobody's process");

    let mut own = idle(&pod.place(), sleep)?;
    eventually(START, "the pod to refuse plaintext", || ask(&o.place(), at(pod.ipv4())).is_err().then_some(()))
        .with_context(|| agent.log())?;
    reaches(pod, o).with_context(|| agent.log())?;
    ensure!(ask(&o.place(), at(b.ipv4())).is_ok(), "the other pod was captured");

    // The namespace outlives the process by which it was found, and is left as it should be.
    own.kill()?;
    reaches(pod, o).with_context(|| agent.log())?;
    mesh.enrol(false)?;
    eventually(LIMIT, "the pod to be let go", || ask(&o.place(), at(pod.ipv4())).ok()).with_context(|| agent.log())?;
    let rules = pod.netns().ip_once(&["rule", "show"])?;
    eventually(LIMIT, "its rules to be as they were", || {
        let rules = pod.netns().ip_once(&["rule", "show"]).ok()?;
        (!rules.contains("fwmark")).then_some(())
    })
    .with_context(|| rules)
}

#[test]
fn a_pod_under_another_kernel_is_refused_with_a_line_that_says_so() -> Result<()> {
    let name = name(2);
    let mesh = mesh(&name)?;
    let (pod, o) = (mesh.pod(&name), mesh.pod("o"));
    let sandbox = mesh.topology.scope().directory().join("runsc-sandbox");
    fs::copy("/bin/sleep", &sandbox)?;
    let _sandbox = idle(&pod.place(), &sandbox)?;
    let _application = idle(&pod.place(), Path::new("/bin/sleep"))?;
    let mut agent = mesh.start(1)?;
    let line = agent.wait_for_line(START, "the refusal", |line| line.contains("runs under gVisor"))?;
    ensure!(line.contains(&name) && line.contains("runsc-sandbox") && line.contains("runtimeClassName"), "{line}");
    ensure!(ask(&o.place(), at(pod.ipv4())).is_ok(), "captured in spite of it\n{}", agent.log());
    Ok(())
}
