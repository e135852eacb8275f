//! The outbound decision of L4: what an enrolled pod dialled, and where that goes.
//!
//! The order is ztunnel's (`src/proxy/outbound.rs`): a service's address before a workload's, a waypoint before an
//! endpoint, and what nobody knows last. Where ztunnel goes on without a waypoint that it cannot find, this refuses.

mod balance;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use culvert_api::names::label;
use smallvec::{SmallVec, smallvec};

use crate::address::{HBONE_PORT, OriginalDst};
use crate::bypass::{self, Bypassed};
use crate::hbone::Authority;
use crate::identity::Identity;
use crate::mesh::Snapshot;
use crate::options::OutboundTrafficPolicy;
use crate::service::{Resolution, Service, ServiceKey, ServicePort, TargetPort};
use crate::waypoint::{Waypoint, WaypointBinding, WaypointFor};
use crate::workload::{NamespacedName, Protocol, Workload};

pub use balance::NoEndpoint;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Outbound {
    /// What to dial.
    pub upstream: Upstream,
    /// The service that was dialled.
    pub service: Option<Arc<Service>>,
    /// The workload that is dialled, a waypoint's where it goes through one; `None` if unknown.
    pub workload: Option<Arc<Workload>>,
    /// Why it goes there without the mesh: it is not captured, and only comes here where the programs have not heard of
    /// the rule yet.
    pub bypassed: Option<Bypassed>,
}

/// What to dial.
#[derive(Clone, Debug, PartialEq)]
pub enum Upstream {
    /// A tunnel.
    Hbone {
        /// Its end: an address and port 15008.
        peer: SocketAddr,
        /// What to ask it for.
        authority: Authority,
        /// The identities it may present.
        expected: SmallVec<[Arc<Identity>; 1]>,
        /// What it is.
        through: Hop,
    },
    /// Plain TCP.
    Tcp {
        /// Its end.
        peer: SocketAddr,
    },
    /// Plain TCP to one of the addresses that a name resolves to.
    Resolve {
        /// The name.
        hostname: Arc<str>,
        /// The port.
        port: u16,
    },
}

/// What is at the end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// The workload itself.
    Workload,
    /// A waypoint.
    Waypoint,
}

/// Why a connection is refused; each message names what to check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nobody knows the address, and the mesh does not let such connections out.
    #[error(
        "{0} belongs to no service or workload, and outboundTrafficPolicy is REGISTRY_ONLY: add a ServiceEntry for it"
    )]
    RegistryOnly(SocketAddr),
    /// The service has other ports.
    #[error("service {service} has no TCP port {port}: it has {}", Ports(ports))]
    NoSuchPort {
        /// The service.
        service: ServiceKey,
        /// The port that was dialled.
        port: u16,
        /// Those that it has.
        ports: Vec<u16>,
    },
    /// No endpoint of the service can take the connection.
    #[error("service {service} has no endpoint for port {port}: {why}")]
    NoEndpoint {
        /// The service.
        service: ServiceKey,
        /// The port that was dialled.
        port: u16,
        /// Why not.
        why: NoEndpoint,
    },
    /// The waypoint is not there.
    #[error(
        "{bound} is bound to waypoint {gateway}, which does not exist: create that Gateway (class istio-waypoint), \
         correct the label istio.io/use-waypoint, or annotate the namespace culvert.dev/missing-waypoint: bypass"
    )]
    WaypointMissing {
        /// What is bound.
        bound: Bound,
        /// To what.
        gateway: NamespacedName,
    },
    /// The waypoint does not let this namespace use it.
    #[error(
        "{bound} is bound to waypoint {gateway}, which does not accept its namespace: check allowedRoutes.namespaces \
         of the Gateway's listener"
    )]
    WaypointNotAllowed {
        /// What is bound.
        bound: Bound,
        /// To what.
        gateway: NamespacedName,
    },
    /// The waypoint has no pod that takes connections.
    #[error("{bound} is bound to waypoint {gateway}, which cannot be reached: service {service}: {why}")]
    WaypointNotReady {
        /// What is bound.
        bound: Bound,
        /// To what.
        gateway: NamespacedName,
        /// The waypoint's service.
        service: Arc<str>,
        /// Why it cannot be reached.
        why: NoEndpoint,
    },
    /// It is in another network.
    #[error(
        "{workload} is in network {network:?}, and connections through network gateways are not supported: \
         check topology.istio.io/network"
    )]
    RemoteNetwork {
        /// The workload.
        workload: NamespacedName,
        /// Its network.
        network: Arc<str>,
    },
}

