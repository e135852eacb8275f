//! The pod's listeners.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Listeners;
use super::netns::{Netns, set_int};

/// As many as the kernel allows (`net.core.somaxconn`): a burst of new connections must not wait for a SYN to be sent
/// again.
const BACKLOG: i32 = 4096;

/// Where listeners are bound: an address for documentation (RFC 5737), which nobody can dial, as what is dialled in an
/// enrolled pod is steered. Bound to loopback, any process of the pod could connect.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Opens the three listeners in `netns`.
pub(super) fn open(netns: &Netns) -> io::Result<Listeners> {
    netns.enter(|| Ok(Listeners { outbound: listener()?, hbone: listener()?, plaintext: listener()? }))?
}

/// One listener for both families; IPv4's alone where the kernel has no IPv6.
fn listener() -> io::Result<TcpListener> {
    match Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), Some(Protocol::TCP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            // Without it the SYN-ACK, whose source is not the pod's address, is dropped.
            socket.set_ip_transparent_v4(true)?;
            set_int(&socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)?;
            // Mapped: bound to a true IPv6 address, the kernel would make the socket IPv6-only.
            bind(socket, SocketAddr::from((NOWHERE.to_ipv6_mapped(), 0)))
        }
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            socket.set_ip_transparent_v4(true)?;
            bind(socket, SocketAddr::from((NOWHERE, 0)))
        }
        Err(error) => Err(error),
    }
}

fn bind(socket: Socket, addr: SocketAddr) -> io::Result<TcpListener> {
    socket.bind(&SockAddr::from(addr))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
