//! Tunnels with what their peers were let in on.

use std::sync::Arc;

use super::tunnel::Handle;
use crate::identity::{Evidence, Trust};

/// A tunnel to or from a peer that was let in, and is put out when the mesh trusts it no longer.
#[derive(Clone)]
pub struct Vetted {
    /// The tunnel.
    pub tunnel: Handle,
    evidence: Arc<Evidence>,
}

impl Vetted {
    /// Of a peer that was let in on `evidence`.
    pub fn new(tunnel: Handle, evidence: Evidence) -> Self {
        Self { tunnel, evidence: Arc::new(evidence) }
    }

    /// Ends the tunnel and all that it carries if its peer would not be let in under `trust`; says whether it does.
    pub fn vet(&self, trust: &Trust) -> bool {
        let distrust = self.evidence.check(trust).err();
        let distrusted = distrust.is_some();
        if let Some(why) = distrust {
            self.tunnel.distrust(why);
        }
        distrusted
    }

    /// [`vet`](Self::vet)s a tunnel whose handshake went by `seen`, or what is newer, if `newest` is not that.
    pub fn vet_if_changed(&self, seen: &Trust, newest: &Trust) {
        if !newest.is(seen) {
            self.vet(newest);
        }
    }
}
