//! Dialling tunnels, and the pool of tunnels that a pod has.

mod dial;
mod pool;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use culvert_core::identity::Identity;
use smallvec::SmallVec;

pub use dial::{DialError, Origin, connect, connected, keepalive, start_connect};
pub use pool::Pool;

/// What tunnels may be shared for: who is spoken to, where, from which of the pod's addresses. The pod's own identity
/// is the pool's.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The other end: an address and port 15008.
    pub peer: SocketAddr,
    /// The identities it may present.
    pub expected: SmallVec<[Arc<Identity>; 1]>,
    /// The address to dial from.
    pub source: IpAddr,
}
