//! The decisions of the programs, as functions on values.

mod outward;

pub use outward::{Outward, outward};

use crate::{Counter, DNS_PORT, HBONE_PORT, Ip, Role, STEERING_MARK};

/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;
/// `SOCK_STREAM`.
pub const SOCK_STREAM: u32 = 1;
/// `SOCK_DGRAM`.
pub const SOCK_DGRAM: u32 = 2;
/// `SOCK_RAW`.
pub const SOCK_RAW: u32 = 3;

const IPPROTO_IP: u32 = 0;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_DCCP: u32 = 33;
const IPPROTO_IPV6: u32 = 41;
const IPPROTO_SCTP: u32 = 132;
const IPPROTO_UDPLITE: u32 = 136;
const IPPROTO_RAW: u32 = 255;
const IPPROTO_MPTCP: u32 = 262;

const SOL_SOCKET: u32 = 1;
const SO_BINDTODEVICE: u32 = 25;
const SO_MARK: u32 = 36;
const SO_BINDTOIFINDEX: u32 = 62;
const IP_HDRINCL: u32 = 3;
const IPV6_HDRINCL: u32 = 36;

const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;

/// Whether `ip` leads back to the pod by itself: `127.0.0.0/8`, `::1`, and the unspecified addresses, which connect
/// takes for them.
#[inline(always)]
pub fn is_loopback(ip: &Ip) -> bool {
    matches!(
        *ip,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, ..]
            | [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0]
            | [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 | 1]
    )
}

/// Whether `ip` is an IPv4 address.
#[inline(always)]
pub const fn is_mapped(ip: &Ip) -> bool {
    matches!(*ip, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..])
}

/// What to do with a `connect()` of an enrolled pod's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Nothing.
    Pass,
    /// Leave it alone, and count it; take the mark away that an earlier connect of the same socket left.
    Bypass(Counter),
    /// Take the mark away that an earlier connect of the same socket left.
    Unmark,
    /// Fail it with EPERM.
    Forbid(Counter),
    /// Have it refused, as by a port that nobody listens on; with `unbind`, first free the socket from its device.
    Refuse {
        /// Free it from its device.
        unbind: bool,
        /// Why.
        counter: Counter,
    },
    /// Set the mark; with `unbind`, first free the socket from its device, which would have its packets routed past
    /// the rule for the mark.
    Steer {
        /// Free it from its device.
        unbind: bool,
    },
}

/// Decides a stream socket's `connect()` in an enrolled pod, which is not the agent's.
///
/// `outward` is asked for what is neither in the pod nor on its link. `is_served`: the agent listens for what the pod
/// dials. It is asked here, because `sk_lookup` cannot refuse what is led to `lo`: the kernel has no route for a reset
/// from an IPv4 address that is not the pod's (`ip_route_output` checks the source), and the caller would wait.
#[inline(always)]
pub fn connect(
    destination: &Ip,
    mark: u32,
    bound_device: u32,
    is_served: impl FnOnce() -> bool,
    is_own: impl FnOnce() -> bool,
    outward: impl FnOnce() -> Outward,
) -> Connect {
    if is_loopback(destination) {
        return if mark == STEERING_MARK { Connect::Unmark } else { Connect::Pass };
    }
    // The kernel binds the socket to the device of the scope after this, and the route for the mark is passed by.
    if is_link_local(destination) {
        return Connect::Forbid(Counter::LinkLocal);
    }
    let unbind = bound_device != 0;
    if is_own() {
        return Connect::Steer { unbind };
    }
    match outward() {
        Outward::Bypass(counter) => Connect::Bypass(counter),
        Outward::Refuse(counter) => Connect::Refuse { unbind, counter },
        Outward::Capture if is_served() => Connect::Steer { unbind },
        Outward::Capture => Connect::Refuse { unbind, counter: Counter::OutboundNoListener },
    }
}

/// Decides a datagram of an enrolled pod that captures DNS, which is not the agent's: `Err` refuses it. It is not
/// steered here but by its port; only the kernel has nothing to refuse it with once it is led to `lo`.
///
/// # Errors
///
/// Why it is refused: the name would be resolved as if there were no mesh.
#[inline(always)]
pub fn dns_datagram(
    destination: &Ip,
    port: u16,
    bound_device: u32,
    is_served: impl FnOnce() -> bool,
    is_own: impl FnOnce() -> bool,
) -> Result<Option<Counter>, Counter> {
    if port != DNS_PORT || is_loopback(destination) || is_own() {
        return Ok(None);
    }
    if bound_device != 0 || is_link_local(destination) {
        return Ok(Some(Counter::DnsBoundDevice));
    }
    if is_served() { Ok(None) } else { Err(Counter::DnsNoListener) }
}

/// Whether `ip` is in `fe80::/10`.
#[inline(always)]
fn is_link_local(ip: &Ip) -> bool {
    ip[0] == 0xfe && ip[1] & 0xc0 == 0x80
}

