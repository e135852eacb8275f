//! The metrics of the process.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::access_log::AccessLog;
use super::connection::{ConnectionInfo, ConnectionRecord, Direction};
use super::peer_lines::PeerLine;
use super::requests::{RequestCollector, RequestTable};
use super::samples::{Kind, Sample, SampleCollector};
use super::series::{SeriesCollector, SeriesTable};
use crate::dns;

/// The metrics and the access log. Cloning is cheap; all clones are one.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    registry: Mutex<Registry>,
    series: Arc<SeriesTable>,
    requests: Arc<RequestTable>,
    log: AccessLog,
    sockets: [Gauge; 2],
    /// Of a waypoint: nodes have no such series.
    waypoint_sockets: LazySockets,
    proxies: ProxyCounts,
    dns: dns::metrics::Metrics,
}

/// The pods that this agent serves, as ztunnel counts them (`workload_manager_…`).
#[derive(Clone, Debug, Default)]
pub struct ProxyCounts {
    /// Pods that are served now.
    pub active: Gauge,
    /// Pods that are to be served, but are not yet.
    pub pending: Gauge,
    /// Pods that have come to be served.
    pub started: Counter,
    /// Pods that are no longer served.
    pub stopped: Counter,
}

/// Counts a socket as open until dropped.
#[derive(Debug)]
pub struct SocketGuard(Gauge);

impl Drop for SocketGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The sockets of a waypoint, a series that is there once it is used.
struct LazySockets(Family<SocketLabels, Gauge>, OnceLock<Gauge>);

impl LazySockets {
    fn gauge(&self) -> &Gauge {
        let labels = SocketLabels { reporter: Direction::Waypoint.reporter() };
        self.1.get_or_init(|| self.0.get_or_create_owned(&labels))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SocketLabels {
    reporter: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    component: &'static str,
    tag: &'static str,
}

impl Telemetry {
    /// Metrics at zero, and connections logged to `log`.
    pub fn new(log: AccessLog) -> Self {
        let mut registry = Registry::default();
        let series = SeriesTable::new();
        registry.register_collector(Box::new(SeriesCollector(series.clone())));
        let requests = RequestTable::new();
        registry.register_collector(Box::new(RequestCollector(requests.clone())));

        registry.register_collector(Box::new(Dropped(log.clone())));
        registry.register_collector(Box::new(SampleCollector {
            name: "culvert_peer_events",
            help: "What peers did that is worth a line of the log, whether it was written or left out",
            kind: Kind::Counter,
            read: PeerLine::samples,
        }));

        let sockets = Family::<SocketLabels, Gauge>::default();
        let by_direction = [Direction::Outbound, Direction::Inbound]
            .map(|direction| sockets.get_or_create_owned(&SocketLabels { reporter: direction.reporter() }));
        let waypoint_sockets = LazySockets(sockets.clone(), OnceLock::new());
        registry.register("istio_tcp_sockets_open", "The number of application sockets open now", sockets);

        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create_owned(&BuildLabels { component: "culvert", tag: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("istio_build", "The version of this agent", build);

        let proxies = ProxyCounts::default();
        registry.register("workload_manager_active_proxy_count", "Pods served now", proxies.active.clone());
        registry.register("workload_manager_pending_proxy_count", "Pods yet to be served", proxies.pending.clone());
        registry.register("workload_manager_proxies_started", "Pods that came to be served", proxies.started.clone());
        registry.register("workload_manager_proxies_stopped", "Pods no longer served", proxies.stopped.clone());
        let dns = dns::metrics::Metrics::new(&mut registry);
        Self(Arc::new(Inner {
            registry: Mutex::new(registry),
            series,
            requests,
            log,
            sockets: by_direction,
            waypoint_sockets,
            proxies,
            dns,
        }))
    }

    /// Counts a connection as opened. The record counts its bytes and its end.
    pub fn connection(&self, info: ConnectionInfo) -> ConnectionRecord {
        let series = self.0.series.series(&info);
        ConnectionRecord::open(info, series, self.0.log.clone())
    }

    /// Counts requests.
    pub fn requests(&self) -> &Arc<RequestTable> {
        &self.0.requests
    }

    /// Logs a connection that was refused before anything was known about it.
    pub fn early_failure(
        &self,
        direction: Direction,
        source: SocketAddr,
        destination: SocketAddr,
        error: impl fmt::Display,
    ) {
        self.0.log.failed(direction, source, destination, error.to_string());
    }

    /// Counts an application socket as open until the guard is dropped.
    pub fn socket(&self, direction: Direction) -> SocketGuard {
        let [outbound, inbound] = &self.0.sockets;
        let gauge = match direction {
            Direction::Outbound => outbound,
            Direction::Inbound => inbound,
            Direction::Waypoint => self.0.waypoint_sockets.gauge(),
        };
        gauge.inc();
        SocketGuard(gauge.clone())
    }

    /// The counts of pods served, for whoever starts and stops serving them.
    pub fn proxies(&self) -> &ProxyCounts {
        &self.0.proxies
    }

    /// The counters of DNS.
    pub fn dns(&self) -> &dns::metrics::Metrics {
        &self.0.dns
    }

    /// The access log.
    pub fn access_log(&self) -> &AccessLog {
        &self.0.log
    }

    /// Adds `collector`, which is asked at every scrape. It bounds its own labels.
    pub fn register_collector(&self, collector: Box<dyn Collector>) {
        self.registry(|registry| registry.register_collector(collector));
    }

    /// Adds a metric whose samples `read` returns at every scrape. It bounds their number itself.
    pub fn register_samples(
        &self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) {
        self.register_collector(Box::new(SampleCollector { name, help, kind, read }));
    }

    /// Adds metrics of another module; names are given in full, except for the suffix `_total`.
    pub fn registry<R>(&self, add: impl FnOnce(&mut Registry) -> R) -> R {
        add(&mut self.0.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// When a collector fails.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        self.registry(|registry| prometheus_client::encoding::text::encode(&mut text, registry))?;
        Ok(text)
    }
}

/// Encodes how many lines the access log lost.
#[derive(Debug)]
struct Dropped(AccessLog);

impl Collector for Dropped {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let name = "culvert_access_log_dropped_lines";
        let help = "Lines of the access log that were lost because they came too fast";
        ConstCounter::new(self.0.dropped()).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)
    }
}
