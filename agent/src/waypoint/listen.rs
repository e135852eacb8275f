//! Where tunnels arrive.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};

use super::inbound;
use super::shared::Shared;
use crate::proxy::accept::accept;

/// Connections that may wait to be accepted: the kernel's own limit is lower, as a rule.
const BACKLOG: i32 = 4096;

/// A port that is bound, and not served yet.
pub(super) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// The address, with the port that was chosen where port 0 was asked for.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Listens on all of them. The unspecified address of IPv6 is that of IPv4 as well, where it is the only one.
///
/// # Errors
/// One line that names the flag and the cure.
pub(super) fn bind_all(addresses: &[SocketAddr]) -> anyhow::Result<Vec<Listener>> {
    let alone = addresses.len() == 1;
    addresses.iter().map(|address| bind_one(*address, alone)).collect()
}

/// Serves all of them until the waypoint is about to end, each from a worker of its own.
pub(super) fn accept_all(listeners: Vec<Listener>, shared: &Arc<Shared>) {
    for (at, Listener { listener, .. }) in listeners.into_iter().enumerate() {
        let (this, stopped) = (shared.clone(), shared.draining());
        shared.workers.get(at).spawn(accept(listener, stopped, move |incoming| inbound::serve(&this, incoming)));
    }
}

fn bind_one(address: SocketAddr, alone: bool) -> anyhow::Result<Listener> {
    let is_any = address.is_ipv6() && address.ip().is_unspecified();
    let bound = match bind(address, is_any && alone) {
        // A machine without IPv6.
        Err(error) if is_any && alone && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), false)
        }
        bound => bound,
    };
    bound.with_context(|| {
        format!("--hbone-addr: cannot listen on {address}; give a free port, and an address of this machine")
    })
}

fn bind(address: SocketAddr, both_families: bool) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!both_families)?;
    }
    // Connections of before may linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    let address = listener.local_addr()?;
    Ok(Listener { listener, address })
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn the_only_unspecified_address_is_of_both_families() {
        let any = bind_all(&["[::]:0".parse().unwrap()]).unwrap();
        let port = any[0].address().port();
        for loopback in ["127.0.0.1", "::1"] {
            TcpStream::connect((loopback, port)).unwrap();
        }
        let each = [SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), "[::1]:0".parse().unwrap()];
        assert_eq!(bind_all(&each).unwrap().len(), 2);
    }

    #[test]
    fn a_port_that_is_taken_is_named_with_its_flag() {
        let first = bind_all(&["127.0.0.1:0".parse().unwrap()]).unwrap();
        let error = bind_all(&[first[0].address()]).err().unwrap().to_string();
        assert!(error.starts_with("--hbone-addr: ") && error.contains(&first[0].address().to_string()), "{error}");
    }
}