/// What is bound to a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// A service.
    Service(ServiceKey),
    /// A workload.
    Workload(NamespacedName),
}

impl Bound {
    /// The namespace of it.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Service(key) => &key.namespace,
            Self::Workload(name) => &name.namespace,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service {key}"),
            Self::Workload(name) => write!(f, "workload {name}"),
        }
    }
}

struct Ports<'a>(&'a [u16]);

impl fmt::Display for Ports<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.0.split_first() else { return f.write_str("none") };
        write!(f, "{first}")?;
        rest.iter().try_for_each(|port| write!(f, ", {port}"))
    }
}

impl Refusal {
    /// Whether the mesh's configuration forbids the connection, rather than nothing being there to take it just now.
    /// A connection that is already open is ended in the first case only.
    pub fn is_forbidden(&self) -> bool {
        match self {
            Self::RegistryOnly(_) | Self::WaypointMissing { .. } | Self::WaypointNotAllowed { .. } => true,
            Self::NoSuchPort { .. }
            | Self::NoEndpoint { .. }
            | Self::WaypointNotReady { .. }
            | Self::RemoteNetwork { .. } => false,
        }
    }
}

/// Decides where a connection of `source` to `dst` goes.
///
/// Allocates only to refuse, and where a service names further identities; visits each endpoint of a service once.
///
/// # Errors
/// When it must not be made, with what to check next.
pub fn outbound(
    snapshot: &Snapshot,
    source: &Workload,
    dst: OriginalDst,
    rng: &mut impl rand::Rng,
) -> Result<Outbound, Refusal> {
    let mut decision = Deciding { snapshot, source, dst: dst.addr(), rng };
    if let Some(bypassed) = bypass::decide(snapshot, source, dst.addr()) {
        return Ok(Outbound { bypassed: Some(bypassed), ..decision.passthrough(None) });
    }
    if let Some(service) = snapshot.service_by_address(dst.ip(), &source.namespace) {
        return decision.service(service);
    }
    if let Some(workload) = snapshot.workload_by_address(dst.ip()) {
        return decision.workload(workload, None);
    }
    match snapshot.options().outbound_traffic_policy {
        OutboundTrafficPolicy::AllowAny => Ok(decision.passthrough(None)),
        OutboundTrafficPolicy::RegistryOnly => Err(Refusal::RegistryOnly(dst.addr())),
    }
}

struct Deciding<'a, R> {
    snapshot: &'a Snapshot,
    source: &'a Workload,
    dst: SocketAddr,
    rng: &'a mut R,
}

