//! Connections of an enrolled pod go to its agent, both ways, and nothing else does.
//!
//! All pods have the strictest reverse path filter: the harness sets `rp_filter=1` in every namespace.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod datapath;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_tests::http::{self, Server};
use culvert_tests::{Agent, Capture, eventually};
use datapath::{Counts, LIMIT, Mesh, PORT, START, ask, at, carried, counts, reaches, refused};

const HBONE: u16 = 15008;

#[test]
fn both_ways_lead_through_the_agent_and_both_ends_see_true_addresses() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (1, "shop", "b"), (2, "shop", "c"), (2, "outside", "o")])?;
    let (near, far) = (mesh.agent(1)?, mesh.agent(2)?);
    let [a, b, c, o] = ["a", "b", "c", "o"].map(|name| mesh.pod(name));
    for pod in [a, c] {
        let strict = pod.run(|| fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/rp_filter"))??;
        assert_eq!(strict.trim(), "1");
    }

    // Across nodes, and within one both ways: the same addresses cross a node's programs as outbound and inbound.
    for (from, to) in [(a, c), (c, a), (a, b), (b, a)] {
        reaches(from, to)?;
    }
    assert_eq!(carried(&near, "source", "mutual_tls")?, 6.0);
    assert_eq!(carried(&far, "source", "mutual_tls")?, 2.0);
    assert_eq!(carried(&near, "destination", "mutual_tls")?, 6.0);
    assert_eq!(carried(&far, "destination", "mutual_tls")?, 2.0);

    // Plaintext from outside the mesh reaches the other listener; a tunnel is for peers with a certificate.
    let before = Counts::of(&near)?;
    reaches(o, a)?;
    assert_eq!(carried(&near, "destination", "unknown")?, 2.0);
    let tunnel = SocketAddr::new(a.ipv4(), HBONE);
    assert!(o.run(|| http::get(tunnel, "/", LIMIT))?.is_err());
    let grown = Counts::of(&near)?.since(&before);
    ensure!(grown.len() == 2 && ["plaintext", "hbone"].iter().all(|kind| grown.contains_key(*kind)), "{grown:?}");

    // And what no pod has: the agent must know the true destination to dial it.
    mesh.topology.node(2).netns().ip("addr add 198.51.100.7/32 dev lo\naddr add 2001:db8::7/128 dev lo")?;
    let wire = mesh.topology.node(1).wire_to(mesh.topology.node(2));
    mesh.topology
        .node(1)
        .netns()
        .ip(&format!("route add 198.51.100.7 via 10.2.0.1 dev {wire}\nroute add 2001:db8::7 via fe80::2 dev {wire}"))?;
    for (own, ip) in a.addresses().into_iter().zip(["198.51.100.7", "2001:db8::7"]) {
        let to = SocketAddr::new(ip.parse()?, PORT);
        let _server = Server::start(&mesh.topology.node(2).place(), to, "far away")?;
        let before = carried(&near, "source", "unknown")?;
        let (peer, local) = a.run(|| {
            let stream = TcpStream::connect_timeout(&to, LIMIT)?;
            Ok::<_, io::Error>((stream.peer_addr()?, stream.local_addr()?))
        })??;
        assert_eq!((peer, local.ip()), (to, own), "getpeername() and getsockname() tell the truth");
        assert_eq!(ask(&a.place(), to)?, format!("far away saw {own}\n"));
        assert_eq!(carried(&near, "source", "unknown")?, before + 2.0);
    }
    Ok(())
}

#[test]
fn calls_to_itself_and_localhost_are_left_alone_and_host_probes_pass_where_others_are_refused() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "o")])?;
    mesh.mtls("STRICT")?;
    let agent = mesh.agent(1)?;
    let (a, o) = (mesh.pod("a"), mesh.pod("o"));

    let before = Counts::of(&agent)?;
    reaches(a, a)?;
    let loopback6 = Server::start(&a.place(), "[::1]:9090".parse()?, "a")?;
    for to in [SocketAddr::from(([127, 0, 0, 1], PORT)), loopback6.address()] {
        assert_eq!(ask(&a.place(), to)?, format!("a saw {}\n", to.ip()));
    }
    assert_eq!(Counts::of(&agent)?.since(&before), counts([]));

    // The kubelet's probes come in plaintext, from the node's own address; nothing translates it.
    let [host, other] = [1, 2].map(|node| mesh.topology.node(node));
    for (own, ip) in host.addresses().into_iter().zip(a.addresses()) {
        assert_eq!(ask(&host.place(), at(ip))?, format!("a saw {own}\n"));
        assert!(ask(&o.place(), at(ip)).is_err(), "STRICT takes no plaintext");
        assert!(ask(&other.place(), at(ip)).is_err(), "another node is no kubelet of this one");
    }
    let grown = Counts::of(&agent)?.since(&before);
    assert_eq!(grown.get("host_probe"), Some(&2));
    // More when a segment comes after the agent's reset: the kernel looks for a listener once more.
    ensure!(grown.get("plaintext").is_some_and(|count| *count >= 4) && grown.len() == 2, "{grown:?}");
    assert_eq!(carried(&agent, "source", "unknown")? + carried(&agent, "source", "mutual_tls")?, 0.0);
    Ok(())
}

