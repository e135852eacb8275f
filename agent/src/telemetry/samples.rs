//! Metrics that other modules keep in a form of their own, read at every scrape.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// One value and the labels that tell it from the others of its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Names and values of the labels, the same names in the same order for every sample of a metric.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: u64,
}

/// Whether a metric may fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows; `_total` is added to its name.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// Reads the samples of one metric whenever it is scraped.
pub(super) struct SampleCollector<F> {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: Kind,
    pub(super) read: F,
}

impl<F> fmt::Debug for SampleCollector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SampleCollector").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<F: Fn() -> Vec<Sample> + Send + Sync + 'static> Collector for SampleCollector<F> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metric_type = match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
        };
        let mut metric = encoder.encode_descriptor(self.name, self.help, None, metric_type)?;
        let kind = self.kind;
        let encode = |value: u64, encoder: MetricEncoder<'_>| match kind {
            Kind::Counter => ConstCounter::new(value).encode(encoder),
            Kind::Gauge => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder),
        };
        let samples = (self.read)();
        if let [Sample { labels, value }] = samples.as_slice()
            && labels.is_empty()
        {
            // As a family it would be written with an empty pair of braces.
            return encode(*value, metric);
        }
        samples.iter().try_for_each(|sample| encode(sample.value, metric.encode_family(&sample.labels)?))
    }
}
