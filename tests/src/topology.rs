//! Nodes joined by a routed wire, pods routed behind their nodes.
//!
//! Node *n* (from 1) is `10.n.0.1` and `fd00:n::1`; its pods are `10.n.1.k` and `fd00:n::1:k`. Every pair of
//! nodes has its own veth pair, every pod one to its node: a packet between pods on two nodes crosses three, is
//! forwarded twice, and is never bridged or translated. All MTUs are 1500.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cgroup::Cgroup;
use crate::netns::{self, Netns};
use crate::process::{Finished, Place};
use crate::scope::Scope;

const MTU: u32 = 1500;

/// Nodes and pods, gone when dropped.
#[derive(Debug)]
pub struct Topology {
    // Pods go before their nodes: fields drop in this order.
    pods: Vec<Pod>,
    nodes: Vec<Node>,
    scope: Scope,
}

/// A node: a network namespace that forwards, and a cgroup below which its pods live.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    netns: Netns,
    kubepods: Cgroup,
}

/// A pod: a network namespace and a cgroup.
#[derive(Debug)]
pub struct Pod {
    namespace: String,
    name: String,
    node: String,
    netns: Netns,
    cgroup: Cgroup,
    addresses: [IpAddr; 2],
}

impl Topology {
    /// `nodes` nodes, called `n1`, `n2`, …, without pods.
    pub fn new(nodes: u8) -> Result<Self> {
        let scope = Scope::new()?;
        let mut topology = Self { pods: Vec::new(), nodes: Vec::new(), scope };
        for number in 1..=nodes {
            let node = topology.make_node(number)?;
            for other in &topology.nodes {
                join(other, &node)?;
            }
            topology.nodes.push(node);
        }
        Ok(topology)
    }

    /// Adds a pod to the node with this number (from 1).
    pub fn add_pod(&mut self, node: u8, namespace: &str, name: &str) -> Result<&Pod> {
        let pod = self.make_pod(node, namespace, name)?;
        self.pods.push(pod);
        self.pods.last().context("a pod just added")
    }

    /// Removes a pod, as a kubelet would: its processes, then its namespace.
    pub fn remove_pod(&mut self, name: &str) {
        self.pods.retain(|pod| pod.name != name);
    }

    /// The scope whose prefix all names here carry.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The node with this number (from 1).
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, number: u8) -> &Node {
        &self.nodes[usize::from(number) - 1]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The pod with this name.
    ///
    /// # Panics
    /// When there is no such pod.
    pub fn pod(&self, name: &str) -> &Pod {
        let Some(pod) = self.pods.iter().find(|pod| pod.name == name) else { panic!("no pod {name}") };
        pod
    }

    /// Cuts the wire between two nodes at its second end, as when that node loses its power: the first still sends, and
    /// nothing arrives.
    pub fn cut(&self, first: u8, second: u8) -> Result<()> {
        let (first, second) = (self.node(first), self.node(second));
        second.netns.ip(&format!("link set {} down", second.wire_to(first))).map(drop)
    }

    /// Mends what [`Self::cut`] cut.
    pub fn mend(&self, first: u8, second: u8) -> Result<()> {
        let (first, second) = (self.node(first), self.node(second));
        second.netns.ip(&format!("link set {} up", second.wire_to(first)))?;
        route(first, second)
    }

    /// All pods.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    fn make_node(&self, number: u8) -> Result<Node> {
        let name = format!("n{number}");
        let netns = self.scope.netns(&name)?;
        netns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        netns.ip(&format!("addr add 10.{number}.0.1/32 dev lo\naddr add fd00:{number:x}::1/128 dev lo"))?;
        let kubepods = self.scope.cgroup(&format!("{name}/kubepods"))?;
        Ok(Node { name, number, netns, kubepods })
    }

    fn make_pod(&self, node: u8, namespace: &str, name: &str) -> Result<Pod> {
        let node = self.nodes.get(usize::from(node) - 1).context("no such node")?;
        let n = node.number;
        let k = (1..=u8::MAX)
            .find(|k| !self.pods.iter().any(|pod| pod.addresses[0] == pod_addresses(n, *k)[0]))
            .context("a node here has room for 255 pods")?;
        let addresses = pod_addresses(n, k);
        let [v4, v6] = addresses;
        let netns = self.scope.netns(&format!("{}-{name}", node.name))?;
        let interface = format!("pod{k}");
        netns::veth((&netns, "eth0"), (&node.netns, &interface), MTU)?;
        netns.ip(&format!(
            "addr add {v4}/32 dev eth0\naddr add {v6}/128 dev eth0 nodad\n\
             route add 10.{n}.0.1 dev eth0 scope link\nroute add default via 10.{n}.0.1 src {v4}\n\
             route add default via fe80::1 dev eth0 src {v6}"
        ))?;
        node.netns.ip(&format!(
            "addr add fe80::1/64 dev {interface} nodad\n\
             route add {v4}/32 dev {interface} src 10.{n}.0.1\nroute add {v6}/128 dev {interface} src fd00:{n:x}::1"
        ))?;
        let cgroup = self.scope.cgroup(&format!("{}/kubepods/{name}", node.name))?;
        Ok(Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node: node.name.clone(),
            netns,
            cgroup,
            addresses,
        })
    }
}

