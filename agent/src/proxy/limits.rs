//! What the clients of one pod may take of the agent, which serves other pods too.
//!
//! What is beyond a limit is refused at once: with a reset, or with 503 within a tunnel.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// TLS handshakes under way. Each costs some 20 kB and has 10 s; our own clients dial one at a time.
const HANDSHAKES: Limit = Limit { what: "handshakes", per_address: 32, total: 256 };
/// Tunnels. Each costs some 6 kB when idle and carries 200 streams; a client has one per 100 connections.
const TUNNELS: Limit = Limit { what: "tunnels", per_address: 512, total: 16_384 };
/// Live connections of one pod, in all directions. Each costs two descriptors; beyond, the pod's own ports run out.
pub(crate) const MAX_CONNECTIONS: usize = 50_000;
/// Bytes that the tunnels of one pod hold because nobody reads them. Windows allow 4 MiB a stream, and streams there may be
/// many; beyond, those that hold most are reset (see [`Buffers`](crate::hbone::buffers::Buffers)).
pub(crate) const MAX_UNREAD: usize = 256 << 20;
/// How long whatever a connection leads to may take to accept it (as ztunnel).
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a limit that stays reached is spoken of: a flood must not become one of the log.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// How many there may be of one client address, and in total, for each pod.
#[derive(Clone, Copy, Debug)]
struct Limit {
    what: &'static str,
    per_address: usize,
    total: usize,
}

/// Counts what is under way, by the client's address.
#[derive(Debug)]
pub(super) struct Gate {
    limit: Limit,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
    refused: u64,
    said: Option<Instant>,
}

/// One place inside, given back when dropped.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
}

/// There is no place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full {
    what: &'static str,
    limit: usize,
    of_address: bool,
    /// How many were refused since this was last said; 0: it was said a moment ago.
    refused: u64,
}

impl Full {
    /// Whether it is worth a line of the log.
    pub(super) fn is_news(&self) -> bool {
        self.refused > 0
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, limit, of_address, refused } = self;
        let whose = if *of_address { "this address" } else { "all addresses" };
        write!(f, "{limit} {what} of {whose} are open already ({refused} refused); look at what the peer does")
    }
}

impl Gate {
    /// For TLS handshakes.
    pub(super) fn handshakes() -> Arc<Self> {
        Self::new(HANDSHAKES)
    }

    /// For tunnels.
    pub(super) fn tunnels() -> Arc<Self> {
        Self::new(TUNNELS)
    }

    fn new(limit: Limit) -> Arc<Self> {
        Arc::new(Self { limit, inside: Mutex::default() })
    }

    /// Takes a place, if there is one.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Pass, Full> {
        let Limit { what, per_address, total } = self.limit;
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = inside.by_address.get(&address).is_some_and(|count| *count >= per_address);
        if of_address || inside.total >= total {
            inside.refused += 1;
            let now = Instant::now();
            let is_news = inside.said.is_none_or(|said| now - said >= SAY_EVERY);
            let refused = if is_news { std::mem::take(&mut inside.refused) } else { 0 };
            if is_news {
                inside.said = Some(now);
            }
            let limit = if of_address { per_address } else { total };
            return Err(Full { what, limit, of_address, refused });
        }
        inside.total += 1;
        *inside.by_address.entry(address).or_default() += 1;
        Ok(Pass { gate: self.clone(), address })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.gate.inside.lock().unwrap_or_else(PoisonError::into_inner);
        inside.total -= 1;
        if let Some(count) = inside.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                inside.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_every_place() {
        let gate = Gate::new(Limit { what: "places", per_address: 2, total: 3 });
        let (greedy, modest): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = gate.enter(greedy).unwrap();
        let _second = gate.enter(greedy).unwrap();
        let full = gate.enter(greedy).unwrap_err();
        assert!(full.is_news() && full.to_string().contains("2 places of this address"), "{full}");
        assert!(!gate.enter(greedy).unwrap_err().is_news(), "said a moment ago");
        let _third = gate.enter(modest).unwrap();
        assert_eq!(gate.enter(modest).unwrap_err().limit, 3);
        drop(first);
        gate.enter(modest).unwrap();
    }

    #[test]
    fn an_address_that_has_left_is_forgotten() {
        let gate = Gate::new(Limit { what: "places", per_address: 2, total: 3 });
        drop(gate.enter("fd00::1".parse().unwrap()).unwrap());
        assert!(gate.inside.lock().unwrap().by_address.is_empty());
    }
}
