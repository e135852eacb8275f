//! The flags that several roles have.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use culvert_core::enrolment::{DEFAULT_EXCLUDED_NAMESPACES, EnrolmentRules};

use super::ConfigError;
use crate::telemetry::logging::LogFormat;

/// Where a process is asked how it is.
#[derive(Clone, Debug, Args)]
pub struct EndpointConfig {
    /// Where the admin endpoints listen. They are for this node or pod only: give a loopback address.
    #[arg(long, env = "CULVERT_ADMIN_ADDR", value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub admin_addr: SocketAddr,

    /// Where Prometheus scrapes.
    #[arg(long, env = "CULVERT_METRICS_ADDR", value_name = "IP:PORT", default_value = "0.0.0.0:15020")]
    pub metrics_addr: SocketAddr,

    /// Where the kubelet asks whether it is ready.
    #[arg(long, env = "CULVERT_READINESS_ADDR", value_name = "IP:PORT", default_value = "0.0.0.0:15021")]
    pub readiness_addr: SocketAddr,
}

impl EndpointConfig {
    /// Its flags.
    pub(super) const FLAGS: &str = "--admin-addr, --metrics-addr, --readiness-addr";

    /// The three of them.
    pub fn addresses(&self) -> [SocketAddr; 3] {
        [self.admin_addr, self.metrics_addr, self.readiness_addr]
    }
}

/// What is logged.
#[derive(Clone, Debug, Args)]
pub struct LogConfig {
    /// What is logged: a level, or `target=level` separated by commas. Can be changed at run time by `/logging`.
    #[arg(long, env = "CULVERT_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// How it is logged: text or json. `LOG_FORMAT`, which ztunnel reads, counts too.
    #[arg(long, env = "CULVERT_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// How traffic is carried.
#[derive(Clone, Debug, Args)]
pub struct TrafficConfig {
    /// Threads that carry traffic; by default one for each CPU that may be used, 16 at the most.
    #[arg(long, env = "CULVERT_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub workers: Option<u16>,

    /// How long connections have to finish when they have to end: the process stops, or a pod leaves the mesh.
    #[arg(long, env = "CULVERT_DRAIN_SECONDS", value_name = "SECONDS", default_value = "25", value_parser = seconds)]
    pub drain_seconds: Duration,

    /// Whether each connection is logged when it closes.
    #[arg(long, env = "CULVERT_ACCESS_LOG", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub access_log: bool,
}

impl TrafficConfig {
    /// The number of worker threads.
    pub fn worker_count(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from).min(16);
        self.workers.map_or_else(cpus, usize::from)
    }
}

/// Which pods belong to the mesh. The same everywhere: who takes a pod for one that speaks HBONE has to be right.
#[derive(Clone, Debug, Args)]
pub struct EnrolmentConfig {
    /// Namespaces whose pods are never enrolled, whatever their labels say.
    #[arg(
        long, env = "CULVERT_EXCLUDE_NAMESPACES", value_name = "NAME,…", value_delimiter = ',',
        default_values = DEFAULT_EXCLUDED_NAMESPACES
    )]
    pub exclude_namespaces: Vec<String>,

    /// Which labels put a pod into the mesh, in place of istio.io/dataplane-mode: ambient: a YAML list of podSelector
    /// and namespaceSelector, as Istio's enablementSelectors.
    #[arg(long, env = "CULVERT_ENABLEMENT_SELECTORS", value_name = "YAML")]
    pub enablement_selectors: Option<String>,
}

impl EnrolmentConfig {
    /// How pods are chosen.
    ///
    /// # Errors
    /// `--enablement-selectors` is wrong.
    pub fn rules(&self) -> Result<EnrolmentRules, ConfigError> {
        let names = self.exclude_namespaces.iter().map(|name| name.trim()).filter(|name| !name.is_empty());
        let mut rules = EnrolmentRules { exclude_namespaces: names.map(Into::into).collect(), ..Default::default() };
        if let Some(yaml) = self.enablement_selectors.as_deref().filter(|yaml| !yaml.trim().is_empty()) {
            let selectors = EnrolmentRules::parse_selectors(yaml);
            rules.enablement_selectors =
                selectors.map_err(|error| ConfigError(format!("--enablement-selectors: {error}")))?;
        }
        Ok(rules)
    }
}

/// A number of seconds that is no more than an hour.
pub(super) fn seconds(value: &str) -> Result<Duration, String> {
    match value.parse::<u64>() {
        Ok(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds)),
        _ => Err("give whole seconds, 3600 at the most".to_owned()),
    }
}
