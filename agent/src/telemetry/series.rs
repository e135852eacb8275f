//! The counters behind Istio's L4 metrics.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use smallvec::SmallVec;

use super::connection::{ConnectionInfo, Direction, ResponseFlags};
use super::labels::{self, Labels, WithFlags};

/// How many label sets are kept. A pair of workloads makes one on each side; each costs about 400 bytes here, and
/// about 3 kB of every scrape.
const MAX_SERIES: usize = 20_000;

/// The counters of one label set.
#[derive(Debug)]
pub(super) struct Series {
    labels: Labels,
    open: AtomicU64,
    opened: AtomicU64,
    closed: [AtomicU64; ResponseFlags::ALL.len()],
    /// Bytes of the response direction: see the parent's remarks on the direction of bytes.
    pub(super) sent: AtomicU64,
    /// Bytes of the request direction.
    pub(super) received: AtomicU64,
}

impl Series {
    fn new(labels: Labels) -> Arc<Self> {
        Arc::new(Self {
            labels,
            open: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            closed: Default::default(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        })
    }

    pub(super) fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, flags: ResponseFlags) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(counter) = self.closed.get(flags as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Every label set seen so far. Finding one again allocates nothing.
#[derive(Debug)]
pub(super) struct SeriesTable {
    hasher: RandomState,
    by_hash: RwLock<Table>,
    folded: AtomicU64,
    limit: usize,
}

#[derive(Debug, Default)]
struct Table {
    series: HashMap<u64, SmallVec<[Arc<Series>; 1]>>,
    count: usize,
}

impl SeriesTable {
    pub(super) fn new() -> Arc<Self> {
        Self::bounded(MAX_SERIES)
    }

    pub(super) fn bounded(limit: usize) -> Arc<Self> {
        Arc::new(Self { hasher: RandomState::new(), by_hash: RwLock::default(), folded: AtomicU64::new(0), limit })
    }

    /// The series of the connection that `info` describes.
    pub(super) fn series(&self, info: &ConnectionInfo) -> Arc<Series> {
        let hash = labels::hash(&self.hasher, info);
        if let Some(found) = self.by_hash.read().unwrap_or_else(PoisonError::into_inner).find(hash, info) {
            return found;
        }
        let mut table = self.by_hash.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = table.find(hash, info) {
            return found;
        }
        if table.count >= self.limit {
            table.forget_idle();
        }
        if table.count >= self.limit {
            self.folded.fetch_add(1, Ordering::Relaxed);
            return table.overflow(info.direction);
        }
        let series = Series::new(Labels::of(info));
        table.insert(hash, series.clone());
        series
    }
}

impl Table {
    fn find(&self, hash: u64, info: &ConnectionInfo) -> Option<Arc<Series>> {
        self.series.get(&hash)?.iter().find(|series| series.labels.matches(info)).cloned()
    }

    fn insert(&mut self, hash: u64, series: Arc<Series>) {
        self.series.entry(hash).or_default().push(series);
        self.count += 1;
    }

    /// Makes room by forgetting label sets without an open connection. Their counters begin at zero again should
    /// they come back, which Prometheus takes for a restart and accounts for.
    fn forget_idle(&mut self) {
        self.series.retain(|_, bucket| {
            bucket.retain(|series| series.open.load(Ordering::Relaxed) > 0 || Arc::strong_count(series) > 1);
            !bucket.is_empty()
        });
        self.count = self.series.values().map(|bucket| bucket.len()).sum();
    }

    fn overflow(&mut self, direction: Direction) -> Arc<Series> {
        // Two hash values that a real label set meets with a probability of 2^-63; equality would tell it apart.
        let bucket = self.series.entry(direction as u64).or_default();
        if bucket.is_empty() {
            bucket.push(Series::new(Labels::overflow(direction)));
        }
        bucket.first().cloned().unwrap_or_else(|| Series::new(Labels::overflow(direction)))
    }
}

/// Reads one counter of a series.
type Read = fn(&Series, ResponseFlags) -> u64;

/// The families, by name without prefix and suffix. Only `opened` and the bytes are there from the first connection
/// on; a count of endings of one kind appears with the first of that kind.
const FAMILIES: [(&str, &str, Read); 5] = [
    ("istio_tcp_connections_opened", "The total number of TCP connections opened", |series, flags| {
        if flags == ResponseFlags::None { load(&series.opened) } else { 0 }
    }),
    ("istio_tcp_connections_closed", "The total number of TCP connections closed", |series, flags| {
        series.closed.get(flags as usize).map_or(0, load)
    }),
    (
        "istio_tcp_connections_failed",
        "The total number of TCP connections that were refused or could not be made",
        |series, flags| match flags {
            ResponseFlags::None => 0,
            flags => series.closed.get(flags as usize).map_or(0, load),
        },
    ),
    ("istio_tcp_received_bytes", "The total number of bytes from clients to servers", |series, flags| {
        if flags == ResponseFlags::None { load(&series.received) } else { 0 }
    }),
    ("istio_tcp_sent_bytes", "The total number of bytes from servers to clients", |series, flags| {
        if flags == ResponseFlags::None { load(&series.sent) } else { 0 }
    }),
];

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Encodes a [`SeriesTable`] whenever it is scraped.
#[derive(Debug)]
pub(super) struct SeriesCollector(pub(super) Arc<SeriesTable>);

impl Collector for SeriesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Taken once: connections are not kept waiting while the text is made.
        let all: Vec<Arc<Series>> = {
            let table = self.0.by_hash.read().unwrap_or_else(PoisonError::into_inner);
            table.series.values().flatten().cloned().collect()
        };
        for (name, help, read) in FAMILIES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for series in &all {
                for flags in ResponseFlags::ALL {
                    let value = read(series, flags);
                    if value > 0 {
                        let labels = WithFlags(&series.labels, flags);
                        ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
                    }
                }
            }
        }
        let folded = encoder.encode_descriptor(
            "culvert_metrics_series_folded",
            "Connections counted under unknown labels because there are too many label sets",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(load(&self.0.folded)).encode(folded)
    }
}
