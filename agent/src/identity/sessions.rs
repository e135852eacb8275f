//! Where a client keeps the tickets of its sessions.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// Servers remembered for each identity: as many pods as one talks to again within the life of a pooled connection.
/// A ticket costs about 2 kB, so a store never holds more than 256 kB.
const MAX_SERVERS: usize = 64;

/// Tickets kept for each server; a server hands out one per handshake.
const TICKETS_PER_SERVER: usize = 2;

/// The tickets that one identity got from the servers it dialled; the oldest server is forgotten first.
///
/// Unlike rustls' own store it takes no memory before there is a ticket: most identities of a node only serve.
#[derive(Default)]
pub(super) struct ClientSessions(Mutex<Tickets>);

#[derive(Default)]
struct Tickets {
    servers: HashMap<ServerName<'static>, VecDeque<Tls13ClientSessionValue>>,
    /// The servers in the order in which they were first remembered.
    order: VecDeque<ServerName<'static>>,
}

impl ClientSessions {
    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ClientSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSessions").finish_non_exhaustive()
    }
}

impl ClientSessionStore for ClientSessions {
    // Every server of the mesh takes the first group, and those that do not cost a round trip, not a failure.
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    // TLS 1.2 is never spoken.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let mut tickets = self.lock();
        if !tickets.servers.contains_key(&server) {
            if tickets.order.len() >= MAX_SERVERS
                && let Some(oldest) = tickets.order.pop_front()
            {
                tickets.servers.remove(&oldest);
            }
            tickets.order.push_back(server.clone());
        }
        let of_server = tickets.servers.entry(server).or_default();
        if of_server.len() >= TICKETS_PER_SERVER {
            of_server.pop_front();
        }
        of_server.push_back(ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        // The newest is good for longest.
        self.lock().servers.get_mut(server)?.pop_back()
    }
}