#[test]
fn a_dead_agent_refuses_both_ways_at_once_and_the_next_one_takes_over_within_a_second() -> Result<()> {
    // Unoptimized, it takes a quarter of it.
    const TAKEN_OVER: Duration = Duration::from_secs(1);
    const SECRET: &str = "/not-for-everyone";
    let mesh = Mesh::new(&[(1, "shop", "a"), (1, "shop", "b"), (2, "shop", "c"), (2, "outside", "o")])?;
    let _far = mesh.agent(2)?;
    let mut near = mesh.agent(1)?;
    let [a, b, c, o] = ["a", "b", "c", "o"].map(|name| mesh.pod(name));
    reaches(a, c)?;
    reaches(c, b)?;
    let counted = Counts::of(&near)?;
    let node = mesh.topology.node(1);
    let capture = Capture::start(mesh.topology.scope(), node, &node.wire_to(mesh.topology.node(2)))?;

    near.kill()?;
    for (from, to) in [(a, c), (b, a), (a, b), (o, a)] {
        for ip in to.addresses() {
            let took = refused(&from.place(), at(ip))?;
            ensure!(took < Duration::from_millis(100), "{} was refused {ip} after {took:?}", from.name());
            ensure!(from.run(|| http::get(at(ip), SECRET, LIMIT))?.is_err());
        }
    }
    // Through the mesh: the far agent finds nobody on port 15008.
    for ip in a.addresses() {
        ensure!(c.run(|| http::get(at(ip), SECRET, LIMIT))?.is_err());
    }
    reaches(a, a)?;
    let seen = capture.finish()?;
    ensure!(!seen.holds(SECRET.as_bytes()), "the wire carried a request in clear");
    // The far agent takes its leave in the tunnel that was open.
    let [all, tunnelled] = [seen.bytes(), seen.bytes_of_port(HBONE)];
    ensure!(all == tunnelled, "the wire carried {all} bytes, {tunnelled} of them in tunnels");
    ensure!(all == 0 || seen.is_tls_records(HBONE), "what the far agent sent was no TLS");

    let started = Instant::now();
    let mut near = mesh.start(1)?;
    for (from, to) in [(a, c), (a, b), (b, a), (o, b)] {
        eventually(START, "an answer after the restart", || reaches(from, to).ok())
            .with_context(|| format!("{} to {}: {}", from.name(), to.name(), near.log()))?;
    }
    let (took, slowdown) = (started.elapsed(), slowdown(&near)?);
    println!("served again {took:?} after the start of the agent, on a machine {slowdown:.1} times too slow");
    ensure!(took.div_f64(slowdown) < TAKEN_OVER, "served again only after {took:?}, {slowdown:.1} times slowed down");
    near.wait_ready(START)?;
    let refusals = Counts::of(&near)?.since(&counted);
    ensure!(refusals.get("outbound_no_listener").is_some_and(|count| *count >= 12), "{refusals:?}");
    ensure!(refusals.get("plaintext_no_listener").is_some_and(|count| *count >= 4), "{refusals:?}");
    Ok(())
}

#[test]
fn a_pod_that_bypasses_inbound_is_captured_outbound_only() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "o")])?;
    mesh.mtls("STRICT")?;
    mesh.write_pods(|_, object| {
        let bypass = "annotations:\n    ambient.istio.io/bypass-inbound-capture: \"true\"";
        Some(object.replace("annotations:", bypass))
    })?;
    let agent = mesh.agent(1)?;
    let (a, o) = (mesh.pod("a"), mesh.pod("o"));
    reaches(o, a)?;
    reaches(a, o)?;
    assert_eq!(Counts::of(&agent)?.since(&Counts::default()), counts([("bypass_inbound", 2), ("outbound", 2)]));
    Ok(())
}

#[test]
fn many_connections_of_one_client_stay_apart() -> Result<()> {
    const MANY: usize = 300;
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "outside", "o")])?;
    let agent = mesh.agent(1)?;
    let (a, o) = (mesh.pod("a"), mesh.pod("o"));
    // All open at once, so each leg to the application needs a port of its own; none may be the client's.
    let heard = o.run(|| {
        let dial = |nth| {
            let stream = TcpStream::connect_timeout(&at(a.ipv4()), LIMIT);
            stream.with_context(|| format!("connection {nth}: {}", agent.log()))
        };
        let mut open = (0..MANY).map(dial).collect::<Result<Vec<_>>>()?;
        for stream in &mut open {
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        }
        let answer = |stream| BufReader::new(stream).lines().nth(4).transpose();
        Ok::<_, anyhow::Error>(open.iter_mut().map(answer).collect::<io::Result<Vec<_>>>()?)
    })??;
    let expected = format!("a saw {}", o.ipv4());
    ensure!(heard.iter().all(|line| line.as_ref() == Some(&expected)), "{heard:?}\n{}", agent.log());
    Ok(())
}

