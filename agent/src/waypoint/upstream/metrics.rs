//! The metrics of clusters, by the names that Envoy gives them: those of circuit breakers and of outlier detection.

use std::fmt;
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::Inner;
use super::cluster::Cluster;

/// Reads the counts of every cluster at each scrape.
pub(super) struct ClusterCollector(pub(super) Weak<Inner>);

impl fmt::Debug for ClusterCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterCollector").finish_non_exhaustive()
    }
}

struct Metric {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: fn(&Cluster) -> u64,
}

#[derive(Clone, Copy)]
enum Kind {
    Gauge,
    /// A counter whose name ends in `_total`, which is added.
    Total,
    /// A counter whose name does not: Envoy's mostly do not, and everybody's dashboards ask for them so.
    Count,
}

impl Collector for ClusterCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(inner) = self.0.upgrade() else { return Ok(()) };
        let clusters = inner.registry.clusters();
        for Metric { name, help, kind, read } in METRICS {
            let metric_type = match kind {
                Kind::Gauge => MetricType::Gauge,
                Kind::Total => MetricType::Counter,
                Kind::Count => MetricType::Unknown,
            };
            let mut metric = encoder.encode_descriptor(name, help, None, metric_type)?;
            for cluster in &clusters {
                let labels = [("cluster_name", cluster.name())];
                let (encoder, value) = (metric.encode_family(&labels)?, read(cluster));
                match kind {
                    Kind::Total => ConstCounter::new(value).encode(encoder)?,
                    Kind::Gauge | Kind::Count => {
                        ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn of(total: &AtomicU64) -> u64 {
    total.load(Ordering::Relaxed)
}

/// What outlier detection says, or 0 where there is none.
fn watched(cluster: &Cluster, read: impl Fn(&super::outliers::Watch) -> u64) -> u64 {
    cluster.state.watch.load().as_deref().map_or(0, read)
}

const METRICS: [Metric; 18] = [
    Metric {
        name: "envoy_cluster_membership_total",
        help: "Endpoints",
        kind: Kind::Gauge,
        read: |cluster| cluster.endpoints.len() as u64,
    },
    Metric {
        name: "envoy_cluster_membership_healthy",
        help: "Endpoints that outlier detection does not leave out",
        kind: Kind::Gauge,
        read: |cluster| {
            let ejected = watched(cluster, |watch| watch.ejected() as u64);
            (cluster.endpoints.len() as u64).saturating_sub(ejected)
        },
    },
    Metric {
        name: "envoy_cluster_upstream_cx_active",
        help: "Connections open or being made",
        kind: Kind::Gauge,
        read: |cluster| cluster.state.counts.usage().connections.into(),
    },
    Metric {
        name: "envoy_cluster_upstream_rq_active",
        help: "Requests under way",
        kind: Kind::Gauge,
        read: |cluster| cluster.state.counts.usage().requests.into(),
    },
    Metric {
        name: "envoy_cluster_upstream_rq_pending_active",
        help: "Requests that wait for a connection",
        kind: Kind::Gauge,
        read: |cluster| cluster.state.counts.usage().pending.into(),
    },
    Metric {
        name: "envoy_cluster_upstream_cx",
        help: "Connections made or tried",
        kind: Kind::Total,
        read: |cluster| of(&cluster.state.counts.totals.connections),
    },
    Metric {
        name: "envoy_cluster_upstream_cx_connect_fail",
        help: "Connections that could not be made",
        kind: Kind::Count,
        read: |cluster| of(&cluster.state.counts.totals.connect_failures),
    },
    Metric {
        name: "envoy_cluster_upstream_cx_connect_timeout",
        help: "Connections that were not made within connectTimeout",
        kind: Kind::Count,
        read: |cluster| of(&cluster.state.counts.totals.connect_timeouts),
    },
    Metric {
        name: "envoy_cluster_upstream_cx_overflow",
        help: "Connections that maxConnections kept from being made",
        kind: Kind::Count,
        read: |cluster| of(&cluster.state.counts.totals.connection_overflows),
    },
    Metric {
        name: "envoy_cluster_upstream_rq",
        help: "Requests that found a connection",
        kind: Kind::Total,
        read: |cluster| of(&cluster.state.counts.totals.requests),
    },
    Metric {
        name: "envoy_cluster_upstream_rq_pending_overflow",
        help: "Requests refused by http1MaxPendingRequests or http2MaxRequests",
        kind: Kind::Count,
        read: |cluster| {
            let totals = &cluster.state.counts.totals;
            of(&totals.pending_overflows) + of(&totals.request_overflows)
        },
    },
    Metric {
        name: "envoy_cluster_upstream_rq_retry",
        help: "Retries",
        kind: Kind::Count,
        read: |cluster| of(&cluster.state.counts.totals.retries),
    },
    Metric {
        name: "envoy_cluster_upstream_rq_retry_overflow",
        help: "Retries refused by maxRetries or the retry budget",
        kind: Kind::Count,
        read: |cluster| of(&cluster.state.counts.totals.retry_overflows),
    },
    Metric {
        name: "envoy_cluster_outlier_detection_ejections_active",
        help: "Endpoints left out now",
        kind: Kind::Gauge,
        read: |cluster| watched(cluster, |watch| watch.ejected() as u64),
    },
    Metric {
        name: "envoy_cluster_outlier_detection_ejections_enforced",
        help: "Ejections",
        kind: Kind::Total,
        read: |cluster| {
            let all = |watch: &super::outliers::Watch| {
                let ejections = &watch.ejections;
                of(&ejections.errors) + of(&ejections.gateway_errors) + of(&ejections.local_failures)
            };
            watched(cluster, all)
        },
    },
    Metric {
        name: "envoy_cluster_outlier_detection_ejections_enforced_consecutive_5xx",
        help: "Ejections by consecutive5xxErrors",
        kind: Kind::Count,
        read: |cluster| watched(cluster, |watch| of(&watch.ejections.errors)),
    },
    Metric {
        name: "envoy_cluster_outlier_detection_ejections_enforced_consecutive_gateway_failure",
        help: "Ejections by consecutiveGatewayErrors",
        kind: Kind::Count,
        read: |cluster| watched(cluster, |watch| of(&watch.ejections.gateway_errors)),
    },
    Metric {
        name: "envoy_cluster_outlier_detection_ejections_enforced_consecutive_local_origin_failure",
        help: "Ejections by consecutiveLocalOriginFailures",
        kind: Kind::Count,
        read: |cluster| watched(cluster, |watch| of(&watch.ejections.local_failures)),
    },
];
