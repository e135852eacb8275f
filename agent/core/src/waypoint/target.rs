//! What a waypoint is asked for, and whether that is its business.
//!
//! A client's node asks a waypoint for the address that its pod dialled (an east-west gateway: for a host name). The mesh
//! says whose address that is and which waypoint serves it; nothing that a peer says is believed. What is not bound to
//! this waypoint is refused, or a waypoint would be a way around another one's policies.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::address::HBONE_PORT;
use crate::hbone::Authority;
use crate::mesh::Snapshot;
use crate::service::{Service, ServiceKey};
use crate::waypoint::{Waypoint, WaypointBinding, WaypointFor};
use crate::workload::{NamespacedName, Workload};

/// What a connection through a waypoint is for.
#[derive(Clone, Debug, PartialEq)]
pub enum SessionTarget {
    /// A service and one of its ports.
    Service(Arc<Service>, u16),
    /// A workload by its own address, and any port of it.
    Workload(Arc<Workload>, u16),
}

/// Why a waypoint does not serve what it is asked for; each message names what to check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// There is no such Gateway.
    #[error("there is no waypoint {0}: create the Gateway (class istio-waypoint), or correct --gateway")]
    NoGateway(NamespacedName),
    /// Nobody has the address, or the name.
    #[error("{0} belongs to no service or workload that this waypoint knows")]
    Unknown(Authority),
    /// It is bound to another waypoint, or to none.
    #[error("{what} is bound to {}, not to {gateway}: see its label istio.io/use-waypoint", Bound(other.as_ref()))]
    NotBound {
        /// What is asked for.
        what: Addressed,
        /// This waypoint.
        gateway: NamespacedName,
        /// The waypoint that it has.
        other: Option<NamespacedName>,
    },
    /// The waypoint does not let its namespace use it.
    #[error("{gateway} does not let the namespace of {what} use it: see its allowedRoutes")]
    NotAllowed {
        /// What is asked for.
        what: Addressed,
        /// This waypoint.
        gateway: NamespacedName,
    },
    /// The waypoint is for other traffic.
    #[error("{gateway} does not serve what is addressed to {what}: see its label istio.io/waypoint-for")]
    OtherTraffic {
        /// What is asked for.
        what: Addressed,
        /// This waypoint.
        gateway: NamespacedName,
    },
    /// The service has other ports.
    #[error("service {service} has no TCP port {port}")]
    NoSuchPort {
        /// The service.
        service: ServiceKey,
        /// The port.
        port: u16,
    },
    /// It would lead into a proxy.
    #[error("port {0} is the proxies' own")]
    OwnPort(u16),
}

/// What a waypoint was asked for, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addressed {
    /// A service.
    Service(ServiceKey),
    /// A workload.
    Workload(NamespacedName),
}

impl SessionTarget {
    /// What a peer whose identity is of `client_namespace` asks `gateway` for.
    ///
    /// # Errors
    /// When that is not the business of `gateway`.
    pub fn resolve(
        snapshot: &Snapshot,
        gateway: &NamespacedName,
        authority: &Authority,
        client_namespace: &str,
    ) -> Result<Self, NotServed> {
        let waypoint = snapshot.waypoint(gateway).ok_or_else(|| NotServed::NoGateway(gateway.clone()))?;
        let unknown = || NotServed::Unknown(authority.clone());
        match authority {
            Authority::Ip(address) => {
                // As the client's node has it: a service's address before a workload's.
                if let Some(service) = snapshot.service_by_address(address.ip(), client_namespace) {
                    return of_service(snapshot, waypoint, service, address.port());
                }
                let workload = snapshot.workload_by_address(address.ip()).ok_or_else(unknown)?;
                of_workload(snapshot, waypoint, workload, address.port())
            }
            Authority::Host(host, port) => {
                // Several may claim a name. Of those that are ours, the client's own comes first.
                let claims = || snapshot.services_by_hostname(host);
                let own = claims().filter(|service| &*service.key.namespace == client_namespace);
                let others = claims().filter(|service| &*service.key.namespace != client_namespace);
                let mut first = None;
                for service in own.chain(others) {
                    match of_service(snapshot, waypoint, service, *port) {
                        Ok(target) => return Ok(target),
                        Err(why) => first = first.or(Some(why)),
                    }
                }
                Err(first.unwrap_or_else(unknown))
            }
        }
    }