#[test]
fn a_link_that_goes_down_ends_what_crossed_it_in_time_and_serves_again_when_it_is_back() -> Result<()> {
    /// A PING every 10 s, 20 s to answer, and a busy machine.
    const SILENCE: Duration = Duration::from_secs(45);
    /// The time for a TCP connection to come about is 10 s.
    const CONNECT: Duration = Duration::from_secs(14);
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "shop", "c"), (2, "shop", "d")])?;
    let (near, far) = (mesh.agent(1)?, mesh.agent(2)?);
    let [a, c, d] = ["a", "c", "d"].map(|name| mesh.pod(name));
    let mut open = BufReader::new(a.run(|| TcpStream::connect_timeout(&at(c.ipv4()), LIMIT))??);
    open.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n")?;
    open.read_line(&mut String::new())?;
    let live =
        |agent: &Agent| Ok::<_, anyhow::Error>(agent.admin("/connections")?.body.matches("requestBytes").count());
    ensure!((live(&near)?, live(&far)?) == (1, 1), "{:?}", near.admin("/connections")?);

    mesh.topology.cut(1, 2)?;
    let cut = Instant::now();
    // Where no tunnel is yet, the client waits for no longer than the tunnel's TCP connection may take.
    ensure!(a.run(|| http::get(at(d.ipv4()), "/", SILENCE))?.is_err());
    let refused = cut.elapsed();
    ensure!(refused < CONNECT, "refused after {refused:?}");
    // The client may hear of it before the line is written.
    eventually(LIMIT, "a line that says why", || {
        near.log().lines().any(|line| line.contains("no route to") && line.contains("may be down")).then_some(())
    })
    .with_context(|| near.log())?;

    open.get_ref().set_read_timeout(Some(SILENCE))?;
    let ended = io::copy(&mut open, &mut io::sink()).map_err(|error| error.kind());
    ensure!(matches!(ended, Err(io::ErrorKind::ConnectionReset)) && cut.elapsed() < SILENCE, "{ended:?}");
    println!("refused after {refused:?}, reset after {:?}", cut.elapsed());
    eventually(SILENCE - cut.elapsed().min(SILENCE), "the other node to give up too", || {
        (live(&far).ok()? == 0).then_some(())
    })?;

    mesh.topology.mend(1, 2)?;
    eventually(LIMIT, "connections over the mended link", || reaches(a, c).and_then(|()| reaches(a, d)).ok())
        .with_context(|| near.log())
}

/// How much longer than it needs everything takes the agent because others have the processors: its threads' time of
/// running and waiting for one, by its time of running.
fn slowdown(agent: &Agent) -> Result<f64> {
    let (mut running, mut waiting) = (0.0, 0.0);
    for task in fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        // Nanoseconds on a processor, nanoseconds ready for one (Documentation/scheduler/sched-stats.rst).
        let stat = fs::read_to_string(task?.path().join("schedstat"))?;
        let mut fields = stat.split(' ').map(str::parse::<f64>);
        running += fields.next().context("no schedstat")??;
        waiting += fields.next().context("no schedstat")??;
    }
    Ok(((running + waiting) / running.max(1.0)).max(1.0))
}

#[test]
fn clients_that_close_first_are_all_served_and_no_leg_takes_a_port_that_clients_use() -> Result<()> {
    let mesh = Mesh::new(&[(1, "shop", "a"), (2, "shop", "c")])?;
    let (_near, far) = (mesh.agent(1)?, mesh.agent(2)?);
    let [a, c] = ["a", "c"].map(|name| mesh.pod(name));
    for ip in c.addresses() {
        let said = a.output(START, env!("CARGO_BIN_EXE_culvert-load"), &["close", &at(ip).to_string(), "8", "2"])?;
        let said = said.success()?;
        let report: serde_json::Value = serde_json::from_str(&said)?;
        ensure!(report["failed"] == 0, "{said}{}", far.log());
    }
    // The agent's legs have closed first in turn, towards the application.
    let waiting =
        c.output(LIMIT, "ss", &["-Htan", "state", "time-wait", "dport", "=", &PORT.to_string()])?.success()?;
    let local = waiting.lines().filter_map(|socket| socket.split_whitespace().nth(2)?.rsplit_once(':'));
    let ports: Vec<u16> = local.map(|(_, port)| port.parse()).collect::<Result<_, _>>()?;
    ensure!(ports.len() > 100 && ports.iter().all(|port| (1024..32768).contains(port)), "{ports:?}");
    Ok(())
}
