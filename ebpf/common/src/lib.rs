//! Map layouts and verdicts shared by Culvert's eBPF programs and its agent.
//!
//! Nothing here talks to the kernel: the programs read what they need from their context and ask [`verdict`].

#![cfg_attr(not(test), no_std)]

mod counter;
mod layout;
pub mod verdict;

pub use counter::Counter;
pub use layout::{AddressKey, Ip, ListenerKey, Pod, PodRecord, Probe, Role, Uid, mapped};

/// The mark of connections that are to be led to `lo`, in the pod's network namespace.
///
/// Chosen among the marks that no CNI plugin, kube-proxy or Istio uses. It never leaves the namespace: the kernel
/// clears marks on packets that cross a veth.
pub const STEERING_MARK: u32 = 0xc417;

/// The port of tunnels, on the pod's own address.
pub const HBONE_PORT: u16 = 15008;

/// The version of every layout in this crate. Pins of another version are not adopted.
pub const LAYOUT_VERSION: u32 = 2;

/// How many pods one node may hold.
pub const MAX_PODS: u32 = 4096;
