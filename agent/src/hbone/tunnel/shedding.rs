//! What becomes of a tunnel that holds too much.

use super::{Tunnel, TunnelError};

impl Tunnel {
    /// Accounts for what the tunnel keeps in memory: what applications have not read, and what the peer has not. Sheds
    /// what is too much; returns whether something was.
    pub(super) fn account(&mut self) -> Result<bool, TunnelError> {
        self.hold();
        let mut shed = false;
        while self.part.excess() > 0 && self.mux.shed() {
            self.hold();
            shed = true;
        }
        if !shed && self.part.excess() > 0 && self.wire.is_blocked() {
            return Err(TunnelError::Unread);
        }
        Ok(shed)
    }

    fn hold(&mut self) {
        let unread = self.mux.h2.pending_output().len() + self.wire.unsent();
        self.part.hold(self.mux.buffered() + unread);
    }
}
