//! The harness: real network namespaces, cgroups, nodes, pods and processes, on the real kernel.
//!
//! | module | what it is for |
//! |---|---|
//! | [`scope`] | one run's names; what a killed run leaves behind is collected by the next one, Ctrl-C cleans up |
//! | [`netns`], [`cgroup`] | guards: gone when dropped |
//! | [`process`] | a place (netns and cgroup), and commands, closures and long-running processes there |
//! | [`topology`] | nodes joined by a routed wire, pods routed behind their nodes |
//! | [`deadline`] | waiting for a fact with a limit; nothing here sleeps and hopes |
//!
//! Everything needs root. Nothing is mocked: a test that passes here has run through the kernel's own TCP.

pub mod cgroup;
pub mod deadline;
pub mod netns;
pub mod process;
pub mod scope;
pub mod topology;

pub use cgroup::Cgroup;
pub use deadline::eventually;
pub use netns::Netns;
pub use process::{Finished, Place, Process};
pub use scope::Scope;
pub use topology::{Node, Pod, Topology};