/// Decides whether an enrolled pod may make a socket.
///
/// # Errors
///
/// Why not: the connect hooks would not see what it sends.
#[inline(always)]
pub fn socket(family: u32, socket_type: u32, protocol: u32) -> Result<Option<Counter>, Counter> {
    if family != AF_INET && family != AF_INET6 {
        return Ok(None);
    }
    match (socket_type, protocol) {
        (SOCK_STREAM, IPPROTO_TCP | IPPROTO_IP) => Ok(None),
        (SOCK_STREAM, IPPROTO_MPTCP) => Err(Counter::Mptcp),
        (SOCK_DGRAM, IPPROTO_UDP | IPPROTO_UDPLITE) => Ok(Some(Counter::Udp)),
        (SOCK_DGRAM, _) => Ok(None),
        // A raw socket sends the low byte of its protocol: 262, MPTCP's number, comes out as 6, TCP's.
        (SOCK_RAW, _) => match protocol & 0xff {
            IPPROTO_IP | IPPROTO_TCP | IPPROTO_DCCP | IPPROTO_SCTP | IPPROTO_RAW => Err(Counter::Raw),
            _ => Ok(None),
        },
        _ => Err(Counter::StreamProtocol),
    }
}

/// Decides whether an enrolled pod may set an option of a socket in the TCP state `state`.
///
/// The mark and the device of a TCP socket are the connect hook's to decide. While the socket is not connected they may
/// be set: the hook puts them right. Afterwards they would have what follows routed past the agent, in clear.
///
/// # Errors
///
/// Why not.
#[inline(always)]
pub fn option(family: u32, socket_type: u32, state: u32, level: u32, name: u32) -> Result<(), Counter> {
    if family != AF_INET && family != AF_INET6 {
        return Ok(());
    }
    match (socket_type, level, name) {
        (SOCK_STREAM, SOL_SOCKET, SO_MARK | SO_BINDTODEVICE | SO_BINDTOIFINDEX)
            if !matches!(state, TCP_CLOSE | TCP_LISTEN) =>
        {
            Err(Counter::Steered)
        }
        // With a header of its own, a socket that was made for ICMP sends any protocol.
        (SOCK_RAW, IPPROTO_IP, IP_HDRINCL) | (SOCK_RAW, IPPROTO_IPV6 | IPPROTO_RAW, IPV6_HDRINCL) => {
            Err(Counter::RawHeader)
        }
        _ => Ok(()),
    }
}

/// What to do with a connection that arrives in an enrolled pod's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Let the kernel find the listener: the application's.
    Pass(Option<Counter>),
    /// Hand it to the agent's listener of this role.
    Assign(Role),
    /// Refuse it.
    Drop(Counter),
}

/// Decides where a TCP connection to `local` goes.
///
/// `via_loopback`: it comes by `lo`, so it was marked in this namespace, or goes to a loopback address. `is_own` and
/// `is_probe` are asked only where it matters.
#[inline(always)]
pub fn lookup(
    via_loopback: bool,
    local: &Ip,
    local_port: u16,
    captures_dns: bool,
    bypass_inbound: bool,
    is_own: impl FnOnce() -> bool,
    is_probe: impl FnOnce() -> bool,
) -> Lookup {
    if via_loopback {
        // To the pod's own address: the agent's leg to the application, or the pod calling itself.
        return if is_loopback(local) || is_own() {
            Lookup::Pass(None)
        } else if captures_dns && local_port == DNS_PORT {
            Lookup::Assign(Role::DnsTcp)
        } else {
            Lookup::Assign(Role::Outbound)
        };
    }
    if bypass_inbound {
        return Lookup::Pass(Some(Counter::BypassInbound));
    }
    if !is_own() {
        // The leg to the application would be captured as outbound, and again, for ever.
        return Lookup::Drop(Counter::UnknownAddress);
    }
    if local_port == HBONE_PORT {
        return Lookup::Assign(Role::Hbone);
    }
    if is_probe() { Lookup::Pass(Some(Counter::Probe)) } else { Lookup::Assign(Role::Plaintext) }
}

/// Decides where a datagram to `local` goes: DNS that the pod sends to the agent, all else as ever.
#[inline(always)]
pub fn lookup_datagram(
    via_loopback: bool,
    local: &Ip,
    local_port: u16,
    captures_dns: bool,
    is_own: impl FnOnce() -> bool,
) -> Lookup {
    // To the pod's own address: an answer, or the pod asking itself.
    if !captures_dns || !via_loopback || local_port != DNS_PORT || is_loopback(local) || is_own() {
        return Lookup::Pass(None);
    }
    Lookup::Assign(Role::DnsUdp)
}

/// What is counted when the listener of `role` is there.
#[inline(always)]
pub const fn captured(role: Role) -> Counter {
    match role {
        Role::Outbound => Counter::Outbound,
        Role::Hbone => Counter::Hbone,
        Role::Plaintext => Counter::Plaintext,
        Role::DnsTcp => Counter::DnsTcp,
        Role::DnsUdp => Counter::DnsUdp,
    }
}

/// What is counted when it is not.
#[inline(always)]
pub const fn no_listener(role: Role) -> Counter {
    match role {
        Role::Outbound => Counter::OutboundNoListener,
        Role::Hbone => Counter::HboneNoListener,
        Role::Plaintext => Counter::PlaintextNoListener,
        Role::DnsTcp | Role::DnsUdp => Counter::DnsNoListener,
    }
}

#[cfg(test)]
mod tests;
