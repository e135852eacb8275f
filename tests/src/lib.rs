//! The harness: real network namespaces, cgroups, nodes, pods and processes, on the real kernel.
//!
//! | module | what it is for |
//! |---|---|
//! | [`scope`] | one run's names; what a killed run leaves behind is collected by the next one, Ctrl-C cleans up |
//! | [`netns`], [`cgroup`] | guards: gone when dropped |
//! | [`process`] | a place (netns and cgroup), and commands, closures and long-running processes there |
//! | [`topology`] | nodes joined by a routed wire, pods routed behind their nodes |
//! | [`agent`], [`waypoint`] | `culvert node` on a node, `culvert waypoint` in a pod; what they share is in [`daemon`] |
//! | [`objects`] | the directory of YAML that they read |
//! | [`http`], [`nginx`] | servers, and a client for the agent's endpoints |
//! | [`kube`] | a real Kubernetes API server, its outages, its tokens and its audit log |
//! | [`capture`] | what crossed a wire |
//! | [`selftest`] | the whole life of an enrolled pod, also on other kernels |
//! | [`histogram`] | latencies, for the load generator `culvert-load` |
//! | [`deadline`] | waiting for a fact with a limit; nothing here sleeps and hopes |
//!
//! Everything needs root. Nothing is mocked: a test that passes here has run through the kernel's own TCP.

pub mod agent;
pub mod capture;
pub mod cgroup;
pub mod daemon;
pub mod deadline;
pub mod histogram;
pub mod http;
pub mod kube;
pub mod netns;
pub mod nginx;
pub mod objects;
pub mod process;
pub mod scope;
pub mod selftest;
pub mod topology;
pub mod waypoint;

pub use agent::{Agent, AgentConfig};
pub use capture::Capture;
pub use cgroup::Cgroup;
pub use daemon::Daemon;
pub use deadline::eventually;
pub use histogram::Histogram;
pub use kube::ControlPlane;
pub use netns::Netns;
pub use nginx::Nginx;
pub use objects::ConfigDir;
pub use process::{Finished, Place, Process};
pub use scope::Scope;
pub use topology::{Node, Pod, Topology};
pub use waypoint::Waypoint;
