//! What is counted, by ztunnel's names.

use std::time::Duration;

use hickory_proto::rr::RecordType;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Protocol {
    /// In a datagram.
    Udp,
    /// On a connection.
    Tcp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    request_query_type: &'static str,
    request_protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabels {
    request_protocol: Protocol,
}

/// The counters of DNS. Clones are one.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    malformed: Family<ProtocolLabels, Counter>,
    upstream: Family<ProtocolLabels, Counter>,
    failures: Family<ProtocolLabels, Counter>,
    duration: Histogram,
    /// Names of services that were resolved because a connection needed their addresses.
    pub on_demand: Counter,
}

/// From what a server beside the pod takes to what nobody waits for any more.
const SECONDS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

impl Metrics {
    /// Counters at zero, in `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            malformed: Family::default(),
            upstream: Family::default(),
            failures: Family::default(),
            duration: Histogram::new(SECONDS),
            on_demand: Counter::default(),
        };
        let Self { requests, malformed, upstream, failures, duration, on_demand } = metrics.clone();
        registry.register("istio_dns_requests", "Questions of pods to DNS", requests);
        registry.register("culvert_dns_malformed_requests", "What came to DNS and could not be read", malformed);
        registry.register("istio_dns_upstream_requests", "Questions passed to the server that was asked", upstream);
        registry.register("istio_dns_upstream_failures", "Questions that no server has answered", failures);
        let help = "How long the server that was asked took, in seconds";
        registry.register("istio_dns_upstream_request_duration_seconds", help, duration);
        registry.register(
            "istio_on_demand_dns",
            "Names resolved because a connection needed their addresses",
            on_demand,
        );
        metrics
    }

    pub(super) fn request(&self, request_protocol: Protocol, kind: Option<RecordType>) {
        self.requests.get_or_create(&RequestLabels { request_query_type: name(kind), request_protocol }).inc();
    }

    pub(super) fn malformed(&self, request_protocol: Protocol) {
        self.malformed.get_or_create(&ProtocolLabels { request_protocol }).inc();
    }

    pub(super) fn upstream_request(&self, request_protocol: Protocol) {
        self.upstream.get_or_create(&ProtocolLabels { request_protocol }).inc();
    }

    pub(super) fn failure(&self, request_protocol: Protocol) {
        self.failures.get_or_create(&ProtocolLabels { request_protocol }).inc();
    }

    pub(super) fn upstream_duration(&self, took: Duration) {
        self.duration.observe(took.as_secs_f64());
    }
}

/// A few types have a series of their own: there are 65 536, and pods choose.
fn name(kind: Option<RecordType>) -> &'static str {
    match kind {
        Some(RecordType::A) => "A",
        Some(RecordType::AAAA) => "AAAA",
        Some(RecordType::CNAME) => "CNAME",
        Some(RecordType::HTTPS) => "HTTPS",
        Some(RecordType::MX) => "MX",
        Some(RecordType::NS) => "NS",
        Some(RecordType::PTR) => "PTR",
        Some(RecordType::SOA) => "SOA",
        Some(RecordType::SRV) => "SRV",
        Some(RecordType::TXT) => "TXT",
        _ => "other",
    }
}
