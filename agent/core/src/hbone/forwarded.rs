//! `forwarded` (RFC 7239): the client's address and the service it asked for, as HBONE peers tell each other.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use super::authority::is_dns_name;

/// The longest value read.
pub const MAX_LEN: usize = 1024;

/// How many parameters are looked at.
const MAX_PARAMETERS: usize = 16;

/// `for="ip:port"`, and `host=` when the client asked for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// `for`: the client's address. IPv4-mapped IPv6 is held as IPv4.
    pub client: SocketAddr,
    /// `host`: the service's host name, in lower case.
    pub host: Option<Box<str>>,
}

/// Why a value is not what HBONE peers send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardedError {
    /// Longer than [`MAX_LEN`].
    #[error("forwarded has {0} bytes, more than {MAX_LEN}")]
    TooLong(usize),
    /// Not a list of `name=value`, a parameter that comes twice, or more than 16 of them.
    #[error("forwarded is malformed")]
    Malformed,
    /// No `for`, or one that is not `ip:port`.
    #[error("forwarded has no for=\"ip:port\"")]
    NoClient,
    /// `host` is not a DNS name.
    #[error("forwarded's host is not a DNS name")]
    Host,
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", SocketAddr::new(self.client.ip().to_canonical(), self.client.port()))?;
        match &self.host {
            Some(host) => write!(f, ";host={host}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Forwarded {
    type Err = ForwardedError;

    /// Reads the first element of a list: the client's own, as later hops append theirs. Other parameters are skipped.
    fn from_str(s: &str) -> Result<Self, ForwardedError> {
        if s.len() > MAX_LEN {
            return Err(ForwardedError::TooLong(s.len()));
        }
        let (mut client, mut host) = (None, None);
        let mut rest = s;
        for _ in 0..MAX_PARAMETERS {
            let (name, value, after) = parameter(rest).ok_or(ForwardedError::Malformed)?;
            let place = match name {
                _ if name.eq_ignore_ascii_case("for") => Some(&mut client),
                _ if name.eq_ignore_ascii_case("host") => Some(&mut host),
                _ => None,
            };
            if place.is_some_and(|place| place.replace(value).is_some()) {
                return Err(ForwardedError::Malformed);
            }
            match after.chars().next() {
                Some(';') => rest = &after[1..],
                Some(',') | None => return Self::from_parameters(client, host),
                Some(_) => return Err(ForwardedError::Malformed),
            }
        }
        Err(ForwardedError::Malformed)
    }
}

impl Forwarded {
    fn from_parameters(client: Option<&str>, host: Option<&str>) -> Result<Self, ForwardedError> {
        let host = match host {
            // A host parameter may carry a port; only the name is of use.
            Some(host) => {
                let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
                let is_name = is_dns_name(name) || name.parse::<Ipv4Addr>().is_ok();
                Some(is_name.then(|| name.to_ascii_lowercase().into()).ok_or(ForwardedError::Host)?)
            }
            None => None,
        };
        let client = client.and_then(address).ok_or(ForwardedError::NoClient)?;
        Ok(Self { client, host })
    }
}

fn address(s: &str) -> Option<SocketAddr> {
    // A scope id is only meaningful on the node that wrote it.
    let addr: SocketAddr = match s.starts_with('[') {
        true => s.parse::<SocketAddrV6>().ok().filter(|a| !s.contains('%') && a.scope_id() == 0)?.into(),
        false => s.parse().ok()?,
    };
    Some(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
}

/// One `name=value` from the start of `s`: name, value without its quotes, and what follows.
fn parameter(s: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = s.trim_start_matches([' ', '\t']).split_once('=')?;
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
        return None;
    }
    let (value, after) = match rest.strip_prefix('"') {
        // No value of use has a quote or backslash in it, so escapes are not read.
        Some(quoted) => quoted.split_once('"').filter(|(v, _)| !v.contains('\\'))?,
        None => rest.split_at(rest.find([';', ',', ' ', '\t', '"']).unwrap_or(rest.len())),
    };
    Some((name, value, after.trim_start_matches([' ', '\t'])))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_written_as_ztunnel_writes_it() {
        let plain = Forwarded { client: "10.0.0.1:4000".parse().unwrap(), host: None };
        assert_eq!(plain.to_string(), r#"for="10.0.0.1:4000""#);
        let with_host = Forwarded { client: "[fd00::1]:4000".parse().unwrap(), host: Some("cart.shop".into()) };
        assert_eq!(with_host.to_string(), r#"for="[fd00::1]:4000";host=cart.shop"#);
    }

    #[test]
    fn only_the_first_element_and_the_known_parameters_count() {
        let text = r#"proto=http; For="10.0.0.1:4000" ;HOST=Cart.Shop:80, for="10.0.0.2:1""#;
        let want = Forwarded { client: "10.0.0.1:4000".parse().unwrap(), host: Some("cart.shop".into()) };
        assert_eq!(text.parse(), Ok(want));
    }

    #[test]
    fn malformed_values_are_refused() {
        for bad in [
            "",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden",
            "for=\"10.0.0.1\"",
            "for=\"10.0.0.1:80",
            "for=\"10.0.0.1:80\"x",
            "for=\"10.0.0.1:80\";",
            "for=\"10.0.0.1:80\";for=\"10.0.0.2:80\"",
            "for=\"10.0.0.1:99999\"",
            "for=\"[fe80::1%1]:80\"",
            "for=\"fd00::1:80\"",
            "host=a",
            "for=\"10.0.0.1:80\";host=a/b",
            "f r=1",
        ] {
            assert!(bad.parse::<Forwarded>().is_err(), "{bad}");
        }
        assert_eq!("x".repeat(1025).parse::<Forwarded>(), Err(ForwardedError::TooLong(1025)));
        assert_eq!(
            format!("for=\"10.0.0.1:80\"{}", ";a=b".repeat(16)).parse::<Forwarded>(),
            Err(ForwardedError::Malformed)
        );
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back(ip: IpAddr, port: u16, host in prop::option::of("[a-z]{1,9}(\\.[a-z]{1,9}){0,4}")) {
            let client = SocketAddr::new(ip.to_canonical(), port);
            let forwarded = Forwarded { client, host: host.map(Into::into) };
            prop_assert_eq!(forwarded.to_string().parse::<Forwarded>(), Ok(forwarded));
        }

        #[test]
        fn no_text_makes_it_panic(text in "((for|host|x)=?\"?[ -~]{0,20}\"?[;,]?){0,4}|\\PC{0,40}") {
            if let Ok(forwarded) = text.parse::<Forwarded>() {
                prop_assert_eq!(forwarded.to_string().parse::<Forwarded>(), Ok(forwarded));
            }
        }
    }
}
