//! Destinations that are not captured: what pods and the mesh say, and what that means for one connection.
//!
//! Four things are asked, in this order; the eBPF programs ask the same of their maps (`verdict::outward` in
//! `ebpf/common`), so that what is bypassed never reaches a proxy:
//!
//! 1. An address of the mesh (a workload that speaks HBONE or has a waypoint, or a service in front of one) is captured,
//!    whatever rules say of addresses and ports: a rule that is written too broadly must not turn mTLS off.
//! 2. An address of a namespace that `outboundBypass.namespaces` names is bypassed, even if it is in the mesh: that is
//!    what was asked for.
//! 3. The port is bypassed by the pod's annotation, or for every pod by the mesh's options.
//! 4. The address is bypassed by the longest network that the pod's annotations name, or, where they name none that
//!    holds it, by the longest of the mesh's options.

mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

pub(crate) use parse::{networks, of_pod, ports};

use crate::mesh::Snapshot;
use crate::workload::Workload;

/// How many networks, and how many ports, may be named in one place; more are ignored, and said so.
pub const MAX_RULES: usize = 256;

/// What a rule does with the addresses that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// They are reached without the mesh.
    Bypass,
    /// They are captured, though a shorter network bypasses them.
    Capture,
}

/// What one pod, or the mesh for every pod, says of destinations outside the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Rules {
    /// Networks; the longest that holds an address counts. No network is there twice.
    pub addresses: Vec<(IpNet, Action)>,
    /// Ports that are bypassed.
    pub ports: Vec<u16>,
    /// Who says so of addresses, and who of ports: the names of annotations or options.
    pub sources: [&'static str; 2],
}

/// What the mesh's options say (`culvert.outboundBypass`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MeshBypass {
    /// `cidrs` and `ports`.
    pub rules: Rules,
    /// `namespaces`: their services and workloads are reached without the mesh, by every pod.
    pub namespaces: BTreeSet<Arc<str>>,
}

/// What the mesh knows of a destination's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Destination {
    /// It is in the mesh.
    Mesh,
    /// It is a service's or a workload's that is not in the mesh.
    Known,
    /// It belongs to a namespace that is bypassed by name.
    Named,
}

/// Why a connection is not captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bypassed {
    /// The destination's namespace is named by the mesh's options.
    Namespace(IpAddr),
    /// Its port is named.
    Port(u16, &'static str),
    /// Its address is within a network that is named.
    Address(IpNet, &'static str),
}

impl fmt::Display for Bypassed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Namespace(ip) => write!(f, "bypassed by {NAMESPACES}: {ip} belongs to a namespace named there"),
            Self::Port(port, source) => write!(f, "bypassed by {source}: port {port}"),
            Self::Address(network, source) => write!(f, "bypassed by {source}: {network}"),
        }
    }
}

/// The options' names, as findings and reasons give them.
pub(crate) const NAMESPACES: &str = "outboundBypass.namespaces of the mesh options";
const MESH_SOURCES: [&str; 2] =
    ["outboundBypass.cidrs of the mesh options", "outboundBypass.ports of the mesh options"];

impl Rules {
    /// Whether they say nothing.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty()
    }

    fn port(&self, port: u16) -> Option<Bypassed> {
        self.ports.contains(&port).then_some(Bypassed::Port(port, self.sources[1]))
    }

    fn address(&self, ip: IpAddr) -> Option<(IpNet, Action)> {
        let holding = self.addresses.iter().filter(|(network, _)| network.contains(&ip));
        holding.max_by_key(|(network, _)| network.prefix_len()).copied()
    }
}

impl MeshBypass {
    /// `cidrs`, `ports` and `namespaces` as they are written.
    pub(crate) fn new(networks: Vec<IpNet>, ports: Vec<u16>, namespaces: BTreeSet<Arc<str>>) -> Self {
        let addresses = networks.into_iter().map(|network| (network, Action::Bypass)).collect();
        Self { rules: Rules { addresses, ports, sources: MESH_SOURCES }, namespaces }
    }

    /// Whether they say nothing.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.namespaces.is_empty()
    }
}

impl Default for MeshBypass {
    fn default() -> Self {
        Self::new(Vec::new(), Vec::new(), BTreeSet::new())
    }
}

/// Whether a connection of `source` to `destination` is not captured, and why.
pub fn decide(snapshot: &Snapshot, source: &Workload, destination: SocketAddr) -> Option<Bypassed> {
    let (own, mesh) = (source.outbound_rules.as_deref(), &snapshot.options().outbound_bypass);
    if own.is_none() && mesh.is_empty() {
        return None;
    }
    let ip = destination.ip().to_canonical();
    match snapshot.destination(IpNet::from(ip)) {
        Some(Destination::Mesh) => return None,
        Some(Destination::Named) => return Some(Bypassed::Namespace(ip)),
        Some(Destination::Known) | None => {}
    }
    let ports = own.into_iter().chain([&mesh.rules]).find_map(|rules| rules.port(destination.port()));
    ports.or_else(|| {
        let found = own.and_then(|rules| Some((rules.address(ip)?, rules)));
        let ((network, action), rules) = found.or_else(|| Some((mesh.rules.address(ip)?, &mesh.rules)))?;
        (action == Action::Bypass).then_some(Bypassed::Address(network, rules.sources[0]))
    })
}
