//! `:authority`: where a tunnel leads.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// The longest authority there can be: a DNS name of 253 bytes, a colon and a port.
pub const MAX_LEN: usize = 253 + 1 + 5;

/// The destination of a CONNECT: an address to a workload or waypoint, a host name to an east-west gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `ip:port`, IPv6 in brackets. IPv4-mapped IPv6 is held as IPv4.
    Ip(SocketAddr),
    /// `host:port`, the name in lower case.
    Host(Arc<str>, u16),
}

/// Why a string is not an authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// Longer than [`MAX_LEN`].
    #[error("the authority has {0} bytes, more than any host and port need")]
    TooLong(usize),
    /// No port, port 0, or no plain decimal port.
    #[error("the authority {0:?} has no valid port")]
    Port(String),
    /// The host is neither an address nor a DNS name.
    #[error("the host of authority {0:?} is neither an IP address (IPv6 in brackets) nor a DNS name")]
    Host(String),
}

impl Authority {
    /// The port.
    pub fn port(&self) -> u16 {
        match self {
            Self::Ip(addr) => addr.port(),
            Self::Host(_, port) => *port,
        }
    }

    /// The address, unless it is a host name.
    pub fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::Host(..) => None,
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(addr: SocketAddr) -> Self {
        // A scope id is only meaningful on the node that wrote it.
        Self::Ip(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => SocketAddr::new(addr.ip(), addr.port()).fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(s: &str) -> Result<Self, AuthorityError> {
        if s.len() > MAX_LEN {
            return Err(AuthorityError::TooLong(s.len()));
        }
        let (host, port) = s.rsplit_once(':').ok_or_else(|| AuthorityError::Port(s.to_owned()))?;
        let port = parse_port(port).ok_or_else(|| AuthorityError::Port(s.to_owned()))?;
        let not_a_host = || AuthorityError::Host(s.to_owned());
        if let Some(v6) = host.strip_prefix('[') {
            let ip: Ipv6Addr = v6.strip_suffix(']').and_then(|v6| v6.parse().ok()).ok_or_else(not_a_host)?;
            return Ok(SocketAddr::new(IpAddr::V6(ip), port).into());
        }
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(SocketAddr::new(IpAddr::V4(ip), port).into());
        }
        if !is_dns_name(host) {
            return Err(not_a_host());
        }
        Ok(Self::Host(host.to_ascii_lowercase().into(), port))
    }
}

/// A port of plain digits, without a sign or leading zeros, which some other parser might read differently.
fn parse_port(s: &str) -> Option<u16> {
    let plain = !s.starts_with('0') && s.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| s.parse().ok()).flatten()
}

/// Labels of letters, digits, `-` and `_`. A numeric last label is refused: such a name is an IPv4 address to
/// some resolvers and not to others (`127.1`, `0x7f000001`).
pub(super) fn is_dns_name(host: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    let numeric = |l: &str| {
        l.bytes().all(|b| b.is_ascii_digit())
            || l.strip_prefix("0x")
                .or(l.strip_prefix("0X"))
                .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    host.len() <= 253 && host.split('.').all(label) && !host.rsplit('.').next().is_some_and(numeric)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_and_names_are_told_apart() {
        for (text, want) in [
            ("10.0.0.1:80", Authority::Ip("10.0.0.1:80".parse().unwrap())),
            ("[fd00::1]:8080", Authority::Ip("[fd00::1]:8080".parse().unwrap())),
            ("cart.shop.svc.cluster.local:443", Authority::Host("cart.shop.svc.cluster.local".into(), 443)),
            ("Cart.Shop:1", Authority::Host("cart.shop".into(), 1)),
        ] {
            assert_eq!(text.parse::<Authority>(), Ok(want), "{text}");
        }
    }

    #[test]
    fn a_mapped_address_is_an_ipv4_address() {
        assert_eq!("[::ffff:10.0.0.1]:80".parse::<Authority>().unwrap().to_string(), "10.0.0.1:80");
    }

    #[test]
    fn what_another_parser_might_read_differently_is_refused() {
        for bad in [
            "",
            ":80",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:080",
            "10.0.0.1:+80",
            "10.0.0.1:65536",
            "10.0.0.1:80 ",
            " 10.0.0.1:80",
            "010.0.0.1:80",
            "127.1:80",
            "2130706433:80",
            "0x7f000001:80",
            "1.0x7f:80",
            "fd00::1:80",
            "[fd00::1]80",
            "[fd00::1",
            "[fd00::1%eth0]:80",
            "[10.0.0.1]:80",
            "user@10.0.0.1:80",
            "http://10.0.0.1:80",
            "10.0.0.1:80/path",
            "a..b:80",
            "-a:80",
            "a-:80",
            "a.:80",
            "h\u{e9}:80",
        ] {
            assert!(bad.parse::<Authority>().is_err(), "{bad:?}");
        }
        assert_eq!("a".repeat(300).parse::<Authority>(), Err(AuthorityError::TooLong(300)));
    }

    proptest! {
        #[test]
        fn an_address_survives_printing_and_parsing(ip: IpAddr, port in 1u16..) {
            let authority = Authority::from(SocketAddr::new(ip, port));
            prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
        }

        #[test]
        fn a_name_survives_printing_and_parsing(host in "[a-z]([a-z0-9_-]{0,20}[a-z0-9])?(\\.[a-z][a-z0-9]{0,10}){0,5}", port in 1u16..) {
            let authority = Authority::Host(host.into(), port);
            prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
        }

        #[test]
        fn whatever_parses_prints_to_the_same_value(text in "\\PC{0,40}|[0-9a-fx:.\\[\\]]{0,30}") {
            if let Ok(authority) = text.parse::<Authority>() {
                prop_assert_eq!(authority.to_string().parse::<Authority>(), Ok(authority));
            }
        }
    }
}
