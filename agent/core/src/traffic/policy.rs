//! How a service is spoken to, as a DestinationRule says it.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::ObjectRef;
use http::HeaderName;

use super::outliers::OutlierSettings;
use crate::workload::{Labels, Workload};

/// What the DestinationRules of one namespace say of one host.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// The objects, the oldest first.
    pub resources: Vec<ObjectRef>,
    /// For all of the host.
    pub policy: Layer,
    /// Parts of the host.
    pub subsets: Vec<Subset>,
}

/// A part of a host: its endpoints of these labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Its name.
    pub name: Arc<str>,
    /// The labels.
    pub labels: Labels,
    /// What is different there.
    pub policy: Layer,
}

/// What one level of a DestinationRule says: for every port, and for some.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layer {
    /// For every port.
    pub all: TrafficPolicy,
    /// For some ports, in place of it.
    pub ports: Vec<(u16, TrafficPolicy)>,
}

/// How a service is spoken to; `None` for what is not said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// Which endpoint is taken.
    pub load_balancer: Option<Arc<LoadBalancer>>,
    /// How many connections and requests there may be.
    pub pool: Option<Arc<ConnectionPool>>,
    /// Which endpoints are left out for a while.
    pub outliers: Option<OutlierSettings>,
    /// TLS to it.
    pub tls: Option<Arc<ClientTls>>,
    /// How many retries there may be at a time.
    pub retry_budget: Option<RetryBudget>,
    /// The version of the PROXY protocol that each connection starts with.
    pub proxy_protocol: Option<u8>,
}

impl DestinationRule {
    /// The part of this name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| *subset.name == *name)
    }

    /// How `port` of the host, or of a part of it, is spoken to.
    ///
    /// What a part says replaces, block by block, what is said of the whole; what is said of a port replaces all of
    /// what is said at that level, blocks that it leaves out included.
    pub fn policy_for(&self, subset: Option<&Subset>, port: u16) -> TrafficPolicy {
        let whole = self.policy.over(TrafficPolicy::default(), port);
        match subset {
            Some(subset) => subset.policy.over(whole, port),
            None => whole,
        }
    }
}

impl Subset {
    /// Whether a workload of the service belongs to it.
    pub fn selects(&self, workload: &Workload) -> bool {
        self.labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

impl Layer {
    fn over(&self, under: TrafficPolicy, port: u16) -> TrafficPolicy {
        let all = &self.all;
        let merged = TrafficPolicy {
            load_balancer: all.load_balancer.clone().or(under.load_balancer),
            pool: all.pool.clone().or(under.pool),
            outliers: all.outliers.clone().or(under.outliers),
            tls: all.tls.clone().or(under.tls),
            retry_budget: all.retry_budget.or(under.retry_budget),
            proxy_protocol: all.proxy_protocol.or(under.proxy_protocol),
        };
        match self.ports.iter().find(|(number, _)| *number == port) {
            None => merged,
            // A port has no blocks of these two.
            Some((_, own)) => TrafficPolicy {
                retry_budget: merged.retry_budget,
                proxy_protocol: merged.proxy_protocol,
                ..own.clone()
            },
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Which endpoint is taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadBalancer {
    /// Of those that are equally near.
    pub algorithm: Algorithm,
    /// Which are nearer.
    pub locality: Option<Locality>,
    /// How new ones come to their share.
    pub warmup: Option<Warmup>,
}

/// Which of several endpoints is taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Algorithm {
    /// Of two at random, the one with fewer requests in flight.
    #[default]
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The address that the client dialled, whoever that is.
    Passthrough,
    /// The same for the same key.
    Hash(HashKey, HashTable),
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq)]
pub enum HashKey {
    /// A header.
    Header(HeaderName),
    /// A cookie.
    Cookie(Cookie),
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Parameter(Box<str>),
}

/// A cookie that keeps a client with an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Its name.
    pub name: Box<str>,
    /// Its path; empty for that of the request.
    pub path: Box<str>,
    /// How long it lives, zero for as long as the browser; `None` if clients without one are not given any.
    pub ttl: Option<Duration>,
    /// Its further attributes.
    pub attributes: Vec<(Box<str>, Box<str>)>,
}

/// How hashes are shared out among endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashTable {
    /// On a ring, with so many points for each endpoint: at least as many in all as `minimumRingSize` asks for.
    Ring(usize),
    /// By a table of so many places, a prime (Maglev).
    Maglev(usize),
}

/// Localities, and their shares.
pub type LocalityShares = Vec<(Box<str>, u32)>;

/// Which endpoints are nearer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Locality {
    /// All are alike (`enabled: false`).
    Disabled,
    /// By shares of localities, for clients of a locality; each is `region/zone/subzone`, or `*` from there on.
    Distribute(Vec<(Box<str>, LocalityShares)>),
    /// By region, zone and subzone; beyond the region, these stand in for those.
    Failover(Vec<(Box<str>, Box<str>)>),
    /// By labels in order: one that both have, or that has this value.
    Priority(Vec<(Box<str>, Option<Box<str>>)>),
}