    /// The same target as `snapshot` has it.
    ///
    /// # Errors
    /// When it is not the business of `gateway` any more.
    pub fn renew(&self, snapshot: &Snapshot, gateway: &NamespacedName) -> Result<Self, NotServed> {
        let waypoint = snapshot.waypoint(gateway).ok_or_else(|| NotServed::NoGateway(gateway.clone()))?;
        match self {
            Self::Service(service, port) => match snapshot.service(&service.key) {
                Some(service) => of_service(snapshot, waypoint, service, *port),
                None => Err(NotServed::Unknown(Authority::Host(service.key.hostname.clone(), *port))),
            },
            Self::Workload(workload, port) => match snapshot.workload(&workload.uid) {
                Some(workload) => of_workload(snapshot, waypoint, workload, *port),
                None => {
                    let ip = workload.addresses.first().copied().unwrap_or(IpAddr::V4([0; 4].into()));
                    Err(NotServed::Unknown(SocketAddr::new(ip, *port).into()))
                }
            },
        }
    }

    /// The service, where it is one.
    pub fn service(&self) -> Option<&Arc<Service>> {
        match self {
            Self::Service(service, _) => Some(service),
            Self::Workload(..) => None,
        }
    }

    /// The port that was asked for.
    pub fn port(&self) -> u16 {
        match self {
            Self::Service(_, port) | Self::Workload(_, port) => *port,
        }
    }
}

impl NotServed {
    /// The status that the CONNECT is answered with: 400 for what is not this waypoint's, 503 for what is not there.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotBound { .. } | Self::NotAllowed { .. } | Self::OtherTraffic { .. } => 400,
            Self::Unknown(Authority::Ip(_)) => 400,
            Self::Unknown(Authority::Host(..)) => 503,
            Self::NoGateway(_) | Self::NoSuchPort { .. } | Self::OwnPort(_) => 503,
        }
    }
}

fn of_service(
    snapshot: &Snapshot,
    waypoint: &Waypoint,
    service: &Arc<Service>,
    port: u16,
) -> Result<SessionTarget, NotServed> {
    let what = || Addressed::Service(service.key.clone());
    check(snapshot, waypoint, service.waypoint.as_ref(), &service.key.namespace, what)?;
    if !matches!(waypoint.serves, WaypointFor::Service | WaypointFor::All) {
        return Err(NotServed::OtherTraffic { what: what(), gateway: waypoint.gateway.clone() });
    }
    match service.port(port) {
        Some(_) => Ok(SessionTarget::Service(service.clone(), port)),
        None => Err(NotServed::NoSuchPort { service: service.key.clone(), port }),
    }
}

fn of_workload(
    snapshot: &Snapshot,
    waypoint: &Waypoint,
    workload: &Arc<Workload>,
    port: u16,
) -> Result<SessionTarget, NotServed> {
    let what = || Addressed::Workload(workload.namespaced_name());
    check(snapshot, waypoint, workload.waypoint.as_ref(), &workload.namespace, what)?;
    if !matches!(waypoint.serves, WaypointFor::Workload | WaypointFor::All) {
        return Err(NotServed::OtherTraffic { what: what(), gateway: waypoint.gateway.clone() });
    }
    if port == HBONE_PORT {
        return Err(NotServed::OwnPort(port));
    }
    Ok(SessionTarget::Workload(workload.clone(), port))
}

/// Whether what is bound like this, in `namespace`, is bound to `waypoint` and may be.
fn check(
    snapshot: &Snapshot,
    waypoint: &Waypoint,
    binding: Option<&WaypointBinding>,
    namespace: &str,
    what: impl Fn() -> Addressed,
) -> Result<(), NotServed> {
    let gateway = &waypoint.gateway;
    match binding {
        Some(binding) if binding.gateways().any(|bound| bound == gateway) => {}
        other => {
            let other = other.map(|binding| binding.gateway.clone());
            return Err(NotServed::NotBound { what: what(), gateway: gateway.clone(), other });
        }
    }
    match snapshot.may_bind(waypoint, namespace) {
        true => Ok(()),
        false => Err(NotServed::NotAllowed { what: what(), gateway: gateway.clone() }),
    }
}

impl fmt::Display for Addressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => write!(f, "service {key}"),
            Self::Workload(name) => write!(f, "workload {name}"),
        }
    }
}

struct Bound<'a>(Option<&'a NamespacedName>);

impl fmt::Display for Bound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(gateway) => write!(f, "waypoint {gateway}"),
            None => f.write_str("no waypoint"),
        }
    }
}

#[cfg(test)]
mod tests;
