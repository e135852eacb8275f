//! Addresses that look alike and must not be mixed up, and the ports that the data plane owns.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// The port on which every HBONE workload accepts tunnels, on the pod's own address (Istio's `15008`).
pub const HBONE_PORT: u16 = 15008;

/// Unmaps an IPv4-mapped IPv6 address, so that one host is always one value.
///
/// A dual-stack listener reports IPv4 peers as `::ffff:a.b.c.d`; maps and policies hold plain IPv4.
pub fn canonical_ip(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// [`canonical_ip`] for a socket address.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

macro_rules! socket_address_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(SocketAddr);

        impl $name {
            /// Wraps `addr` with an IPv4-mapped address unmapped.
            pub fn new(addr: SocketAddr) -> Self {
                Self(canonical(addr))
            }

            /// The address and port.
            pub fn addr(self) -> SocketAddr {
                self.0
            }

            /// The address alone.
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }

            /// The port alone.
            pub fn port(self) -> u16 {
                self.0.port()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

socket_address_newtype!(
    /// Where a connection really comes from: the application's socket, not a proxy's.
    ClientAddr
);
socket_address_newtype!(
    /// What the application dialled, before any decision was taken.
    OriginalDst
);
socket_address_newtype!(
    /// What the proxy dials after the decision.
    UpstreamAddr
);

/// The kernel's name for a network namespace (`SO_NETNS_COOKIE`, Linux 5.14): unique until reboot, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsCookie(pub u64);

impl fmt::Display for NetnsCookie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_equals_its_ipv4_address() {
        let mapped = ClientAddr::new("[::ffff:10.0.0.1]:80".parse().unwrap());
        assert_eq!(mapped, ClientAddr::new("10.0.0.1:80".parse().unwrap()));
    }
}
