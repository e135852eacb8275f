//! Istio's metrics of requests, as a waypoint reports them: `istio_requests_total`, durations, sizes, and the messages
//! of gRPC.

mod histogram;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use culvert_core::identity::Identity;
use culvert_core::service::Service;
use culvert_core::workload::Workload;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use smallvec::SmallVec;

use self::histogram::Histogram;
use super::connection::SecurityPolicy;
use super::flags::Flags;
use super::labels::{Peer, put, put_peers, same, same_workload_labels};

/// The most label sets; what comes beyond is counted under one without names.
const MAX_SERIES: usize = 20_000;

/// Who asked whom for what, and how it ended: what the labels are made of.
#[derive(Clone, Debug)]
pub struct RequestLabels {
    /// The client, where the mesh knows it.
    pub source: Option<Arc<Workload>>,
    /// The client's identity, where it has proven it.
    pub source_identity: Option<Arc<Identity>>,
    /// The endpoint that was chosen, if one was.
    pub destination: Option<Arc<Workload>>,
    /// The service that was asked for, if it was one.
    pub service: Option<Arc<Service>>,
    /// How the client's connection is protected.
    pub security: SecurityPolicy,
    /// Whether it was gRPC.
    pub grpc: bool,
    /// The status; 0 if the client went away before there was one.
    pub code: u16,
    /// The status of gRPC.
    pub grpc_status: Option<u16>,
    /// Why it did not go well.
    pub flags: Flags,
}

/// How much of what a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestSizes {
    /// From its head to the last byte of its answer.
    pub duration: Duration,
    /// Bytes of its body.
    pub request_bytes: u64,
    /// Bytes of its answer's body.
    pub response_bytes: u64,
    /// Messages of gRPC that the client sent.
    pub request_messages: u64,
    /// Messages of gRPC that the client was sent.
    pub response_messages: u64,
}

/// The counters of one label set.
#[derive(Debug)]
pub struct RequestSeries {
    /// `None` for everything that has no label set of its own.
    labels: Option<RequestLabels>,
    total: AtomicU64,
    duration: Histogram,
    request_bytes: Histogram,
    response_bytes: Histogram,
    request_messages: AtomicU64,
    response_messages: AtomicU64,
}

/// Every label set so far. Finding one again allocates nothing.
#[derive(Debug)]
pub struct RequestTable {
    hasher: RandomState,
    by_hash: RwLock<HashMap<u64, SmallVec<[Arc<RequestSeries>; 1]>>>,
    /// What has no label set of its own.
    rest: Arc<RequestSeries>,
    limit: usize,
    count: AtomicU64,
}

impl RequestLabels {
    fn hash(&self, state: &impl BuildHasher) -> u64 {
        let mut hasher = state.build_hasher();
        for workload in [&self.source, &self.destination] {
            match workload {
                Some(w) => (&w.namespace, &w.workload_name, &w.canonical_revision).hash(&mut hasher),
                None => hasher.write_u8(0),
            }
        }
        self.service.as_ref().map(|service| &service.key).hash(&mut hasher);
        (self.code, self.grpc_status, self.flags, self.grpc).hash(&mut hasher);
        hasher.finish()
    }

    fn is_same(&self, other: &Self) -> bool {
        (self.code, self.grpc_status, self.flags, self.grpc, self.security)
            == (other.code, other.grpc_status, other.flags, other.grpc, other.security)
            && same(self.destination.as_ref(), other.destination.as_ref(), same_workload_labels)
            && same(self.source.as_ref(), other.source.as_ref(), same_workload_labels)
            && same(self.source_identity.as_ref(), other.source_identity.as_ref(), Identity::eq)
            && same(self.service.as_ref(), other.service.as_ref(), |a, b| a.key == b.key && a.name == b.name)
    }
}

impl RequestSeries {
    fn new(labels: Option<RequestLabels>) -> Arc<Self> {
        Arc::new(Self {
            labels,
            total: AtomicU64::new(0),
            duration: Histogram::default(),
            request_bytes: Histogram::default(),
            response_bytes: Histogram::default(),
            request_messages: AtomicU64::new(0),
            response_messages: AtomicU64::new(0),
        })
    }

    /// Whether this is the series of `labels`. Quick where it is that of the same workloads.
    pub fn is_of(&self, labels: &RequestLabels) -> bool {
        self.labels.as_ref().is_some_and(|own| own.is_same(labels))
    }

    /// Counts a request.
    pub fn add(&self, sizes: &RequestSizes) {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.duration.add(sizes.duration.as_nanos() as f64 / 1e6);
        self.request_bytes.add(sizes.request_bytes as f64);
        self.response_bytes.add(sizes.response_bytes as f64);
        self.request_messages.fetch_add(sizes.request_messages, Ordering::Relaxed);
        self.response_messages.fetch_add(sizes.response_messages, Ordering::Relaxed);
    }
}

impl RequestTable {
    pub(super) fn new() -> Arc<Self> {
        Self::bounded(MAX_SERIES)
    }

