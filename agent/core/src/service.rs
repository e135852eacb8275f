//! Services, from Kubernetes Services and ServiceEntries alike.

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use crate::waypoint::WaypointBinding;
use crate::workload::{Created, NamespacedName};

/// A service's name: its namespace and its fully qualified host.
///
/// Two ServiceEntries in different namespaces may claim the same host; both exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ServiceKey {
    /// The namespace of the object.
    pub namespace: Arc<str>,
    /// The host: `cart.shop.svc.cluster.local`, `api.example.com`.
    pub hostname: Arc<str>,
}

impl std::fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A service port and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// The port clients dial.
    pub port: u16,
    /// Its name; empty for the only port.
    pub name: Arc<str>,
    /// Where it leads.
    pub target: TargetPort,
    /// The application protocol, from `appProtocol`, the port's name or a ServiceEntry; `None` to detect.
    pub app_protocol: Option<Arc<str>>,
}

/// Where a service port leads on the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// A number, the same on every endpoint.
    Number(u16),
    /// A container port's name: endpoints that lack it are skipped.
    Named(Arc<str>),
}

/// How an address that belongs to a service is turned into a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Resolution {
    /// One of the endpoints.
    Endpoints,
    /// The address that was dialled (ServiceEntry resolution NONE).
    Passthrough,
    /// An address that the endpoint's host name resolves to (ServiceEntry resolution DNS).
    Dns,
}

/// How strictly the preferred locality is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum LocalityMode {
    /// Any endpoint.
    #[default]
    Any,
    /// The nearest that has an endpoint.
    Failover,
    /// Only endpoints that match every scope (`internalTrafficPolicy: Local`).
    Strict,
}

/// One step of nearness, nearest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum LocalityScope {
    /// The same network.
    Network,
    /// The same region.
    Region,
    /// The same zone.
    Zone,
    /// The same subzone.
    Subzone,
    /// The same node.
    Node,
}

/// Which endpoints are preferred, as Istio's workload API describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadBalancing {
    /// How strictly `scopes` are kept.
    pub mode: LocalityMode,
    /// What must match, in order.
    pub scopes: &'static [LocalityScope],
    /// Whether endpoints that are not ready are used too (`publishNotReadyAddresses`).
    pub allow_unhealthy: bool,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Service {
    /// Namespace and host.
    pub key: ServiceKey,
    /// The object's name.
    pub name: Arc<str>,
    /// The virtual addresses; CIDRs are allowed in ServiceEntries. Empty for a headless service.
    pub vips: Vec<IpNet>,
    /// The ports.
    pub ports: Vec<ServicePort>,
    /// How a virtual address is turned into a destination.
    pub resolution: Resolution,
    /// Which endpoints are preferred.
    pub load_balancing: LoadBalancing,
    /// The waypoint for traffic addressed to this service.
    pub waypoint: Option<WaypointBinding>,
    /// Identities that the server may present beside the workload's own (ServiceEntry `subjectAltNames`).
    pub subject_alt_names: Vec<Arc<str>>,
    /// Whether this is a Kubernetes Service, which wins over a ServiceEntry that claims the same address.
    pub canonical: bool,
    /// When the object was made, in seconds since 1970; of several claims to one name or address the oldest counts.
    /// Objects without a time are the youngest.
    pub created: Created,
}

impl Service {
    /// Where the object is found: `namespace/name`.
    pub fn namespaced_name(&self) -> NamespacedName {
        NamespacedName { namespace: self.key.namespace.clone(), name: self.name.clone() }
    }

    /// The port that clients dial as `port`.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|p| p.port == port)
    }
}
