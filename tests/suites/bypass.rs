//! What pods or the mesh name is reached without the agent, what is in the mesh never is, and what nobody knows is
//! refused by the kernel under `REGISTRY_ONLY`.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;

use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_tests::{Agent, Pod, eventually};
use datapath::{Counts, Mesh, PORT, START, ask, at, carried, counts, reaches, refused};

/// Writes `a`'s annotations.
fn annotate(mesh: &Mesh, annotations: &[&str]) -> Result<()> {
    mesh.write_pods(|pod, object| {
        let lines: String = annotations.iter().map(|line| format!("    {line}\n")).collect();
        Some(if pod.name() == "a" {
            object.replace("  annotations:\n", &format!("  annotations:\n{lines}"))
        } else {
            object
        })
    })
}

fn options(mesh: &Mesh, options: &str) -> Result<()> {
    let object = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: culvert, namespace: istio-system}}\n\
         data: {{mesh: '{options}'}}\n"
    );
    mesh.directory.write("options", &[object])
}

/// Waits until the programs say this of outbound connections.
fn told(agent: &Agent, what: &str) -> Result<()> {
    eventually(START, what, || {
        let report = agent.admin("/redirection").ok()?.body;
        report.split_whitespace().collect::<String>().contains(what).then_some(())
    })
}

/// What is counted while `from` calls `to` on both families.
fn counted(agent: &Agent, from: &Pod, to: &Pod) -> Result<std::collections::BTreeMap<String, u64>> {
    let before = Counts::of(agent)?;
    reaches(from, to)?;
    Ok(Counts::of(agent)?.since(&before))
}

#[test]
fn what_a_pod_names_is_not_captured_and_what_is_in_the_mesh_always_is() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "shop", "c"), (2, "outside", "o")])?;
    let mut near = mesh.agent(1)?;
    let _far = mesh.agent(2)?;
    let [a, c, o] = ["a", "c", "o"].map(|name| mesh.pod(name));
    assert_eq!(counted(&near, a, o)?, counts([("outbound", 2)]));

    for (annotations, reason) in [
        (vec![format!("culvert.dev/bypass-outbound-ports: \"{PORT}\"")], "bypass_port"),
        (vec!["traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.0.0/8,fd00::/8".to_owned()], "bypass_address"),
        (vec!["traffic.sidecar.istio.io/includeOutboundIPRanges: 192.0.2.0/24".to_owned()], "bypass_address"),
    ] {
        annotate(&mesh, &annotations.iter().map(String::as_str).collect::<Vec<_>>())?;
        eventually(START, "the rule to be in force", || {
            (counted(&near, a, o).ok()? == counts([(reason, 2)])).then_some(())
        })?;
        assert_eq!(counted(&near, a, c)?, counts([("outbound", 2)]), "{annotations:?}");
    }

    // It needs no agent, and an agent that comes back finds the rules.
    near.kill()?;
    reaches(a, o)?;
    refused(&a.place(), at(c.ipv4()))?;
    let near = mesh.agent(1)?;
    assert_eq!(counted(&near, a, o)?, counts([("bypass_address", 2)]));
    assert_eq!(counted(&near, a, c)?, counts([("outbound", 2)]));

    // The pod takes its rules along.
    mesh.enrol(false)?;
    told(&near, "\"programs\":[]")?;
    annotate(&mesh, &[])?;
    mesh.enrol(true)?;
    eventually(START, "the pod to be captured again", || {
        (counted(&near, a, o).ok()? == counts([("outbound", 2)])).then_some(())
    })?;
    Ok(())
}

#[test]
fn what_the_mesh_names_is_not_captured_for_any_pod() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "shop", "c"), (2, "outside", "o")])?;
    let (mut near, far) = (mesh.agent(1)?, mesh.agent(2)?);
    let [a, c, o] = ["a", "c", "o"].map(|name| mesh.pod(name));

    options(&mesh, "culvert: {outboundBypass: {cidrs: [10.0.0.0/8, \"fd00::/8\"]}}")?;
    told(&near, "bypass10.0.0.0/8")?;
    assert_eq!(counted(&near, a, o)?, counts([("bypass_address", 2)]));
    assert_eq!(counted(&near, a, c)?, counts([("outbound", 2)]));

    // By its name, even what is in the mesh: in plaintext, as its own agent says.
    options(&mesh, "culvert: {outboundBypass: {namespaces: [shop]}}")?;
    let before = carried(&far, "destination", "unknown")?;
    eventually(START, "the namespace to be bypassed", || {
        (counted(&near, a, c).ok()? == counts([("bypass_namespace", 2)])).then_some(())
    })?;
    ensure!(carried(&far, "destination", "unknown")? >= before + 2.0);
    assert_eq!(counted(&near, a, o)?, counts([("outbound", 2)]));

    // Without an agent nobody knows whose those addresses are by now.
    near.kill()?;
    refused(&a.place(), at(c.ipv4()))?;
    Ok(())
}

#[test]
fn registry_only_is_enforced_by_the_kernel_and_follows_the_registry() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "shop", "c"), (2, "outside", "o")])?;
    let (near, _far) = (mesh.agent(1)?, mesh.agent(2)?);
    let [a, c, o] = ["a", "c", "o"].map(|name| mesh.pod(name));
    let known = |pod: &Pod, object: String| Some(object).filter(|_| pod.name() != "o");
    mesh.write_pods(known)?;
    options(&mesh, "outboundTrafficPolicy: {mode: REGISTRY_ONLY}")?;
    told(&near, "\"registry_only\":true")?;

    for ip in o.addresses() {
        let before = Counts::of(&near)?;
        let took = refused(&a.place(), at(ip))?;
        assert_eq!(Counts::of(&near)?.since(&before), counts([("registry_only", 1)]));
        // In the kernel: nobody is woken, whatever else the machine does.
        ensure!(took < Duration::from_millis(50), "refused after {took:?}");
    }
    assert_eq!(counted(&near, a, c)?, counts([("outbound", 2)]));
    ensure!(near.metric("culvert_redirection_total", &[("reason", "registry_only")])? == 2.0);

    // A ServiceEntry makes it known, and a rule lets it out though it is not.
    let entry = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: o, namespace: outside}}\n\
         spec:\n  hosts: [o.example.com]\n  addresses: [{}]\n  resolution: NONE\n  ports: [{{number: {PORT}, name: http}}]\n",
        o.ipv4()
    );
    mesh.directory.write("entry", &[entry])?;
    eventually(START, "the entry to be known", || ask(&a.place(), at(o.ipv4())).ok())?;
    refused(&a.place(), at(o.ipv6()))?;
    options(
        &mesh,
        "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}, culvert: {outboundBypass: {cidrs: [\"fd00::/8\"]}}}",
    )?;
    eventually(START, "the rule to be in force", || ask(&a.place(), at(o.ipv6())).ok())?;
    mesh.directory.remove("entry")?;
    eventually(START, "the entry to be forgotten", || refused(&a.place(), at(o.ipv4())).ok())?;
    Ok(())
}