/// How new endpoints come to their share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Warmup {
    /// After how long.
    pub duration: Duration,
    /// What they start with, from 0 to 1.
    pub minimum: f64,
    /// How fast: 1 for evenly, more for faster at first.
    pub aggression: f64,
}

impl Warmup {
    /// The part of its share, above 0 and up to 1, that an endpoint of this age has (Envoy's slow start).
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.duration {
            return 1.0;
        }
        let part = (age.as_secs_f64() / self.duration.as_secs_f64()).max(0.001);
        part.powf(1.0 / self.aggression).clamp(self.minimum.max(0.001), 1.0)
    }
}

/// How many connections and requests there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionPool {
    /// Connections.
    pub max_connections: u32,
    /// How long one may take to be made; `None` for as the mesh has it.
    pub connect_timeout: Option<Duration>,
    /// Probes of idle ones.
    pub keepalive: Option<Keepalive>,
    /// How long one may live.
    pub max_connection_duration: Option<Duration>,
    /// How long one that carries no requests may be idle; `None` for no end.
    pub tcp_idle: Option<Duration>,
    /// Requests that wait for a connection.
    pub max_pending: u32,
    /// Requests under way.
    pub max_requests: u32,
    /// Retries under way.
    pub max_retries: u32,
    /// Requests over one connection; 0 for any number.
    pub max_requests_per_connection: u32,
    /// How long a connection may have no request; `None` for no end.
    pub http_idle: Option<Duration>,
    /// Whether HTTP/1.1 becomes HTTP/2.
    pub upgrade: bool,
    /// Whether the protocol of the client is kept.
    pub use_client_protocol: bool,
    /// Requests at a time over one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// Probes of HTTP/2 connections: how far apart, and how long an answer may take.
    pub h2_keepalive: Option<(Duration, Duration)>,
}

/// Probes of idle TCP connections; `None` for as the system has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keepalive {
    /// How many without an answer.
    pub probes: Option<u32>,
    /// After how long.
    pub time: Option<Duration>,
    /// How far apart.
    pub interval: Option<Duration>,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        const HOUR: Option<Duration> = Some(Duration::from_secs(3600));
        Self {
            max_connections: u32::MAX,
            connect_timeout: None,
            keepalive: None,
            max_connection_duration: None,
            tcp_idle: HOUR,
            max_pending: u32::MAX,
            max_requests: u32::MAX,
            max_retries: u32::MAX,
            max_requests_per_connection: 0,
            http_idle: HOUR,
            upgrade: false,
            use_client_protocol: false,
            max_concurrent_streams: None,
            h2_keepalive: None,
        }
    }
}

/// How many retries there may be at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// In percent of the requests under way.
    pub percent: f64,
    /// And never fewer.
    pub minimum: u32,
}

/// What is under way to a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Connections.
    pub connections: u32,
    /// Requests that wait for a connection.
    pub pending: u32,
    /// Requests.
    pub requests: u32,
    /// Retries.
    pub retries: u32,
}

/// Which limit is reached (Envoy's circuit breakers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overflow {
    /// Of connections.
    #[error("maxConnections is reached")]
    Connections,
    /// Of requests that wait.
    #[error("http1MaxPendingRequests is reached")]
    Pending,
    /// Of requests.
    #[error("http2MaxRequests is reached")]
    Requests,
    /// Of retries.
    #[error("maxRetries, or the retry budget, is used up")]
    Retries,
}

impl ConnectionPool {
    /// Whether one more connection may be made.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub fn admit_connection(&self, usage: &Usage) -> Result<(), Overflow> {
        if usage.connections >= self.max_connections { Err(Overflow::Connections) } else { Ok(()) }
    }

    /// Whether one more request may be made; `waits` if it would have to wait for a connection.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub fn admit_request(&self, usage: &Usage, waits: bool) -> Result<(), Overflow> {
        match usage {
            usage if usage.requests >= self.max_requests => Err(Overflow::Requests),
            usage if waits && usage.pending >= self.max_pending => Err(Overflow::Pending),
            _ => Ok(()),
        }
    }

    /// Whether one more retry may be made: within the budget if there is one, or else within `max_retries`.
    ///
    /// # Errors
    /// When there are as many as there may be.
    pub fn admit_retry(&self, usage: &Usage, budget: Option<&RetryBudget>) -> Result<(), Overflow> {
        let most = match budget {
            Some(budget) => {
                let under_way = f64::from(usage.requests) + f64::from(usage.pending);
                // Casts of floats saturate.
                ((under_way * budget.percent / 100.0) as u32).max(budget.minimum)
            }
            None => self.max_retries,
        };
        if usage.retries >= most { Err(Overflow::Retries) } else { Ok(()) }
    }
}