impl<R: rand::Rng> Deciding<'_, R> {
    fn service(&mut self, service: &Arc<Service>) -> Result<Outbound, Refusal> {
        if let Some(binding) = service.waypoint.as_ref().filter(|binding| !self.source_is_canary(binding)) {
            if let Some(outbound) = self.canary(service, binding) {
                return Ok(Outbound { service: Some(service.clone()), ..outbound });
            }
            let bound = || Bound::Service(service.key.clone());
            // The port is the waypoint's to check, and the original address is what it is asked for.
            if let Some(outbound) = self.waypoint(binding, &service.key.namespace, Addressed::Service, bound)? {
                return Ok(Outbound { service: Some(service.clone()), ..outbound });
            }
        }
        if service.resolution == Resolution::Passthrough {
            return match self.snapshot.workload_by_address(self.dst.ip()) {
                Some(workload) => self.workload(workload, Some(service)),
                None => Ok(self.passthrough(Some(service))),
            };
        }
        let Some(port) = service.port(self.dst.port()) else {
            return Err(Refusal::NoSuchPort {
                service: service.key.clone(),
                port: self.dst.port(),
                ports: service.ports.iter().map(|port| port.port).collect(),
            });
        };
        match balance::choose(self.snapshot, service, port, self.source, self.rng) {
            Ok((endpoint, target)) => self.endpoint(service, &endpoint.workload, target),
            // A name without endpoints is its own endpoint.
            Err(NoEndpoint::None) if service.resolution == Resolution::Dns => Ok(Outbound {
                upstream: Upstream::Resolve { hostname: service.key.hostname.clone(), port: number(port) },
                service: Some(service.clone()),
                workload: None,
                bypassed: None,
            }),
            Err(why) => Err(Refusal::NoEndpoint { service: service.key.clone(), port: self.dst.port(), why }),
        }
    }

    fn endpoint(&self, service: &Arc<Service>, workload: &Arc<Workload>, port: u16) -> Result<Outbound, Refusal> {
        let upstream = match (self.address_of(workload), &workload.hostname) {
            (Some(ip), _) => {
                // An address that someone wrote into an EndpointSlice may be a pod's: then that pod is spoken to.
                let known = match workload.network_mode {
                    _ if workload.protocol == Protocol::Hbone => None,
                    crate::workload::NetworkMode::HostNetwork => None,
                    crate::workload::NetworkMode::Standard => self.snapshot.workload_by_address(ip),
                };
                let workload = known.unwrap_or(workload);
                return Ok(Outbound {
                    upstream: direct(workload, SocketAddr::new(ip, port), Some(service)),
                    service: Some(service.clone()),
                    workload: Some(workload.clone()),
                    bypassed: None,
                });
            }
            (None, Some(hostname)) => Upstream::Resolve { hostname: hostname.clone(), port },
            (None, None) => {
                let why = NoEndpoint::None;
                return Err(Refusal::NoEndpoint { service: service.key.clone(), port: self.dst.port(), why });
            }
        };
        let (service, workload) = (Some(service.clone()), Some(workload.clone()));
        Ok(Outbound { upstream, service, workload, bypassed: None })
    }

    /// A workload dialled by its own address.
    fn workload(&mut self, workload: &Arc<Workload>, service: Option<&Arc<Service>>) -> Result<Outbound, Refusal> {
        // What a waypoint sends to a workload has been through a waypoint.
        if let Some(binding) = workload.waypoint.as_ref().filter(|_| !self.source_is_waypoint()) {
            let bound = || Bound::Workload(workload.namespaced_name());
            if let Some(outbound) = self.waypoint(binding, &workload.namespace, Addressed::Workload, bound)? {
                return Ok(Outbound { service: service.cloned(), ..outbound });
            }
        }
        if workload.network != self.source.network && !workload.network.is_empty() {
            let network = workload.network.clone();
            return Err(Refusal::RemoteNetwork { workload: workload.namespaced_name(), network });
        }
        Ok(Outbound {
            upstream: direct(workload, self.dst, service),
            service: service.cloned(),
            workload: Some(workload.clone()),
            bypassed: None,
        })
    }

    fn passthrough(&self, service: Option<&Arc<Service>>) -> Outbound {
        let upstream = Upstream::Tcp { peer: self.dst };
        Outbound { upstream, service: service.cloned(), workload: None, bypassed: None }
    }

    /// Through the waypoint of `binding`; `None` where the connection goes on without it.
    fn waypoint(
        &mut self,
        binding: &WaypointBinding,
        namespace: &str,
        addressed: Addressed,
        bound: impl Fn() -> Bound,
    ) -> Result<Option<Outbound>, Refusal> {
        let gateway = || binding.gateway.clone();
        let missing = |refusal: Refusal| if binding.bypass_if_missing { Ok(None) } else { Err(refusal) };
        let Some(waypoint) = self.snapshot.waypoint(&binding.gateway) else {
            return missing(Refusal::WaypointMissing { bound: bound(), gateway: gateway() });
        };
        if !addressed.is_served_by(waypoint) || self.source_is(waypoint) {
            return Ok(None);
        }
        if !self.snapshot.may_bind(waypoint, namespace) {
            return missing(Refusal::WaypointNotAllowed { bound: bound(), gateway: gateway() });
        }
        match self.tunnel_to_waypoint(waypoint) {
            Ok(outbound) => Ok(Some(outbound)),
            Err(why) => {
                let service = waypoint.service.clone();
                missing(Refusal::WaypointNotReady { bound: bound(), gateway: gateway(), service, why })
            }
        }
    }

    /// Through the waypoint that takes a share of the connections to `service`, if it takes this one. Where it cannot,
    /// the other one does.
    fn canary(&mut self, service: &Service, binding: &WaypointBinding) -> Option<Outbound> {
        let canary = binding.canary.as_deref()?;
        let share = canary.share.as_ref().ok().filter(|share| **share > 0)?;
        if self.rng.random_range(0..100) >= *share || self.snapshot.canary_problem(service).is_some() {
            return None;
        }
        // What the waypoint beside it sends to the service has been through one.
        let is_through = self.source_gateway().is_some_and(|gateway| gateway == binding.gateway);
        let waypoint = self.snapshot.waypoint(&canary.gateway).filter(|_| !is_through)?;
        self.tunnel_to_waypoint(waypoint).ok()
    }

    fn source_is_canary(&self, binding: &WaypointBinding) -> bool {
        let canary = binding.canary.as_deref().map(|canary| &canary.gateway);
        canary.is_some() && self.source_gateway().as_ref() == canary
    }

    fn tunnel_to_waypoint(&mut self, waypoint: &Waypoint) -> Result<Outbound, NoEndpoint> {
        let key = ServiceKey { namespace: waypoint.gateway.namespace.clone(), hostname: waypoint.service.clone() };
        let service = self.snapshot.service(&key).ok_or(NoEndpoint::NoService)?;
        let port = service.port(waypoint.port).ok_or(NoEndpoint::NoPort { port: waypoint.port })?;
        let (endpoint, target) = balance::choose(self.snapshot, service, port, self.source, self.rng)?;
        let ip = self.address_of(&endpoint.workload).ok_or(NoEndpoint::None)?;
        Ok(Outbound {
            upstream: Upstream::Hbone {
                peer: SocketAddr::new(ip, target),
                authority: Authority::Ip(self.dst),
                expected: smallvec![endpoint.workload.identity.clone()],
                through: Hop::Waypoint,
            },
            service: None,
            workload: Some(endpoint.workload.clone()),
            bypassed: None,
        })
    }

    /// The address of `workload` to dial: of the family that was dialled, where it has one.
    fn address_of(&self, workload: &Workload) -> Option<IpAddr> {
        let same_family = workload.addresses.iter().find(|ip| ip.is_ipv4() == self.dst.is_ipv4());
        same_family.or_else(|| workload.addresses.first()).copied()
    }

    fn source_is_waypoint(&self) -> bool {
        self.source_gateway().is_some_and(|gateway| self.snapshot.waypoint(&gateway).is_some())
    }

    fn source_is(&self, waypoint: &Waypoint) -> bool {
        self.source_gateway().is_some_and(|gateway| gateway == waypoint.gateway)
    }

    fn source_gateway(&self) -> Option<NamespacedName> {
        let name = self.source.labels.get(label::GATEWAY_NAME)?;
        Some(NamespacedName { namespace: self.source.namespace.clone(), name: name.clone() })
    }
}

