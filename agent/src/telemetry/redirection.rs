//! The counters of the eBPF programs as metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;

use crate::redirect::Counter;

/// `culvert_redirection_total{event,reason}`: what the programs captured, passed, refused or gave up on, read from
/// their maps at each scrape.
pub struct RedirectCounters<F>(F);

impl<F: Fn() -> Vec<Counter>> RedirectCounters<F> {
    /// Reads by `read`.
    pub fn new(read: F) -> Self {
        Self(read)
    }
}

impl<F> fmt::Debug for RedirectCounters<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedirectCounters")
    }
}

impl<F: Fn() -> Vec<Counter> + Send + Sync + 'static> Collector for RedirectCounters<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "culvert_redirection",
            "What the eBPF programs captured, passed, refused or gave up on",
            None,
            prometheus_client::metrics::MetricType::Counter,
        )?;
        for counter in (self.0)() {
            let labels = [("event", counter.name), ("reason", counter.reason)];
            ConstCounter::new(counter.value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