impl Node {
    /// `n1`, `n2`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup that holds its pods: what `--cgroup` is given.
    pub fn kubepods(&self) -> &Path {
        self.kubepods.path()
    }

    /// The node itself, as the kubelet would run: its netns, no pod's cgroup.
    pub fn place(&self) -> Place {
        Place::netns(self.netns.path())
    }

    /// Its addresses, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        let n = self.number;
        [Ipv4Addr::new(10, n, 0, 1).into(), Ipv6Addr::new(0xfd00, n.into(), 0, 0, 0, 0, 0, 1).into()]
    }

    /// The name of its interface on the wire to another node.
    pub fn wire_to(&self, other: &Node) -> String {
        format!("wire{}", other.number)
    }
}

impl Pod {
    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Inside: its netns and its cgroup.
    pub fn place(&self) -> Place {
        Place::netns(self.netns.path()).in_cgroup(self.cgroup.path())
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> IpAddr {
        self.addresses[0]
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> IpAddr {
        self.addresses[1]
    }

    /// Both, IPv4 first.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    /// Runs a closure inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.place().run(work)
    }

    /// Runs a program inside to its end.
    pub fn output(&self, limit: Duration, program: &str, arguments: &[&str]) -> Result<Finished> {
        self.place().output(limit, program, arguments)
    }
}

fn pod_addresses(node: u8, k: u8) -> [IpAddr; 2] {
    [Ipv4Addr::new(10, node, 1, k).into(), Ipv6Addr::new(0xfd00, node.into(), 0, 0, 0, 0, 1, k.into()).into()]
}

fn join(left: &Node, right: &Node) -> Result<()> {
    netns::veth((&left.netns, &left.wire_to(right)), (&right.netns, &right.wire_to(left)), MTU)?;
    route(left, right)
}

/// Addresses and routes of the wire between two nodes; what is there already stays.
fn route(left: &Node, right: &Node) -> Result<()> {
    for (here, there) in [(left, right), (right, left)] {
        let (n, m, wire) = (here.number, there.number, here.wire_to(there));
        here.netns.ip(&format!(
            "addr replace 10.{n}.0.1 peer 10.{m}.0.1/32 dev {wire}\naddr replace fe80::{n}/64 dev {wire} nodad\n\
             route replace 10.{m}.1.0/24 via 10.{m}.0.1 dev {wire}\n\
             route replace fd00:{m:x}::/64 via fe80::{m} dev {wire} src fd00:{n:x}::1"
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
