//! Connections of an enrolled pod go to its agent, both ways, and nothing else does.

mod support;

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;
use culvert_tests::{Topology, eventually};
use support::{Agent, LIMIT, alone, application, at, dial, dial_from_node, refused, spec};

const PORT: u16 = 8080;

/// Two pods on the first node, one on the second, each with an application on both families.
fn topology() -> Result<Topology> {
    let mut topology = Topology::new(2)?;
    for (node, name) in [(1, "a"), (1, "b"), (2, "c")] {
        let pod = topology.add_pod(node, "shop", name)?;
        // The strictest reverse path filter that a CNI plugin may set.
        pod.netns().sysctl(&[("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/eth0/rp_filter", "1")])?;
        for ip in pod.addresses() {
            application(pod, at(ip, PORT))?;
        }
    }
    Ok(topology)
}

#[test]
fn what_a_pod_dials_reaches_its_agent_with_the_true_destination() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let a = topology.pod("a");
    agent.serve(a)?;
    let mut targets: Vec<SocketAddr> = vec!["198.51.100.7:443".parse()?, "[2001:db8::7]:443".parse()?];
    targets.extend(["b", "c"].iter().flat_map(|pod| topology.pod(pod).addresses()).map(|ip| at(ip, PORT)));
    targets.push(at(topology.pod("c").ipv4(), 15008));
    for to in targets {
        let (said, local) = dial(a, to)?;
        assert_eq!(said, format!("outbound to {to} from {local}"));
        assert!(a.addresses().contains(&local.ip()), "getsockname() is the pod's own address, not {local}");
    }
    Ok(())
}

#[test]
fn what_reaches_a_pod_goes_to_the_tunnel_or_plaintext_listener() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let a = topology.pod("a");
    agent.serve(a)?;
    for caller in ["b", "c"] {
        for ip in a.addresses() {
            let (said, local) = dial(topology.pod(caller), at(ip, 15008))?;
            assert_eq!(said, format!("hbone to {} from {local}", at(ip, 15008)));
            // The application sees who really calls, though the connection is the agent's.
            let (said, local) = dial(topology.pod(caller), at(ip, PORT))?;
            let to = at(ip, PORT);
            assert_eq!(said, format!("plaintext to {to} from {local}, application to {to} from {}", local.ip()));
        }
    }
    Ok(())
}

#[test]
fn two_pods_of_one_node_are_told_apart() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let (a, b) = (topology.pod("a"), topology.pod("b"));
    let (a_netns, b_netns) = (agent.serve(a)?, agent.serve(b)?);
    for (from, to, netns) in [(a, b, &b_netns), (b, a, &a_netns)] {
        for ip in [0, 1].map(|family| to.addresses()[family]) {
            let (said, local) = dial(from, at(ip, PORT))?;
            assert_eq!(said, format!("outbound to {} from {local}", at(ip, PORT)));
            // The leg to the application has the same addresses as what was captured just now.
            let leg = netns.application_socket(culvert_core::address::ClientAddr::new(local), ip)?;
            leg.set_nonblocking(false)?;
            leg.connect_timeout(&at(ip, PORT).into(), LIMIT)?;
            let said = support::read(&mut leg.into())?;
            assert_eq!(said, format!("application to {} from {}", at(ip, PORT), local.ip()));
        }
    }
    Ok(())
}

#[test]
fn a_pod_that_calls_itself_or_localhost_is_left_alone() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let a = topology.pod("a");
    agent.serve(a)?;
    for to in a.addresses().map(|ip| at(ip, PORT)) {
        assert_eq!(dial(a, to)?.0, format!("application to {to} from {}", to.ip()));
    }
    for local in ["127.0.0.1:9090", "[::1]:9090"] {
        let to = application(a, local.parse::<SocketAddr>()?)?;
        assert_eq!(dial(a, to)?.0, format!("application to {to} from {}", to.ip()));
    }
    Ok(())
}

