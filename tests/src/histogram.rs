//! Latencies with trustworthy percentiles.

use std::time::Duration;

/// Buckets per power of two: a value is known to within 1/64.
const STEPS: u64 = 64;

/// Counts durations in buckets whose width grows with the value, so that every percentile is within 1.6 % whatever its
/// magnitude. Records in constant time, holds everything from 1 ns up.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; bucket(u64::MAX) + 1], total: 0 }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, took: Duration) {
        self.counts[bucket(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))] += 1;
        self.total += 1;
    }

    /// How many have been counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The smallest duration that at least this share (0 to 1) of all stay within; zero when none was counted.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = ((self.total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper_bound(index));
            }
        }
        Duration::ZERO
    }
}

/// Values below `STEPS` have a bucket each; from there on every power of two is cut into `STEPS`.
fn bucket(nanoseconds: u64) -> usize {
    let shift = u64::BITS - (nanoseconds / STEPS).leading_zeros();
    let within = if shift == 0 { nanoseconds } else { nanoseconds >> (shift - 1) };
    // `within` has been brought down to below twice STEPS.
    let index = if shift == 0 { within } else { u64::from(shift) * STEPS + (within - STEPS) };
    usize::try_from(index).unwrap_or(usize::MAX)
}

fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let (shift, within) = (bucket / STEPS, bucket % STEPS);
    match shift {
        0 => within,
        _ => ((u128::from(within + STEPS + 1) << (shift - 1)) - 1).min(u128::from(u64::MAX)) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_within_its_bucket_and_buckets_are_narrow() {
        for value in (0..100_000).chain([1 << 20, (1 << 33) + 12345, u64::MAX - 1, u64::MAX]) {
            let upper = upper_bound(bucket(value));
            assert!(upper >= value, "{value} is above {upper}");
            assert!(upper - value <= value / STEPS, "{value} is far from {upper}");
        }
    }

    #[test]
    fn quantiles_are_those_of_what_was_recorded() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), Duration::ZERO);
        for microseconds in 1..=1000 {
            histogram.record(Duration::from_micros(microseconds));
        }
        for (share, exact) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = histogram.quantile(share).as_secs_f64() * 1e6;
            assert!((found / exact - 1.0).abs() < 0.02, "{share}: {found}");
        }
    }
}
