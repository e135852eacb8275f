//! The pod's listeners.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::datagram::Replies;
use super::netns::{Netns, set_int};

/// As many as the kernel allows (`net.core.somaxconn`): a burst of new connections must not wait for a SYN to be sent
/// again.
const BACKLOG: i32 = 4096;

/// Where listeners are bound: an address for documentation (RFC 5737), which nobody can dial, as what is dialled in an
/// enrolled pod is steered. Bound to loopback, any process of the pod could connect.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The pod's listeners, in its network namespace, nonblocking.
///
/// On each, `local_addr()` of an accepted socket is the original destination. They are dual-stack: addresses may come
/// as IPv4-mapped IPv6 and are to be made canonical.
#[derive(Debug)]
pub struct Listeners {
    /// What the pod's applications dial.
    pub outbound: TcpListener,
    /// Tunnels to port 15008 of the pod.
    pub hbone: TcpListener,
    /// Everything else that reaches the pod.
    pub plaintext: TcpListener,
    /// What the pod asks of DNS, where that is captured.
    pub dns: Option<DnsListeners>,
}

/// The sockets that take what a pod asks of DNS, dual-stack and nonblocking.
#[derive(Debug)]
pub struct DnsListeners {
    /// Datagrams; each tells by `IPV6_PKTINFO` (`IP_PKTINFO` where the kernel has no IPv6) what address it was sent to.
    pub udp: UdpSocket,
    /// Connections; `local_addr()` of an accepted socket is the server that was asked.
    pub tcp: TcpListener,
    /// Answers to datagrams, from the address that was asked.
    pub replies: Replies,
}

/// Opens the listeners in `netns`.
pub(super) fn open(netns: &Netns, dns_wanted: bool) -> io::Result<Listeners> {
    netns.enter(|| {
        let dns =
            || Ok::<_, io::Error>(DnsListeners { udp: datagrams()?, tcp: listener()?, replies: Replies::open()? });
        Ok(Listeners {
            outbound: listener()?,
            hbone: listener()?,
            plaintext: listener()?,
            dns: if dns_wanted { Some(dns()?) } else { None },
        })
    })?
}

/// A listener for both families.
fn listener() -> io::Result<TcpListener> {
    let socket = bound(Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A socket for datagrams of both families, which tells where each was sent to.
fn datagrams() -> io::Result<UdpSocket> {
    let socket = bound(Type::DGRAM, Protocol::UDP)?;
    if socket.domain()? == Domain::IPV6 {
        set_int(&socket, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
    } else {
        set_int(&socket, libc::SOL_IP, libc::IP_PKTINFO, 1)?;
    }
    Ok(socket.into())
}

/// A socket for both families; for IPv4 alone where the kernel has no IPv6.
fn bound(kind: Type, protocol: Protocol) -> io::Result<Socket> {
    match Socket::new(Domain::IPV6, kind.nonblocking(), Some(protocol)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            // Without it the SYN-ACK, whose source is not the pod's address, is dropped.
            socket.set_ip_transparent_v4(true)?;
            set_int(&socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)?;
            // Mapped: bound to a true IPv6 address, the kernel would make the socket IPv6-only.
            socket.bind(&SockAddr::from(SocketAddr::from((NOWHERE.to_ipv6_mapped(), 0))))?;
            Ok(socket)
        }
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let socket = Socket::new(Domain::IPV4, kind.nonblocking(), Some(protocol))?;
            socket.set_ip_transparent_v4(true)?;
            socket.bind(&SockAddr::from(SocketAddr::from((NOWHERE, 0))))?;
            Ok(socket)
        }
        Err(error) => Err(error),
    }
}
