//! The measurements of traffic.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use super::contender::{Contender, HTTP, IPERF, release};

/// One kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    /// iperf3 with this many streams.
    Bulk(u32),
    /// Request after request on this many connections.
    Keepalive(u32),
    /// A connection for every request, this many at a time.
    New(u32),
    /// Connections without requests, one at a time.
    Connect,
}

/// What one measurement found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Sample {
    /// Gbit/s, or requests per second.
    pub(super) rate: f64,
    /// Microseconds; none for bulk.
    pub(super) p50_us: Option<f64>,
    pub(super) p99_us: Option<f64>,
    /// Processor time of all proxies: seconds per GB, or microseconds per request.
    pub(super) proxy_cpu: f64,
    /// Processor time of the whole machine, likewise.
    pub(super) all_cpu: f64,
}

impl Load {
    pub(super) const ALL: [Self; 5] =
        [Self::Bulk(1), Self::Bulk(8), Self::Keepalive(1), Self::Keepalive(32), Self::New(32)];

    pub(super) fn name(self) -> String {
        match self {
            Self::Bulk(1) => "iperf3, 1 stream".to_owned(),
            Self::Bulk(n) => format!("iperf3, {n} streams"),
            Self::Keepalive(1) => "keepalive, 1 connection".to_owned(),
            Self::Keepalive(n) => format!("keepalive, {n} connections"),
            Self::Connect => "connect, nothing else".to_owned(),
            Self::New(n) => format!("new connections, {n} at a time"),
        }
    }

    /// The units of a sample's rate and processor time.
    pub(super) fn units(self) -> (&'static str, &'static str) {
        match self {
            Self::Bulk(_) => ("Gbit/s", "s/GB"),
            Self::Keepalive(_) => ("requests/s", "µs/request"),
            Self::New(_) | Self::Connect => ("connections/s", "µs/connection"),
        }
    }

    pub(super) fn measure(self, contender: &Contender, seconds: u32) -> Result<Sample> {
        let (proxies, all) = (contender.cpu(), machine_cpu()?);
        let (report, bulk) = match self {
            Self::Bulk(streams) => (iperf(contender, streams, seconds)?, true),
            Self::Keepalive(n) => (request(contender, "keepalive", n, seconds.into())?, false),
            Self::New(n) => (request(contender, "new", n, seconds.into())?, false),
            Self::Connect => (request(contender, "connect", 1, seconds.into())?, false),
        };
        let (proxies, all) = (contender.cpu() - proxies, machine_cpu()? - all);
        let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
        if bulk {
            let rate = number("/end/sum_received/bits_per_second").context("iperf3 tells no rate")? / 1e9;
            let gigabytes = number("/end/sum_received/bytes").context("iperf3 tells no bytes")? / 1e9;
            let (proxy_cpu, all_cpu) = (proxies / gigabytes, all / gigabytes);
            return Ok(Sample { rate, p50_us: None, p99_us: None, proxy_cpu, all_cpu });
        }
        ensure!(number("/failed") == Some(0.0), "requests failed: {report}");
        let requests = number("/requests").context("no number of requests")?;
        Ok(Sample {
            rate: number("/per_second").context("no rate")?,
            p50_us: number("/p50_us"),
            p99_us: number("/p99_us"),
            proxy_cpu: proxies / requests * 1e6,
            all_cpu: all / requests * 1e6,
        })
    }
}

/// Runs the load generator in the client's pod.
pub(super) fn request(contender: &Contender, mode: &str, connections: u32, seconds: f64) -> Result<Value> {
    let limit = Duration::from_secs_f64(seconds) + Duration::from_secs(30);
    let program = release("culvert-load");
    let arguments = [mode, &contender.server(HTTP).to_string(), &connections.to_string(), &seconds.to_string()];
    let client = contender.topology.pod("client");
    let printed = client.output(limit, &program.to_string_lossy(), &arguments)?.success()?;
    serde_json::from_str(&printed).context("the load generator's report")
}

fn iperf(contender: &Contender, streams: u32, seconds: u32) -> Result<Value> {
    let limit = Duration::from_secs(u64::from(seconds) + 30);
    let server = contender.server(IPERF);
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let (seconds, streams) = (seconds.to_string(), streams.to_string());
    let arguments = ["-c", &ip, "-p", &port, "-t", &seconds, "-P", &streams, "-J"];
    let client = contender.topology.pod("client");
    let printed = client.output(limit, "iperf3", &arguments)?;
    let report: Value = serde_json::from_str(&printed.stdout).context("iperf3's report")?;
    ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
    Ok(report)
}

/// Processor time of the whole machine that was not idle, in seconds: proc_stat(5).
fn machine_cpu() -> Result<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    const IDLE: [usize; 2] = [3, 4];
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    // Guest time is within user time: the first eight are all there is.
    let fields = line.split_whitespace().skip(1).take(8).enumerate().filter(|(index, _)| !IDLE.contains(index));
    Ok(fields.filter_map(|(_, field)| field.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND)
}
