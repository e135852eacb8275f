//! Map layouts and verdicts shared by Culvert's eBPF programs and its agent.
//!
//! Nothing here talks to the kernel: the programs read what they need from their context and ask [`verdict`].

#![cfg_attr(not(test), no_std)]

mod counter;
mod layout;
pub mod verdict;

pub use counter::Counter;
pub use layout::{
    AddressKey, Destination, Ip, ListenerKey, Pod, PodRecord, PortKey, Probe, Role, RuleKey, Settings, Uid, mapped,
};

/// The mark of connections that are to be led to `lo`, in the pod's network namespace.
///
/// Chosen among the marks that no CNI plugin, kube-proxy or Istio uses. It never leaves the namespace: the kernel
/// clears marks on packets that cross a veth.
pub const STEERING_MARK: u32 = 0xc417;

/// The mark of the agent's own questions to DNS, by which they are told from the pod's. Any but 0 would do.
pub const DNS_MARK: u32 = 0xc418;

/// The port of tunnels, on the pod's own address.
pub const HBONE_PORT: u16 = 15008;

/// The port of DNS.
pub const DNS_PORT: u16 = 53;

/// The version of every layout in this crate. Pins of another version are not adopted.
pub const LAYOUT_VERSION: u32 = 4;

/// How many destinations of the mesh the programs can know.
pub const MAX_DESTINATIONS: u32 = 131_072;

/// How many outbound rules about addresses, and how many about ports, one node may hold.
pub const MAX_RULES: u32 = 65_536;

/// How many agents one node may hold: one, two while it is replaced, and those that died until the next one starts.
pub const MAX_AGENTS: u32 = 64;

/// How many pods one node may hold.
pub const MAX_PODS: u32 = 4096;