/// What a connection was addressed to.
#[derive(Clone, Copy, Debug)]
enum Addressed {
    Service,
    Workload,
}

impl Addressed {
    fn is_served_by(self, waypoint: &Waypoint) -> bool {
        match (self, waypoint.serves) {
            (_, WaypointFor::All) => true,
            (_, WaypointFor::None) => false,
            (Self::Service, serves) => serves == WaypointFor::Service,
            (Self::Workload, serves) => serves == WaypointFor::Workload,
        }
    }
}

/// `workload` at `addr`, one of its own addresses, without a waypoint.
fn direct(workload: &Workload, addr: SocketAddr, service: Option<&Arc<Service>>) -> Upstream {
    match workload.protocol {
        Protocol::Tcp => Upstream::Tcp { peer: addr },
        Protocol::Hbone => {
            let names = service.map(|service| service.subject_alt_names.as_slice()).unwrap_or_default();
            let further = names.iter().filter_map(|name| Some(Arc::new(name.parse().ok()?)));
            Upstream::Hbone {
                peer: SocketAddr::new(addr.ip(), HBONE_PORT),
                authority: Authority::Ip(addr),
                expected: std::iter::once(workload.identity.clone()).chain(further).collect(),
                through: Hop::Workload,
            }
        }
    }
}

/// The port to dial where there is no endpoint that could name another.
fn number(port: &ServicePort) -> u16 {
    match port.target {
        TargetPort::Number(number) => number,
        TargetPort::Named(_) => port.port,
    }
}
