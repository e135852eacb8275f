//! The Kubernetes-facing types: what Culvert reads, before anything is made of it.
//!
//! Core objects come from `k8s-openapi` and Gateway API from `gateway-api`. Istio's own kinds are written here.
//! The one crate of Istio types, `istio-api-rs` (0.12), is generated per Istio release up to 1.27 and bound to an
//! older `k8s-openapi`; it lacks what later releases added (`serviceAccounts`, `trustDomains`, `DYNAMIC_DNS`) and
//! keeps none of the CRDs' validation, so the CRD YAML could not be generated from it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`security`], [`networking`] | Istio's CRDs |
//! | [`meta`] | what those CRDs share |
//! | [`object`] | one object of any kind, parsed with what was not understood |
//! | [`trim`] | what is read of an object that the API server sends |
//! | [`yaml`] | the objects of a YAML file, each mistake with its line |
//! | [`names`] | the labels and annotations that are honoured |
//! | [`crd`] | the definitions of those CRDs, for clusters that Istio was never on |

pub mod crd;
pub mod meta;
pub mod names;
pub mod networking;
pub mod object;
pub mod security;
pub mod trim;
pub mod yaml;

pub use gateway_api;
pub use gateway_api::experimental::grpcroutes::GrpcRoute as GRPCRoute;
pub use gateway_api::experimental::httproutes::HttpRoute as HTTPRoute;
pub use gateway_api::experimental::tcproutes::TcpRoute as TCPRoute;
pub use gateway_api::gateways::Gateway;
pub use gateway_api::referencegrants::ReferenceGrant;
pub use gateway_api::tlsroutes::TlsRoute as TLSRoute;
pub use k8s_openapi;
pub use object::{Kind, Object, ObjectError, ObjectRef, UnknownField};
