//! Answers to datagrams that were steered to the agent.
//!
//! An answer must come from the address and port that was asked. A socket bound to that port would be in the way of an
//! application that binds it, so answers are written whole, with their IP and UDP headers, to raw sockets in the pod's
//! network namespace. They reach the application over `lo`.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const UDP: u8 = 17;
const UDP_HEADER: usize = 8;
const HOPS: u8 = 64;

/// Sends datagrams from any address, in one network namespace.
#[derive(Debug)]
pub struct Replies {
    v4: Socket,
    /// Absent where the kernel has no IPv6.
    v6: Option<Socket>,
}

impl Replies {
    /// In the calling thread's network namespace, where it stays.
    pub(super) fn open() -> io::Result<Self> {
        // IPPROTO_RAW: headers are the caller's, and nothing is received.
        let raw = |domain| Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(libc::IPPROTO_RAW)));
        let v6 = match raw(Domain::IPV6) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            socket => Some(socket?),
        };
        Ok(Self { v4: raw(Domain::IPV4)?, v6 })
    }

    /// Sends `payload` to `to`, as from `from`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidInput`] when the two are of different families or the payload does not fit a datagram;
    /// otherwise the kernel's.
    pub fn send(&self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        match (from, to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                let packet = packet_v4(from, to, payload).ok_or_else(invalid)?;
                self.v4.send_to(&packet, &SockAddr::from(SocketAddrV4::new(*to.ip(), 0)))?;
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                let packet = packet_v6(from, to, payload).ok_or_else(invalid)?;
                let socket = self.v6.as_ref().ok_or_else(invalid)?;
                socket.send_to(&packet, &SockAddr::from(SocketAddrV6::new(*to.ip(), 0, 0, 0)))?;
            }
            _ => return Err(invalid()),
        }
        Ok(())
    }
}

/// RFC 791; the kernel fills in the header's checksum, and a UDP checksum of 0 is none (RFC 768): it never leaves `lo`.
fn packet_v4(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Option<Vec<u8>> {
    let udp = udp(from.port(), to.port(), payload)?;
    let length = u16::try_from(20 + udp.len()).ok()?;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    // No identification, and it must not be fragmented.
    packet.extend([0, 0, 0x40, 0, HOPS, UDP, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(udp);
    Some(packet)
}

/// RFC 8200, where the UDP checksum is obligatory.
fn packet_v6(from: SocketAddrV6, to: SocketAddrV6, payload: &[u8]) -> Option<Vec<u8>> {
    let mut udp = udp(from.port(), to.port(), payload)?;
    let length = u16::try_from(udp.len()).ok()?;
    let sum = checksum_v6(*from.ip(), *to.ip(), &udp);
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([UDP, HOPS]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(udp);
    Some(packet)
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let mut datagram = Vec::with_capacity(length.into());
    for word in [from, to, length, 0] {
        datagram.extend(word.to_be_bytes());
    }
    datagram.extend(payload);
    Some(datagram)
}

/// The checksum of a datagram whose own checksum is 0, over the pseudo-header of RFC 8200 8.1.
fn checksum_v6(from: Ipv6Addr, to: Ipv6Addr, udp: &[u8]) -> u16 {
    let mut sum = u64::from(UDP) + udp.len() as u64;
    let words = |bytes: &[u8]| -> u64 {
        bytes.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
    };
    sum += words(&from.octets()) + words(&to.octets()) + words(udp);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // 0 would say that there is none.
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;

    fn v6(text: &str) -> SocketAddrV6 {
        text.parse().unwrap()
    }

    #[test]
    fn the_checksum_of_a_whole_ipv6_datagram_adds_up() {
        for payload in [&b""[..], b"x", b"odd", b"even", &[0xff; 1001]] {
            let (from, to) = (v6("[2001:db8::53]:53"), v6("[fd00::1]:40000"));
            let packet = packet_v6(from, to, payload).unwrap();
            let datagram = &packet[40..];
            let mut sum: u64 = 17 + datagram.len() as u64;
            for bytes in [&packet[8..40], datagram] {
                sum += bytes
                    .chunks(2)
                    .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
                    .sum::<u64>();
            }
            while sum > 0xffff {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            assert_eq!(sum, 0xffff, "{} bytes", payload.len());
        }
    }

    #[test]
    fn headers_say_who_answers_whom_and_how_much() {
        let packet = packet_v4(SocketAddrV4::new(LOCAL, 53), "10.0.0.1:4000".parse().unwrap(), b"abc").unwrap();
        assert_eq!(packet[..4], [0x45, 0, 0, 31]);
        assert_eq!(packet[9], 17);
        assert_eq!(packet[12..20], [127, 0, 0, 1, 10, 0, 0, 1]);
        assert_eq!(packet[20..], [0, 53, 0x0f, 0xa0, 0, 11, 0, 0, b'a', b'b', b'c']);
    }

    #[test]
    fn what_does_not_fit_a_datagram_is_refused_rather_than_cut() {
        let (from, to) = (SocketAddrV4::new(LOCAL, 53), SocketAddrV4::new(LOCAL, 4000));
        assert!(packet_v4(from, to, &vec![0; 65_507]).is_some());
        assert!(packet_v4(from, to, &vec![0; 65_508]).is_none());
    }
}
