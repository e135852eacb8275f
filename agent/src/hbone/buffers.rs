//! How much the tunnels of one pod may keep in memory for readers who do not read.
//!
//! Flow control bounds what one tunnel keeps, by windows that are the peer's once they are granted; but a peer may open
//! many tunnels. So the tunnels of a pod have one account. While it is in order nobody is held up by it. When it is
//! overdrawn, the limit is divided among those that hold something worth mentioning, and whoever holds more than its
//! share resets the streams that hold most, be it that nothing more comes for them. Those whose applications read, or
//! have merely little unread, do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a tunnel may hold whatever others do, in bytes.
const FLOOR: usize = 64 << 10;

/// The account of one pod's tunnels.
#[derive(Debug)]
pub struct Buffers {
    /// Bytes held, over all tunnels.
    held: AtomicUsize,
    /// Tunnels that hold more than [`FLOOR`].
    holders: AtomicUsize,
    limit: usize,
}

impl Buffers {
    /// An account of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), holders: AtomicUsize::new(0), limit })
    }

    /// Bytes that the tunnels hold, as of their last turns.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// A tunnel's part.
    pub(super) fn part(self: &Arc<Self>) -> Part {
        Part { all: self.clone(), held: 0 }
    }
}

/// What one tunnel holds of its pod's account.
pub(super) struct Part {
    all: Arc<Buffers>,
    held: usize,
}

impl Part {
    /// Says how many bytes the tunnel holds now. It is meant to be called once a turn, and costs nothing when nothing has
    /// changed.
    pub(super) fn hold(&mut self, held: usize) {
        let before = std::mem::replace(&mut self.held, held);
        if held == before {
            return;
        }
        // Adding the difference, be it negative: addition wraps around, and the sum is right again.
        self.all.held.fetch_add(held.wrapping_sub(before), Ordering::Relaxed);
        match (before > FLOOR, held > FLOOR) {
            (false, true) => self.all.holders.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.all.holders.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
    }

    /// How many bytes the tunnel holds beyond its share of an overdrawn account.
    pub(super) fn excess(&self) -> usize {
        if self.held <= FLOOR || self.all.held() <= self.all.limit {
            return 0;
        }
        let share = self.all.limit / self.all.holders.load(Ordering::Relaxed).max(1);
        self.held.saturating_sub(share.max(FLOOR))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_more_than_its_share_of_an_overdrawn_account_has_an_excess_and_nobody_else() {
        let all = Buffers::new(4 << 20);
        let (mut greedy, mut modest, mut idle) = (all.part(), all.part(), all.part());
        greedy.hold(4 << 20);
        idle.hold(FLOOR);
        assert_eq!((all.held(), greedy.excess()), ((4 << 20) + FLOOR, 0), "there is nobody to share with");
        modest.hold(2 << 20);
        assert_eq!((greedy.excess(), modest.excess(), idle.excess()), (2 << 20, 0, 0));
        greedy.hold((2 << 20) - FLOOR);
        assert_eq!((greedy.excess(), modest.excess()), (0, 0), "the account is in order");
    }

    #[test]
    fn a_tunnel_that_is_gone_holds_nothing() {
        let all = Buffers::new(1);
        let mut part = all.part();
        part.hold(1 << 20);
        part.hold(2 << 20);
        drop(part);
        assert_eq!((all.held(), all.holders.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn among_many_each_keeps_a_little() {
        let all = Buffers::new(FLOOR);
        let parts: Vec<_> = (0..100).map(|_| all.part()).collect();
        for mut part in parts {
            part.hold(FLOOR + 1);
            std::mem::forget(part);
        }
        let mut last = all.part();
        last.hold(FLOOR);
        assert_eq!(last.excess(), 0);
        last.hold(FLOOR + 10);
        assert_eq!(last.excess(), 10);
    }
}
