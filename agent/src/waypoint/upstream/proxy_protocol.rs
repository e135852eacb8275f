//! The header of the PROXY protocol: who the client is, before the first byte that it sent
//! (haproxy's `doc/proxy-protocol.txt`).

use std::net::{IpAddr, SocketAddr};

use smallvec::SmallVec;

/// What each header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and a connection that is carried for someone.
const PROXY: u8 = 0x21;
/// TCP over IPv4, and over IPv6.
const STREAM: [u8; 2] = [0x11, 0x21];

/// The header of `version`, 1 or else 2, for a connection from `client` to `destination`.
pub(super) fn header(version: u8, client: SocketAddr, destination: SocketAddr) -> SmallVec<[u8; 64]> {
    let (client, destination) = same_family(client, destination);
    match version {
        1 => text(client, destination),
        _ => binary(client, destination),
    }
}

/// Both in the family of one: in that of IPv6 if either is of it.
fn same_family(client: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (client, destination) = (canonical(client), canonical(destination));
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    match client.is_ipv4() == destination.is_ipv4() {
        true => (client, destination),
        false => (mapped(client), mapped(destination)),
    }
}

fn text(client: SocketAddr, destination: SocketAddr) -> SmallVec<[u8; 64]> {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), destination.ip());
    let line = format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), destination.port());
    SmallVec::from_slice(line.as_bytes())
}

fn binary(client: SocketAddr, destination: SocketAddr) -> SmallVec<[u8; 64]> {
    let mut header = SmallVec::from_slice(&SIGNATURE);
    let is_v6 = client.is_ipv6();
    let addresses = if is_v6 { 2 * 16 } else { 2 * 4 };
    header.extend([PROXY, STREAM[usize::from(is_v6)], 0, addresses + 4]);
    for address in [client, destination] {
        match address.ip() {
            IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
        }
    }
    for address in [client, destination] {
        header.extend(address.port().to_be_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: u8, client: &str, destination: &str) -> SmallVec<[u8; 64]> {
        header(version, client.parse().unwrap(), destination.parse().unwrap())
    }

    #[test]
    fn version_1_is_a_line_of_text() {
        assert_eq!(&of(1, "10.0.0.1:4000", "10.0.0.2:80")[..], b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 80\r\n");
        assert_eq!(&of(1, "[fd00::1]:4000", "[fd00::2]:80")[..], b"PROXY TCP6 fd00::1 fd00::2 4000 80\r\n");
        let mixed = of(1, "[::ffff:10.0.0.1]:4000", "[fd00::2]:80");
        assert_eq!(&mixed[..], b"PROXY TCP6 ::ffff:10.0.0.1 fd00::2 4000 80\r\n");
    }

    #[test]
    fn version_2_is_the_signature_and_the_addresses_in_network_order() {
        let v4 = of(2, "10.0.0.1:4000", "10.0.0.2:80");
        assert_eq!(v4[..12], SIGNATURE);
        assert_eq!(v4[12..], [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0x0f, 0xa0, 0, 80]);
        let v6 = of(2, "[fd00::1]:4000", "[fd00::2]:80");
        assert_eq!((v6.len(), &v6[12..16], &v6[48..]), (52, &[0x21, 0x21, 0, 36][..], &[0x0f, 0xa0, 0, 80][..]));
    }
}
