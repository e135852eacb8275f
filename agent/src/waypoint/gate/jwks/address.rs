//! The addresses that no key set is fetched from.
//!
//! Whoever may write a RequestAuthentication chooses a URL that the waypoint asks for: it must not lead where only the
//! waypoint's own machine, or the cloud it runs in, was meant to be asked. What counts is the address that is dialled,
//! whatever name led to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why nothing is fetched from `ip`; `None` where it is.
pub(super) fn refused(ip: IpAddr) -> Option<&'static str> {
    match ip.to_canonical() {
        IpAddr::V4(v4) => refused_v4(v4),
        IpAddr::V6(v6) => refused_v6(v6),
    }
}

fn refused_v4(ip: Ipv4Addr) -> Option<&'static str> {
    if ip.is_loopback() {
        Some("a loopback address")
    } else if ip.is_link_local() {
        Some("a link-local address")
    } else if ip.octets()[0] == 0 {
        // On Linux, 0.0.0.0 is this machine.
        Some("an address of this host")
    } else if ip.is_multicast() || ip.is_broadcast() {
        Some("not the address of a server")
    } else {
        None
    }
}

fn refused_v6(ip: Ipv6Addr) -> Option<&'static str> {
    /// The metadata server of EC2, which has a unique local address.
    const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    if ip.is_loopback() {
        Some("a loopback address")
    } else if ip.is_unicast_link_local() {
        Some("a link-local address")
    } else if ip.is_unspecified() {
        Some("an address of this host")
    } else if ip.is_multicast() {
        Some("not the address of a server")
    } else if ip == METADATA {
        Some("a metadata server")
    } else {
        // A gateway makes the last four bytes an address of IPv4 (RFC 6052).
        let within = ip.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0];
        let [.., a, b, c, d] = ip.octets();
        within.then(|| refused_v4(Ipv4Addr::new(a, b, c, d))).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_servers_elsewhere_are_asked() {
        for ip in [
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "169.254.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::7f00:1",
        ] {
            assert!(refused(ip.parse().unwrap()).is_some(), "{ip}");
        }
        for ip in ["10.0.0.1", "192.168.1.1", "100.64.0.1", "8.8.8.8", "fd00::1", "2001:db8::1", "64:ff9b::808:808"] {
            assert_eq!(refused(ip.parse().unwrap()), None, "{ip}");
        }
    }
}
