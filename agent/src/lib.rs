//! The node agent, the waypoint and the controller.
//!
//! | module | what it is for | what is deliberately absent |
//! |---|---|---|
//! | [`redirect`] | eBPF programs, pins, netns plumbing: the only code that touches them, and the only `unsafe` | policy |
//! | [`enrolment`] | which pods, when: the pod's life as a state machine | proxies' insides |
//! | [`bypass`] | keeps the programs' map of destinations up to date | decisions |
//! | [`charge`] | which of two agents serves the node's pods while one replaces the other | what serving is |
//! | [`cluster`] | the client of the Kubernetes API server, and its refusals in one line | what is asked |
//! | [`cni`] | the CNI plugin, and the agent's side of it | which pods belong to the mesh |
//! | [`source`] | where objects come from: a directory of YAML | what objects mean |
//! | [`ca`], [`identity`] | signing, and the certificates in use: cache, rotation, verifiers | which peer is expected |
//! | [`controller`] | the CA service, the roots in every namespace, statuses of policies: what a cluster needs once | traffic |
//! | [`hbone`] | the tunnel: TLS and HTTP/2 over sockets, the client pool, the server | authorization |
//! | [`dns`] | the DNS of enrolled pods | what names mean |
//! | [`proxy`] | outbound, inbound, plaintext and passthrough; the live connections | netns |
//! | [`signatures`] | the signatures of tokens | which keys are whose |
//! | [`waypoint`] | the role of the proxies that route and authorize requests | eBPF, netns; decisions are of the core |
//! | [`telemetry`], [`admin`] | metrics, access log; the admin endpoints | |

pub mod admin;
pub mod bypass;
pub mod ca;
pub mod charge;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod controller;
pub mod dns;
pub mod enrolment;
mod files;
pub mod hbone;
pub mod identity;
pub mod node;
pub mod proxy;
pub mod redirect;
mod role;
pub mod signatures;
pub mod source;
pub mod telemetry;
pub mod waypoint;
pub mod workers;
