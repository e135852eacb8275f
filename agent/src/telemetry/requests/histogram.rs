//! A histogram that many threads add to without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// The upper bounds of Istio's histograms, of milliseconds and bytes alike; what is above them all has no bucket.
const BOUNDS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Counts values by size.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    above: AtomicU64,
    /// In thousandths.
    sum: AtomicU64,
}

impl Histogram {
    /// Counts `value`.
    pub(super) fn add(&self, value: f64) {
        let bucket = BOUNDS.iter().position(|bound| value <= *bound);
        bucket.map_or(&self.above, |at| &self.buckets[at]).fetch_add(1, Ordering::Relaxed);
        // Casts of floats saturate.
        self.sum.fetch_add((value * 1_000.0) as u64, Ordering::Relaxed);
    }

    pub(super) fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let mut buckets = Vec::with_capacity(BOUNDS.len() + 1);
        buckets.extend(BOUNDS.iter().zip(&self.buckets).map(|(bound, count)| (*bound, count.load(Ordering::Relaxed))));
        buckets.push((f64::INFINITY, self.above.load(Ordering::Relaxed)));
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1_000.0;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }
}
