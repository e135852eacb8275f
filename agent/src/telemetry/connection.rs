//! The record of one application connection.
//!
//! # The direction of bytes
//!
//! A proxy counts *request* bytes (from the client to the server) and *response* bytes (back), which mean the same on
//! both sides of a tunnel. Only this module turns them into sent and received:
//!
//! - **Metrics**: `istio_tcp_sent_bytes_total` counts response bytes and `istio_tcp_received_bytes_total` request
//!   bytes, whoever reports. For the source that is the reverse of what the words say; Istio has been so from the
//!   beginning (istio/istio#32399) and every dashboard counts on it.
//! - **Access log**: `bytes_sent` is what the workload on this side of the proxy sent, `bytes_recv` what it received:
//!   an outbound connection sends its request bytes, an inbound one its response bytes (ztunnel un-flips its log too).

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use culvert_core::identity::Identity;
use culvert_core::service::Service;
use culvert_core::workload::Workload;

use super::access_log::AccessLog;
use super::series::Series;

/// Which way a connection crosses this proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From a pod of this node: `reporter="source"`.
    Outbound,
    /// To a pod of this node: `reporter="destination"`.
    Inbound,
    /// Through a waypoint: `reporter="waypoint"`.
    Waypoint,
}

impl Direction {
    /// As the access log says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Waypoint => "waypoint",
        }
    }

    /// As the metric label `reporter` says it.
    pub fn reporter(self) -> &'static str {
        match self {
            Self::Outbound => "source",
            Self::Inbound => "destination",
            Self::Waypoint => "waypoint",
        }
    }
}

/// How a connection was protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecurityPolicy {
    /// By mutual TLS.
    MutualTls,
    /// Not by the mesh.
    Unknown,
}

impl SecurityPolicy {
    /// As the metric label `connection_security_policy` says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Unknown => "unknown",
        }
    }
}

/// How a connection ended, as the metric label `response_flags` says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResponseFlags {
    /// Nothing special: `-`.
    #[default]
    None,
    /// Policy refused it.
    Denied,
    /// The upstream could not be reached.
    ConnectFailure,
    /// TLS with the peer failed.
    TlsFailure,
    /// HTTP/2 with the peer failed.
    Http2HandshakeFailure,
    /// It looks as though a NetworkPolicy dropped it.
    NetworkPolicy,
    /// The peer is not who was expected, or we have no certificate.
    IdentityError,
    /// The peer's certificate is revoked.
    CertificateRevoked,
}

impl ResponseFlags {
    /// Every value, in the order of their discriminants.
    pub(super) const ALL: [Self; 8] = [
        Self::None,
        Self::Denied,
        Self::ConnectFailure,
        Self::TlsFailure,
        Self::Http2HandshakeFailure,
        Self::NetworkPolicy,
        Self::IdentityError,
        Self::CertificateRevoked,
    ];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Denied => "DENY",
            Self::ConnectFailure => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::Http2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertificateRevoked => "CERT_REVOKED",
        }
    }
}

/// What a tunnel was asked to lead to: its `:authority`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HboneTarget {
    /// An address.
    Addr(SocketAddr),
    /// A host name and port.
    Host(Arc<str>, u16),
}

impl fmt::Display for HboneTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Who talks to whom on one connection.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Which way it crosses this proxy.
    pub direction: Direction,
    /// The client's address.
    pub source_addr: SocketAddr,
    /// The client, where it is known to the mesh.
    pub source: Option<Arc<Workload>>,
    /// The client's identity, as proven by its certificate (inbound) or used for it (outbound); `None` in plaintext.
    pub source_identity: Option<Arc<Identity>>,
    /// The address that was connected to: the peer proxy's for an outbound tunnel, the pod's own otherwise.
    pub destination_addr: SocketAddr,
    /// The `:authority` of the tunnel, if there is one.
    pub hbone_target: Option<HboneTarget>,
    /// The server, where it is known to the mesh.
    pub destination: Option<Arc<Workload>>,
    /// The server's identity; `None` in plaintext.
    pub destination_identity: Option<Arc<Identity>>,
    /// The service that was asked for, if it was one.
    pub service: Option<Arc<Service>>,
    /// How the connection is protected.
    pub security: SecurityPolicy,
}

