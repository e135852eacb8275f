//! Medians, ratios, the table and the JSON.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::json;

use super::contender::Kind;
use super::traffic::{Load, Sample};

/// Everything measured.
pub(super) struct Report {
    contenders: Vec<String>,
    traffic: Vec<(Load, BTreeMap<String, Vec<Sample>>)>,
    memory: Vec<(String, &'static str, f64)>,
}

impl Report {
    pub(super) fn new<'a>(kinds: impl Iterator<Item = &'a Kind>) -> Self {
        let contenders = kinds.map(|kind| kind.name().to_owned()).collect();
        Self { contenders, traffic: Vec::new(), memory: Vec::new() }
    }

    /// Adds a sample; the n-th of a contender is of the n-th round.
    pub(super) fn add(&mut self, load: Load, contender: &str, sample: Sample) {
        if !self.traffic.iter().any(|(known, _)| *known == load) {
            self.traffic.push((load, BTreeMap::new()));
        }
        let samples = self.traffic.iter_mut().find(|(known, _)| *known == load);
        if let Some((_, samples)) = samples {
            samples.entry(contender.to_owned()).or_default().push(sample);
        }
    }

    pub(super) fn memory(&mut self, what: &str, unit: &'static str, value: f64) {
        self.memory.push((what.to_owned(), unit, value));
    }

    pub(super) fn print(&self) {
        for (load, samples) in &self.traffic {
            let (rate, cpu) = load.units();
            println!("\n{}", load.name());
            for name in &self.contenders {
                let Some(samples) = samples.get(name) else { continue };
                let mid = |value: fn(&Sample) -> f64| median(samples.iter().map(value));
                let latency = match (mid(|s| s.p50_us.unwrap_or(0.0)), mid(|s| s.p99_us.unwrap_or(0.0))) {
                    (0.0, _) => String::new(),
                    (p50, p99) => format!("  p50 {p50:.0} µs, p99 {p99:.0} µs"),
                };
                let cpu = format!("  proxies {:.3} {cpu}, everything {:.3}", mid(|s| s.proxy_cpu), mid(|s| s.all_cpu));
                let ratio = self.ratio(*load, name).map_or(String::new(), |ratio| format!("  ×{ratio:.2}"));
                println!("  {name:<10} {:>10.2} {rate}{ratio}{latency}{cpu}", mid(|s| s.rate));
            }
        }
        if !self.memory.is_empty() {
            println!("\nOne agent");
        }
        for (what, unit, value) in &self.memory {
            println!("  {what:<60} {value:>8.2} {unit}");
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let traffic = self.traffic.iter().map(|(load, samples)| {
            let (rate, cpu) = load.units();
            let ratios: BTreeMap<_, _> =
                self.contenders.iter().filter_map(|name| Some((name, self.ratio(*load, name)?))).collect();
            json!({"name": load.name(), "rate_unit": rate, "cpu_unit": cpu, "ratios": ratios, "samples": samples})
        });
        let memory = self.memory.iter().map(|(what, unit, value)| json!({"name": what, "unit": unit, "value": value}));
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let report = json!({
            "time": at,
            "kernel": kernel.trim(),
            "cpus": std::thread::available_parallelism().map_or(0, usize::from),
            "traffic": traffic.collect::<Vec<_>>(),
            "memory": memory.collect::<Vec<_>>(),
        });
        fs::write(path, format!("{report:#}\n")).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The median over all rounds of the ratio to `direct` within the round.
    fn ratio(&self, load: Load, name: &str) -> Option<f64> {
        let (_, samples) = self.traffic.iter().find(|(known, _)| *known == load)?;
        let direct = samples.get("direct")?;
        let own = samples.get(name).filter(|_| name != "direct")?;
        Some(median(own.iter().zip(direct).map(|(own, direct)| own.rate / direct.rate)))
    }
}

/// The value in the middle; between the two there, if there are two.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_ratios_within_each_round() {
        let mut report = Report::new([Kind::Direct, Kind::Culvert].iter());
        let sample = |rate| Sample { rate, p50_us: None, p99_us: None, proxy_cpu: 0.0, all_cpu: 0.0 };
        // The machine is twice as slow in the second round, for both.
        for (direct, culvert) in [(10.0, 5.0), (5.0, 2.5), (10.0, 6.0)] {
            report.add(Load::Bulk(1), "direct", sample(direct));
            report.add(Load::Bulk(1), "culvert", sample(culvert));
        }
        assert_eq!(report.ratio(Load::Bulk(1), "culvert"), Some(0.5));
        assert_eq!(report.ratio(Load::Bulk(1), "direct"), None);
    }
}
