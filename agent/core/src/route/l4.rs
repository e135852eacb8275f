//! A rule for connections: TLS that is passed through, and everything that is no request.

use std::net::IpAddr;

use culvert_api::ObjectRef;
use ipnet::IpNet;

use super::http::Backend;
use super::matcher::SourceMatch;
use super::request::Origin;

/// A rule for connections.
#[derive(Clone, Debug, PartialEq)]
pub struct L4Rule {
    /// The object that has it.
    pub resource: ObjectRef,
    /// Its position there.
    pub rule: usize,
    /// Any of these; none for every connection.
    pub matches: Vec<L4Match>,
    /// Where a connection goes, by weight; none has the weight zero.
    pub backends: Vec<(Backend, u32)>,
}

/// What a connection has to look like: every field that is there has to hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct L4Match {
    /// The server name that the client asks for is one of these; `None` for connections without TLS.
    pub sni: Option<Vec<HostPattern>>,
    /// It was made to one of these; empty for anything.
    pub subnets: Vec<IpNet>,
    /// It comes from here.
    pub source_subnet: Option<IpNet>,
    /// The port of the service.
    pub port: Option<u16>,
    /// The client.
    pub source: SourceMatch,
}

/// A host name, or all below one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// Every name.
    Any,
    /// Names that end with this, which starts with a dot.
    Below(Box<str>),
    /// This name, in lower case.
    Exact(Box<str>),
}

impl L4Match {
    /// Whether a connection is such.
    pub fn matches(&self, origin: &Origin<'_>) -> bool {
        let named = match (&self.sni, origin.sni) {
            (None, _) => true,
            (Some(hosts), Some(sni)) => hosts.iter().any(|host| host.matches(sni)),
            (Some(_), None) => false,
        };
        let within = |networks: &[IpNet], ip: IpAddr| networks.iter().any(|network| network.contains(&ip));
        named
            && (self.subnets.is_empty() || within(&self.subnets, origin.destination))
            && self.source_subnet.as_ref().is_none_or(|network| network.contains(&origin.client_address.ip()))
            && self.port.is_none_or(|port| port == origin.port)
            && self.source.matches(origin.client)
    }
}

impl L4Rule {
    /// Whether it takes a connection.
    pub fn takes(&self, origin: &Origin<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|matched| matched.matches(origin))
    }
}

impl HostPattern {
    /// Reads `*`, `*.example.com` or `example.com`; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let name = |name: &str| {
            let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            let label = |label: &str| !label.is_empty() && label.bytes().all(known);
            name.len() <= 253 && name.split('.').all(label)
        };
        match lower.strip_prefix('*') {
            Some("") => Some(Self::Any),
            Some(rest) => rest.strip_prefix('.').filter(|rest| name(rest)).map(|_| Self::Below(rest.into())),
            None if lower.parse::<IpAddr>().is_ok() || name(&lower) => Some(Self::Exact(lower.into())),
            None => None,
        }
    }

    /// Whether `host` is such.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Below(end) => host.len() > end.len() && ends_with(host, end),
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
        }
    }

    /// Whether every name that `other` is for is such.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (this, Self::Exact(name)) => this.matches(name),
            (Self::Below(end), Self::Below(other)) => ends_with(other, end),
            (Self::Exact(_), Self::Below(_)) => false,
        }
    }

    /// How narrow it is: an exact name before any pattern, a longer pattern before a shorter.
    pub fn specificity(&self) -> (bool, usize) {
        match self {
            Self::Any => (false, 0),
            Self::Below(end) => (false, end.len()),
            Self::Exact(name) => (true, name.len()),
        }
    }
}

fn ends_with(host: &str, end: &str) -> bool {
    let start = host.len().checked_sub(end.len());
    start.is_some_and(|start| host.as_bytes()[start..].eq_ignore_ascii_case(end.as_bytes()))
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(end) => write!(f, "*{end}"),
            Self::Exact(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_pattern_is_for_the_names_below_it() {
        let pattern = |text: &str| HostPattern::parse(text).unwrap();
        for (host, name, matches) in [
            ("*", "anything", true),
            ("*.a.example", "b.a.example", true),
            ("*.a.example", "c.b.a.example", true),
            ("*.a.example", "a.example", false),
            ("*.a.example", ".a.example", false),
            ("A.example", "a.EXAMPLE", true),
            ("a.example", "b.example", false),
        ] {
            assert_eq!(pattern(host).matches(name), matches, "{host} {name}");
        }
        assert!(pattern("*.example").covers(&pattern("*.a.example")) && pattern("*").covers(&pattern("*.b")));
        assert!(!pattern("*.a.example").covers(&pattern("*.example")) && !pattern("a").covers(&pattern("*")));
        assert!(pattern("a.b").specificity() > pattern("*.long.name").specificity());
        for bad in ["", "a..b", "*a.b", "a.*.b", "a b", "**"] {
            assert_eq!(HostPattern::parse(bad), None, "{bad}");
        }
        assert_eq!(pattern("10.0.0.1").to_string(), "10.0.0.1");
    }
}
