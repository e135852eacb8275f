//! How much of the CA each address may have at once: whoever asks a thousand times waits for itself, and holds up nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Requests of one address that are worked on at once. A node that starts asks for all its service accounts, and has
/// them in some milliseconds each.
const OF_ONE: usize = 8;

/// The share of each address that has requests. Cloning is cheap; all clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Shares(Arc<Mutex<HashMap<IpAddr, Arc<Semaphore>>>>);

/// A request's part of its address's share, until dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Shares,
    address: IpAddr,
    semaphore: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Shares {
    /// Waits until `address` has less than its share.
    pub(super) async fn enter(&self, address: IpAddr) -> Share {
        // Known of before it waits, so that nothing stays behind of one that gives up waiting.
        let mut share = self.wanted(address);
        share.permit = share.semaphore.clone().acquire_owned().await.ok();
        share
    }

    fn wanted(&self, address: IpAddr) -> Share {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let semaphore = all.entry(address).or_insert_with(|| Arc::new(Semaphore::new(OF_ONE))).clone();
        Share { of: self.clone(), address, semaphore, permit: None }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // It holds the semaphore as well.
        drop(self.permit.take());
        let mut all = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        let only_this_and_the_table = 2;
        if Arc::strong_count(&self.semaphore) == only_this_and_the_table {
            all.remove(&self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_waits_for_itself_and_no_other() {
        let shares = Shares::default();
        let (hostile, honest): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let mut held = Vec::new();
        for _ in 0..OF_ONE {
            held.push(shares.enter(hostile).await);
        }
        let moment = Duration::from_secs(1);
        assert!(timeout(moment, shares.enter(hostile)).await.is_err(), "more than its share");
        assert!(timeout(moment, shares.enter(honest)).await.is_ok());
        held.pop();
        assert!(timeout(moment, shares.enter(hostile)).await.is_ok());
        held.clear();
        assert!(shares.0.lock().unwrap().is_empty(), "nothing is kept of those that have gone");
    }
}