#[test]
fn a_host_socket_reaches_the_application_directly() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let (a, node) = (topology.pod("a"), topology.node(1));
    agent.serve(a)?;
    for to in a.addresses().map(|ip| at(ip, PORT)) {
        let (said, local) = dial_from_node(node, to)?;
        assert_eq!(said, format!("application to {to} from {}", local.ip()));
        assert!(node.addresses().contains(&local.ip()), "no translation");
    }
    assert_eq!(agent.counter("host_probe"), 2);
    // Another node's socket is not this node's, and neither is the tunnel port for probes.
    let (said, _) = dial_from_node(topology.node(2), at(a.ipv4(), PORT))?;
    assert!(said.starts_with("plaintext to"), "{said}");
    let (said, _) = dial_from_node(node, at(a.ipv4(), 15008))?;
    assert!(said.starts_with("hbone to"), "{said}");
    Ok(())
}

#[test]
fn without_a_listener_both_directions_are_refused_at_once() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let (a, c) = (topology.pod("a"), topology.pod("c"));
    drop(agent.enrol(a)?.listeners);
    for (from, to) in [(a, c), (c, a)] {
        for ip in to.addresses() {
            let before = Instant::now();
            let result = dial(from, at(ip, PORT));
            assert!(refused(&result), "{result:?}");
            assert!(before.elapsed().as_millis() < 100, "refused, but after {:?}", before.elapsed());
        }
    }
    assert_eq!(agent.counter("outbound_no_listener"), 2);
    assert_eq!(agent.counter("plaintext_no_listener"), 2);
    Ok(())
}

#[test]
fn nothing_is_captured_before_commit() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let (a, c) = (topology.pod("a"), topology.pod("c"));
    let prepared = agent.redirect().prepare(&spec(a))?;
    for (from, to) in [(a, c), (c, a)] {
        for to in to.addresses().map(|ip| at(ip, PORT)) {
            assert!(dial(from, to)?.0.starts_with("application to"));
        }
    }
    let enrolled = prepared.commit()?;
    support::serve(enrolled.listeners, &enrolled.netns);
    assert!(dial(a, at(c.ipv4(), PORT))?.0.starts_with("outbound to"));
    Ok(())
}

#[test]
fn a_pod_that_bypasses_inbound_is_captured_outbound_only() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let (a, c) = (topology.pod("a"), topology.pod("c"));
    let spec = culvert::redirect::PodSpec { bypass_inbound: true, ..spec(a) };
    let enrolled = agent.redirect().prepare(&spec)?.commit()?;
    support::serve(enrolled.listeners, &enrolled.netns);
    assert!(dial(c, at(a.ipv4(), PORT))?.0.starts_with("application to"));
    assert!(dial(a, at(c.ipv4(), PORT))?.0.starts_with("outbound to"));
    Ok(())
}

#[test]
fn a_pod_without_ipv6_is_captured_and_told_at_once_that_there_is_no_ipv6() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let (a, c) = (topology.pod("a"), topology.pod("c"));
    a.netns().sysctl(&[("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/lo/disable_ipv6", "1")])?;
    agent.serve(a)?;
    assert!(dial(a, at(c.ipv4(), PORT))?.0.starts_with("outbound to"));
    assert!(dial(c, at(a.ipv4(), PORT))?.0.contains("application to"));
    // Switched on later, it does not become a way around the mesh.
    a.netns().sysctl(&[("ipv6/conf/all/disable_ipv6", "0"), ("ipv6/conf/lo/disable_ipv6", "0")])?;
    assert!(dial(a, at(c.ipv6(), PORT)).is_err());
    Ok(())
}

#[test]
fn many_connections_of_one_client_reach_the_application() -> Result<()> {
    let _alone = alone();
    let topology = topology()?;
    let agent = Agent::start(&topology, 1)?;
    let (a, c) = (topology.pod("a"), topology.pod("c"));
    let netns = agent.serve(a)?;
    let client = culvert_core::address::ClientAddr::new(at(c.ipv4(), 40000));
    let legs: Vec<_> = (0..300)
        .map(|_| {
            let leg = netns.application_socket(client, a.ipv4())?;
            leg.set_nonblocking(false)?;
            leg.connect_timeout(&at(a.ipv4(), PORT).into(), LIMIT)?;
            Ok(leg.local_addr()?.as_socket().unwrap())
        })
        .collect::<Result<_>>()?;
    assert!(legs.iter().all(|leg| leg.ip() == c.ipv4() && (1024..32768).contains(&leg.port())));
    eventually(LIMIT, "all legs counted", || (legs.len() == 300).then_some(()))?;
    Ok(())
}