    fn bounded(limit: usize) -> Arc<Self> {
        let by_hash = RwLock::default();
        let rest = RequestSeries::new(None);
        Arc::new(Self { hasher: RandomState::new(), by_hash, rest, limit, count: AtomicU64::new(0) })
    }

    /// The series of `labels`.
    pub fn series(&self, labels: &RequestLabels) -> Arc<RequestSeries> {
        let hash = labels.hash(&self.hasher);
        let find =
            |bucket: &SmallVec<[Arc<RequestSeries>; 1]>| bucket.iter().find(|series| series.is_of(labels)).cloned();
        let table = self.by_hash.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = table.get(&hash).and_then(find) {
            return found;
        }
        drop(table);
        let mut table = self.by_hash.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = table.get(&hash).and_then(find) {
            return found;
        }
        if self.count.load(Ordering::Relaxed) >= self.limit as u64 {
            return self.rest.clone();
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let series = RequestSeries::new(Some(labels.clone()));
        table.entry(hash).or_default().push(series.clone());
        series
    }
}

/// Encodes a [`RequestTable`] whenever it is scraped.
#[derive(Debug)]
pub(super) struct RequestCollector(pub(super) Arc<RequestTable>);

type ReadCounter = fn(&RequestSeries) -> &AtomicU64;
type ReadHistogram = fn(&RequestSeries) -> &Histogram;

const TOTAL: (&str, &str, ReadCounter) = ("istio_requests", "The total number of requests", |s| &s.total);
const MESSAGES: [(&str, &str, ReadCounter); 2] = [
    ("istio_request_messages", "The total number of gRPC messages from clients", |s| &s.request_messages),
    ("istio_response_messages", "The total number of gRPC messages to clients", |s| &s.response_messages),
];
const HISTOGRAMS: [(&str, &str, ReadHistogram); 3] = [
    ("istio_request_duration_milliseconds", "How long requests took", |s| &s.duration),
    ("istio_request_bytes", "The sizes of the bodies of requests", |s| &s.request_bytes),
    ("istio_response_bytes", "The sizes of the bodies of answers", |s| &s.response_bytes),
];

impl Collector for RequestCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut all: Vec<Arc<RequestSeries>> = {
            let table = self.0.by_hash.read().unwrap_or_else(PoisonError::into_inner);
            table.values().flatten().cloned().collect()
        };
        if self.0.rest.total.load(Ordering::Relaxed) > 0 {
            all.push(self.0.rest.clone());
        }
        if all.is_empty() {
            // A node's agent sees no requests: it has no such metrics.
            return Ok(());
        }
        let (name, help, read) = TOTAL;
        counters(&mut encoder, name, help, all.iter(), read)?;
        for (name, help, read) in HISTOGRAMS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for series in &all {
                read(series).encode(family.encode_family(&Written(series))?)?;
            }
        }
        for (name, help, read) in MESSAGES {
            let grpc = |series: &&Arc<RequestSeries>| series.labels.as_ref().is_none_or(|labels| labels.grpc);
            counters(&mut encoder, name, help, all.iter().filter(grpc), read)?;
        }
        Ok(())
    }
}

fn counters<'s>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: impl Iterator<Item = &'s Arc<RequestSeries>>,
    read: ReadCounter,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for series in all {
        let value = read(series).load(Ordering::Relaxed);
        ConstCounter::new(value).encode(family.encode_family(&Written(series))?)?;
    }
    Ok(())
}

/// The labels of a series as they are written.
#[derive(Debug)]
struct Written<'a>(&'a RequestSeries);

impl EncodeLabelSet for Written<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let labels = self.0.labels.as_ref();
        let source = Peer {
            workload: labels.and_then(|labels| labels.source.clone()),
            principal: labels.and_then(|labels| labels.source_identity.clone()),
        };
        let workload = labels.and_then(|labels| labels.destination.clone());
        let destination = Peer { principal: workload.as_ref().map(|workload| workload.identity.clone()), workload };
        let service = labels.and_then(|labels| labels.service.as_deref());
        put_peers(encoder, "waypoint", &source, &destination, service)?;
        let grpc = labels.is_some_and(|labels| labels.grpc);
        put(encoder, "request_protocol", if grpc { "grpc" } else { "http" })?;
        put(encoder, "response_code", &labels.map(|labels| labels.code.to_string()).unwrap_or_default())?;
        // Istio leaves it empty for what is no gRPC, where `unknown` would be a status.
        let status = labels.and_then(|labels| labels.grpc_status).map(|status| status.to_string());
        prometheus_client::encoding::EncodeLabel::encode(
            &("grpc_response_status", status.unwrap_or_default()),
            encoder.encode_label(),
        )?;
        put(encoder, "response_flags", &labels.map(|labels| labels.flags.to_string()).unwrap_or_default())?;
        let security = labels.map_or(SecurityPolicy::Unknown, |labels| labels.security);
        put(encoder, "connection_security_policy", security.as_str())
    }
}
