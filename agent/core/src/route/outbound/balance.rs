//! Which endpoint of a service a connection goes to.

use std::fmt;
use std::sync::Arc;

use crate::mesh::{Endpoint, Snapshot};
use crate::service::{LoadBalancing, LocalityMode, LocalityScope, Service, ServicePort, TargetPort};
use crate::workload::Workload;

/// Why no endpoint of a service can take a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoEndpoint {
    /// The service itself is not there.
    NoService,
    /// The service lacks the port.
    NoPort {
        /// The port.
        port: u16,
    },
    /// It has none at all.
    None,
    /// None is ready.
    NotReady {
        /// How many there are.
        of: usize,
    },
    /// Those that are ready lack the named port.
    NamedPort {
        /// The name.
        name: Arc<str>,
    },
    /// Those that are ready lack the port.
    Port,
    /// The service is local to each node, and this node has none.
    NotOnNode {
        /// The node.
        node: Arc<str>,
    },
    /// Those that are ready are in another network.
    RemoteNetwork {
        /// One such network.
        network: Arc<str>,
    },
}

impl fmt::Display for NoEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoService => f.write_str("there is no such service"),
            Self::NoPort { port } => write!(f, "it has no port {port}: add it"),
            Self::None => f.write_str("it has none: check its selector against the labels of the pods"),
            Self::NotReady { of } => write!(f, "none of {of} is ready: check the readiness of its pods"),
            Self::NamedPort { name } => {
                write!(f, "no ready pod has a container port named {name:?}: check targetPort against the pods' ports")
            }
            Self::Port => f.write_str("no ready endpoint has the port: check the ports of its EndpointSlices"),
            Self::NotOnNode { node } => {
                write!(f, "none is ready on node {node:?}, and internalTrafficPolicy is Local")
            }
            Self::RemoteNetwork { network } => {
                write!(f, "the ready ones are in network {network:?}; network gateways are not supported")
            }
        }
    }
}

/// Chooses an endpoint of `service` for `port` and says which of its ports to dial.
///
/// Of the endpoints that are ready and have the port, the nearest to `source`; among equals one at random, weighted by
/// capacity (ztunnel `src/state.rs::load_balance`). One pass, no allocation: each candidate replaces the one before it
/// with the probability of its share so far.
pub(super) fn choose<'a>(
    snapshot: &'a Snapshot,
    service: &Service,
    port: &ServicePort,
    source: &Workload,
    rng: &mut impl rand::Rng,
) -> Result<(&'a Endpoint, u16), NoEndpoint> {
    let balancing = &service.load_balancing;
    let mut seen = Seen::default();
    let mut chosen: Option<(&Endpoint, u16)> = None;
    let (mut best, mut total) = (Rank::default(), 0_u64);
    for endpoint in snapshot.endpoints(&service.key) {
        seen.all += 1;
        if !endpoint.ready && !balancing.allow_unhealthy {
            continue;
        }
        seen.ready += 1;
        let Some(target) = endpoint.port(port) else { continue };
        seen.with_port += 1;
        let workload = &endpoint.workload;
        if workload.network != source.network && !workload.network.is_empty() {
            seen.remote = Some(&workload.network);
            continue;
        }
        let rank = rank(balancing, source, workload);
        if balancing.mode == LocalityMode::Strict && rank.scopes < balancing.scopes.len() {
            seen.elsewhere = true;
            continue;
        }
        if chosen.is_none() || rank > best {
            (best, total, chosen) = (rank, 0, None);
        } else if rank < best {
            continue;
        }
        let weight = u64::from(workload.capacity.max(1));
        total += weight;
        if chosen.is_none() || rng.random_range(0..total) < weight {
            chosen = Some((endpoint, target));
        }
    }
    chosen.ok_or_else(|| seen.why(port, source))
}

#[derive(Debug, Default)]
struct Seen<'a> {
    all: usize,
    ready: usize,
    with_port: usize,
    elsewhere: bool,
    remote: Option<&'a Arc<str>>,
}

impl Seen<'_> {
    fn why(&self, port: &ServicePort, source: &Workload) -> NoEndpoint {
        match (self, &port.target) {
            (Seen { all: 0, .. }, _) => NoEndpoint::None,
            (Seen { ready: 0, all, .. }, _) => NoEndpoint::NotReady { of: *all },
            (Seen { with_port: 0, .. }, TargetPort::Named(name)) => NoEndpoint::NamedPort { name: name.clone() },
            (Seen { with_port: 0, .. }, TargetPort::Number(_)) => NoEndpoint::Port,
            (Seen { elsewhere: false, remote: Some(network), .. }, _) => {
                NoEndpoint::RemoteNetwork { network: (*network).clone() }
            }
            _ => NoEndpoint::NotOnNode { node: source.node.clone() },
        }
    }
}

/// How near an endpoint is: its network counts for more than everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    same_network: bool,
    /// How many scopes match, from the widest.
    scopes: usize,
}

fn rank(balancing: &LoadBalancing, source: &Workload, workload: &Workload) -> Rank {
    let same_network = source.network == workload.network;
    let wants_network = balancing.scopes.contains(&LocalityScope::Network);
    let others = balancing.scopes.iter().filter(|scope| **scope != LocalityScope::Network);
    let (ours, theirs) = (&source.locality, &workload.locality);
    let matching = others.take_while(|scope| match scope {
        LocalityScope::Network => true,
        LocalityScope::Region => ours.region == theirs.region,
        LocalityScope::Zone => ours.zone == theirs.zone,
        LocalityScope::Subzone => ours.subzone == theirs.subzone,
        LocalityScope::Node => source.node == workload.node && !source.node.is_empty(),
    });
    Rank { same_network: wants_network && same_network, scopes: matching.count() }
}
