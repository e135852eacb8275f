//! How an endpoint is reached: the last leg, which leads to the endpoint itself and through no other waypoint.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use culvert_core::address::HBONE_PORT;
use culvert_core::hbone::Authority;
use culvert_core::identity::Identity;
use culvert_core::mesh::Snapshot;
use culvert_core::service::Service;
use culvert_core::workload::{NetworkMode, Protocol, Workload};
use smallvec::SmallVec;

use crate::hbone::client::Key;

/// What to dial.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Transport {
    /// A tunnel to the endpoint's own agent.
    Hbone {
        /// The tunnel.
        key: Key,
        /// What to ask it for.
        authority: Authority,
    },
    /// Plain TCP: it is not in the mesh.
    Tcp(SocketAddr),
    /// Plain TCP to an address that the name resolves to.
    Name(Arc<str>, u16),
    /// Nothing, and why.
    Unreachable(&'static str),
}

impl Transport {
    /// To `port` of `workload`, an endpoint of `service`, from the waypoint that is `own`.
    pub(super) fn to(
        snapshot: &Snapshot,
        own: &Workload,
        service: Option<&Service>,
        workload: &Workload,
        port: u16,
    ) -> Self {
        if workload.uid == own.uid {
            return Self::Unreachable("the endpoint is this waypoint itself: what it was sent would come back to it");
        }
        match (workload.addresses.first(), &workload.hostname) {
            (Some(ip), _) => Self::to_address(found(snapshot, workload), service, SocketAddr::new(*ip, port)),
            (None, Some(host)) => Self::Name(host.clone(), port),
            (None, None) => Self::Unreachable("the endpoint has neither an address nor a host name"),
        }
    }

    fn to_address(workload: &Workload, service: Option<&Service>, address: SocketAddr) -> Self {
        match workload.protocol {
            Protocol::Tcp => Self::Tcp(address),
            Protocol::Hbone => {
                let names = service.map(|service| service.subject_alt_names.as_slice()).unwrap_or_default();
                let further = names.iter().filter_map(|name| Some(Arc::new(name.parse::<Identity>().ok()?)));
                let expected: SmallVec<[_; 1]> = std::iter::once(workload.identity.clone()).chain(further).collect();
                // Whichever address of the waypoint the route takes.
                let source = match address {
                    SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                    SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                };
                let key = Key { peer: SocketAddr::new(address.ip(), HBONE_PORT), expected, source };
                Self::Hbone { key, authority: Authority::Ip(address) }
            }
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hbone { authority, .. } => authority.fmt(f),
            Self::Tcp(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
            Self::Unreachable(why) => f.write_str(why),
        }
    }
}

/// Who is spoken to at the address of `workload`: an address that someone wrote into an EndpointSlice may be a pod's.
pub(super) fn found<'a>(snapshot: &'a Snapshot, workload: &'a Workload) -> &'a Workload {
    let address = workload.addresses.first().filter(|_| workload.protocol == Protocol::Tcp);
    let address = address.filter(|_| workload.network_mode == NetworkMode::Standard);
    match address.and_then(|ip| snapshot.workload_by_address(*ip)) {
        Some(known) => known,
        None => workload,
    }
}