/// How a connection ended.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The label `response_flags`; anything but [`ResponseFlags::None`] also counts as a failed connection.
    pub flags: ResponseFlags,
    /// Why, in one line; makes the access log's line an error.
    pub error: Option<Cow<'static, str>>,
}

impl Outcome {
    /// Both sides were done.
    pub fn complete() -> Self {
        Self::default()
    }

    /// It went wrong, and was not prevented by anything that has a flag of its own.
    pub fn error(error: impl Into<Cow<'static, str>>) -> Self {
        Self { flags: ResponseFlags::None, error: Some(error.into()) }
    }

    /// It was refused or could not be made.
    pub fn failed(flags: ResponseFlags, error: impl Into<Cow<'static, str>>) -> Self {
        Self { flags, error: Some(error.into()) }
    }
}

/// One application connection while it lives. One allocation; dropping it without [`close`](Self::close) counts as
/// closed by the proxy's own end.
#[derive(Debug)]
pub struct ConnectionRecord(Option<Box<Open>>);

/// What a record holds, and what is handed to the access log when it is closed.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) info: ConnectionInfo,
    pub(super) series: Arc<Series>,
    pub(super) log: AccessLog,
    pub(super) opened: Instant,
    pub(super) request_bytes: AtomicU64,
    pub(super) response_bytes: AtomicU64,
    pub(super) outcome: Outcome,
    pub(super) duration: Duration,
}

impl ConnectionRecord {
    pub(super) fn open(info: ConnectionInfo, series: Arc<Series>, log: AccessLog) -> Self {
        series.opened();
        log.opened(&info);
        Self(Some(Box::new(Open {
            info,
            series,
            log,
            opened: Instant::now(),
            request_bytes: AtomicU64::new(0),
            response_bytes: AtomicU64::new(0),
            outcome: Outcome::default(),
            duration: Duration::ZERO,
        })))
    }

    /// Counts `n` bytes on their way from the client to the server. They show in the metrics at once.
    pub fn add_request_bytes(&self, n: u64) {
        if let Some(open) = &self.0 {
            open.request_bytes.fetch_add(n, Ordering::Relaxed);
            open.series.received.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Counts `n` bytes on their way from the server to the client. They show in the metrics at once.
    pub fn add_response_bytes(&self, n: u64) {
        if let Some(open) = &self.0 {
            open.response_bytes.fetch_add(n, Ordering::Relaxed);
            open.series.sent.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Who talks to whom.
    pub fn info(&self) -> Option<&ConnectionInfo> {
        self.0.as_ref().map(|open| &open.info)
    }

    /// Request and response bytes so far.
    pub fn bytes(&self) -> (u64, u64) {
        self.0.as_ref().map_or((0, 0), |open| {
            (open.request_bytes.load(Ordering::Relaxed), open.response_bytes.load(Ordering::Relaxed))
        })
    }

    /// How long it has been open.
    pub fn age(&self) -> Duration {
        self.0.as_ref().map_or(Duration::ZERO, |open| open.opened.elapsed())
    }

    /// Counts the connection as closed and has its line written to the access log.
    pub fn close(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        let Some(mut open) = self.0.take() else { return };
        open.series.closed(outcome.flags);
        open.duration = open.opened.elapsed();
        open.outcome = outcome;
        let log = open.log.clone();
        log.closed(open);
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        self.finish(Outcome::error("connection closed from drain"));
    }
}

impl Open {
    /// What the workload on this side of the proxy sent and received, as the access log tells it.
    pub(super) fn sent_and_received(&self) -> (u64, u64) {
        let request = self.request_bytes.load(Ordering::Relaxed);
        let response = self.response_bytes.load(Ordering::Relaxed);
        match self.info.direction {
            Direction::Outbound => (request, response),
            // A waypoint's log tells what it sent to the client and received from it, as Envoy's does.
            Direction::Inbound | Direction::Waypoint => (response, request),
        }
    }
}
