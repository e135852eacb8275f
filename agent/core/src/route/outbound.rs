//! The outbound decision of L4: what an enrolled pod dialled, and where that goes.

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::address::OriginalDst;
use crate::hbone::Authority;
use crate::identity::Identity;
use crate::mesh::Snapshot;
use crate::service::Service;
use crate::workload::Workload;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Outbound {
    /// What to dial.
    pub upstream: Upstream,
    /// The service that was dialled.
    pub service: Option<Arc<Service>>,
    /// The workload at the end; `None` if unknown, or a waypoint's to choose.
    pub workload: Option<Arc<Workload>>,
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

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// To come.
    #[error("not decided yet")]
    NotYet,
}

impl Refusal {
    /// Whether the mesh's configuration forbids the connection, rather than nothing being there to take it just now.
    /// A connection that is already open is ended in the first case only.
    pub fn is_forbidden(&self) -> bool {
        match self {
            Self::NotYet => false,
        }
    }
}

/// Decides where a connection of `source` to `dst` goes.
///
/// # Errors
/// When it must not be made, with what to check next.
pub fn outbound(
    _snapshot: &Snapshot,
    _source: &Workload,
    _dst: OriginalDst,
    _rng: &mut impl rand::Rng,
) -> Result<Outbound, Refusal> {
    Err(Refusal::NotYet)
}