/// TLS to a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// This side's certificate; `None` if it shows none.
    pub certificate: Option<TlsFiles>,
    /// The Secret of the roots, and of the certificate if there is one; in place of files.
    pub credential_name: Option<Box<str>>,
    /// The file of the roots; `None` for those of the system.
    pub roots: Option<Box<str>>,
    /// The file of revoked certificates.
    pub revoked: Option<Box<str>>,
    /// The names that the server's certificate may have; empty for the server's name.
    pub names: Vec<Box<str>>,
    /// The server's name; `None` for the host that is asked.
    pub sni: Option<Box<str>>,
    /// Whether its certificate is taken as it is.
    pub insecure: bool,
}

/// A certificate in files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate.
    pub certificate: Box<str>,
    /// Its key.
    pub key: Box<str>,
}

impl ClientTls {
    /// The server's name, for a service of this host.
    pub fn server_name<'a>(&'a self, host: &'a str) -> &'a str {
        self.sni.as_deref().unwrap_or(host)
    }

    /// Whether a certificate of this name is the server's; names may be URIs, and those in the list end in `*` at most.
    pub fn accepts(&self, name: &str, host: &str) -> bool {
        if self.insecure {
            return true;
        }
        if self.names.is_empty() {
            return dns_matches(name, self.server_name(host));
        }
        self.names.iter().any(|known| match known.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => **known == *name || dns_matches(name, known),
        })
    }
}

/// Whether a name of a certificate, which may start with `*.`, is for `host` (RFC 6125).
fn dns_matches(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => name.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_reached_one_by_one() {
        let pool = ConnectionPool {
            max_connections: 2,
            max_pending: 1,
            max_requests: 3,
            max_retries: 1,
            ..Default::default()
        };
        let usage = Usage { connections: 1, pending: 0, requests: 2, retries: 0 };
        assert_eq!(pool.admit_connection(&usage), Ok(()));
        assert_eq!(pool.admit_request(&usage, true), Ok(()));
        assert_eq!(pool.admit_retry(&usage, None), Ok(()));
        let full = Usage { connections: 2, pending: 1, requests: 2, retries: 1 };
        assert_eq!(pool.admit_connection(&full), Err(Overflow::Connections));
        assert_eq!(pool.admit_request(&full, true), Err(Overflow::Pending));
        assert_eq!(pool.admit_request(&full, false), Ok(()));
        assert_eq!(pool.admit_request(&Usage { requests: 3, ..usage }, false), Err(Overflow::Requests));
        assert_eq!(pool.admit_retry(&full, None), Err(Overflow::Retries));
    }

    #[test]
    fn a_retry_budget_follows_the_requests_under_way_and_has_a_floor() {
        let pool = ConnectionPool { max_retries: 0, ..Default::default() };
        let budget = RetryBudget { percent: 20.0, minimum: 3 };
        let with = |requests, retries| {
            pool.admit_retry(&Usage { requests, retries, ..Usage::default() }, Some(&budget)).is_ok()
        };
        assert!(with(0, 2) && !with(0, 3) && with(100, 19) && !with(100, 20) && with(u32::MAX, 1_000_000));
    }

    #[test]
    fn a_new_endpoint_comes_to_its_share_in_time() {
        let warmup = Warmup { duration: Duration::from_secs(100), minimum: 0.1, aggression: 1.0 };
        let at = |seconds| (warmup.factor(Duration::from_secs(seconds)) * 100.0).round() as u32;
        assert_eq!([at(0), at(5), at(50), at(99), at(100), at(1000)], [10, 10, 50, 99, 100, 100]);
        let late = Warmup { aggression: 0.5, ..warmup };
        assert!(late.factor(Duration::from_secs(50)) < 0.3);
    }

    #[test]
    fn a_servers_certificate_has_to_name_what_was_asked_for() {
        let tls = ClientTls {
            certificate: None,
            credential_name: None,
            roots: None,
            revoked: None,
            names: Vec::new(),
            sni: None,
            insecure: false,
        };
        assert!(tls.accepts("api.example.com", "api.example.com") && tls.accepts("*.example.com", "api.example.com"));
        assert!(!tls.accepts("evil.com", "api.example.com") && !tls.accepts("*.com", "api.example.com"));
        let by_sni = ClientTls { sni: Some("b.example".into()), ..tls.clone() };
        assert!(
            by_sni.accepts("b.example", "api.example.com") && !by_sni.accepts("api.example.com", "api.example.com")
        );
        let by_name = ClientTls { names: vec!["spiffe://td/ns/a/*".into(), "c.example".into()], ..tls.clone() };
        assert!(by_name.accepts("spiffe://td/ns/a/sa/b", "x") && by_name.accepts("*.example", "x"));
        assert!(!by_name.accepts("x", "x"));
        assert!(ClientTls { insecure: true, ..tls }.accepts("anything", "x"));
    }
}
