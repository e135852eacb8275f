//! The mesh-wide options: the YAML under key `mesh` of the ConfigMap `culvert`, or of Istio's own ConfigMap `istio`,
//! in the root namespace. Istio's MeshConfig fields keep their names; ours are under `culvert:`.

pub mod ext_authz;
mod parse;

use std::sync::Arc;
use std::time::Duration;

use culvert_api::{Kind, ObjectRef};
use serde::Serialize;

pub use parse::parse;

use self::ext_authz::ExtAuthz;
use crate::bypass::MeshBypass;
use crate::identity::DEFAULT_TRUST_DOMAIN;
use crate::policy::UnsupportedDeny;
use crate::route::normalize::PathNormalization;

/// The namespace whose policies apply to the whole mesh, until options say otherwise.
pub const DEFAULT_ROOT_NAMESPACE: &str = "istio-system";

/// The key of the ConfigMaps under which the options are.
pub const KEY: &str = "mesh";
/// The ConfigMaps that are read, the first that is there and has the key: ours, or else Istio's own. They are in
/// [`DEFAULT_ROOT_NAMESPACE`], whatever root namespace they then name.
pub const CONFIG_MAPS: [&str; 2] = ["culvert", "istio"];

/// The ConfigMap of options of this name.
pub fn config_map(name: &str) -> ObjectRef {
    ObjectRef::new(Kind::ConfigMap, DEFAULT_ROOT_NAMESPACE, name)
}

/// Whether `object` is a ConfigMap of options.
pub fn is_config_map(object: &ObjectRef) -> bool {
    object.kind == Kind::ConfigMap
        && &*object.namespace == DEFAULT_ROOT_NAMESPACE
        && CONFIG_MAPS.contains(&&*object.name)
}

/// The mesh-wide options.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeshOptions {
    /// `trustDomain`: the trust domain of every identity.
    pub trust_domain: Arc<str>,
    /// `trustDomainAliases`: trust domains that policies treat as the mesh's own.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// `rootNamespace`: where policies apply to the whole mesh.
    pub root_namespace: Arc<str>,
    /// `outboundTrafficPolicy.mode`: what becomes of a connection to an address nobody knows.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// `extensionProviders` of the kinds `envoyExtAuthzHttp` and `envoyExtAuthzGrpc`: who decides for policies of action
    /// CUSTOM.
    pub ext_authz: Vec<Arc<ExtAuthz>>,
    /// `connectTimeout`: how long a TCP connection may take to be made.
    pub connect_timeout: Duration,
    /// `accessLogFile`: absent or empty for no access log; Culvert writes it to standard output.
    pub access_log_file: Option<Arc<str>>,
    /// `accessLogEncoding`.
    pub access_log_encoding: AccessLogEncoding,
    /// `pathNormalization.normalization`: how far waypoints normalize the paths of requests.
    pub path_normalization: PathNormalization,
    /// `culvert.l4-unsupported-deny`: what a DENY rule means that has fields which L4 cannot see.
    pub l4_unsupported_deny: UnsupportedDeny,
    /// `culvert.cluster-domain`: the suffix of service names, `cluster.local`.
    pub cluster_domain: Arc<str>,
    /// `culvert.cluster`: this cluster's id, `Kubernetes`.
    pub cluster: Arc<str>,
    /// `culvert.network`: this cluster's network; empty for the only one.
    pub network: Arc<str>,
    /// `culvert.dns-capture`: whether pods' DNS queries are captured where the pod does not say; they are.
    pub dns_capture: bool,
    /// `culvert.outboundBypass`: destinations that no pod's connections are captured to.
    pub outbound_bypass: MeshBypass,
}

/// What becomes of a connection to an address nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundTrafficPolicy {
    /// It is passed through.
    #[default]
    AllowAny,
    /// It is refused.
    RegistryOnly,
}

/// The form of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AccessLogEncoding {
    /// `key=value` pairs.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for MeshOptions {
    fn default() -> Self {
        Self {
            trust_domain: DEFAULT_TRUST_DOMAIN.into(),
            trust_domain_aliases: Vec::new(),
            root_namespace: DEFAULT_ROOT_NAMESPACE.into(),
            outbound_traffic_policy: OutboundTrafficPolicy::default(),
            ext_authz: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            access_log_file: None,
            access_log_encoding: AccessLogEncoding::default(),
            path_normalization: PathNormalization::default(),
            l4_unsupported_deny: UnsupportedDeny::default(),
            cluster_domain: "cluster.local".into(),
            cluster: "Kubernetes".into(),
            network: "".into(),
            dns_capture: true,
            outbound_bypass: MeshBypass::default(),
        }
    }
}
