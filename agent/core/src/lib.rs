//! The pure domain of Culvert: what the mesh is, who may talk to whom, where a connection goes, and the HBONE
//! codec without sockets.
//!
//! Everything here is a synchronous function on values: no tokio, no kube client, no clock, no I/O. The agent and
//! `culvertctl` call the same functions, so that what the CLI explains is what the data path does.
//!
//! | module | what it is for |
//! |---|---|
//! | [`address`], [`identity`] | newtypes for the values that must not be mixed up |
//! | [`workload`], [`service`], [`waypoint`] | the model of what runs in the mesh |
//! | [`options`] | the mesh-wide options, by Istio's MeshConfig names |
//! | [`translate`] | Kubernetes objects into the model, or a typed reason why not; one file per kind |
//! | [`mesh`] | the state of the mesh: a change in, a snapshot out |
//! | [`policy`] | authorization, of connections and of requests, and its explanation |
//! | [`authentication`] | what tokens a request may carry, and what they say |
//! | [`route`] | where an outbound connection goes, and, at a waypoint, a request |
//! | [`traffic`] | how a service is spoken to: endpoints, limits, outlier detection |
//! | [`bypass`] | destinations that are not captured |
//! | [`dns`] | what the mesh answers to DNS, and the messages |
//! | [`hbone`] | the HTTP/2 tunnel and its headers, sans I/O |
//! | [`protocol`] | what a connection speaks: as its port says, or by its first bytes |
//! | [`cni`] | our plugin in the node's network configurations |
//! | [`enrolment`] | which pods belong to the mesh, and the steps of taking one in |
//! | [`simulate`] | one call, decided from end to end with every reason |

pub mod address;
pub mod authentication;
pub mod bypass;
pub mod cni;
pub mod dns;
pub mod enrolment;
pub mod hbone;
pub mod identity;
pub mod mesh;
pub mod options;
pub mod policy;
pub mod protocol;
pub mod route;
pub mod service;
mod sharded;
pub mod simulate;
pub mod traffic;
pub mod translate;
pub mod waypoint;
pub mod workload;
