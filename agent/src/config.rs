//! The command line of `culvert`. Each flag has an environment variable, `CULVERT_` and its name.

mod authority;
mod controller;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use culvert_core::enrolment::{DEFAULT_EXCLUDED_NAMESPACES, EnrolmentRules};

use crate::cluster;
use crate::cni::{self, CniConfig};
use crate::telemetry::logging::LogFormat;

pub use authority::AuthorityConfig;
pub use controller::ControllerConfig;

/// The exit status for a bad configuration: `EX_CONFIG` of sysexits.h.
pub const EXIT_CONFIG: u8 = 78;

/// A sidecarless service mesh for Kubernetes, compatible with Istio's ambient mode.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, max_term_width = 100)]
pub struct Cli {
    /// What this process is.
    #[command(subcommand)]
    pub role: Role,
}

/// What a `culvert` process can be.
#[derive(Debug, Subcommand)]
pub enum Role {
    /// The node agent: takes the node's pods into the mesh and carries their traffic.
    Node(Box<NodeConfig>),
    /// The controller: signs certificates, gives every namespace the roots, and says what became of policies.
    Controller(ControllerConfig),
    /// The CNI plugin, as a container runtime calls it; and what removes it.
    Cni(CniConfig),
}

/// The node agent's flags.
#[derive(Clone, Debug, Args)]
pub struct NodeConfig {
    /// The Kubernetes name of this node: pods with this `spec.nodeName` are served.
    #[arg(long, env = "CULVERT_NODE_NAME", value_name = "NAME")]
    pub node_name: String,

    /// Read Kubernetes objects from the YAML files of this directory, and follow their changes. Without it they come
    /// from the Kubernetes API server: the one that `KUBECONFIG` names, or else the pod's own.
    #[arg(long, env = "CULVERT_CONFIG_DIR", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,

    /// Who signs certificates.
    #[command(flatten)]
    pub authority: AuthorityConfig,

    /// What outlives the agent besides the eBPF programs: the Kubernetes objects that it read last, from which it starts
    /// while the API server is away.
    #[arg(long, env = "CULVERT_STATE_DIR", value_name = "DIR", default_value = "/var/lib/culvert")]
    pub state_dir: PathBuf,

    /// The cgroup (v2) that holds every pod of the node.
    #[arg(long, env = "CULVERT_CGROUP", value_name = "PATH", default_value = "/sys/fs/cgroup/kubepods.slice")]
    pub cgroup: PathBuf,

    /// The node's own network namespace, where the agent runs in one of its own: /proc/1/ns/net with hostPID.
    #[arg(long, env = "CULVERT_HOST_NETNS", value_name = "PATH")]
    pub host_netns: Option<PathBuf>,

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

    /// Install the CNI plugin, so that a new pod is in the mesh before its first packet, and keep it installed.
    #[arg(long, env = "CULVERT_CNI", value_name = "BOOL", default_value_t = false, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    pub cni: bool,

    /// Where the CNI plugin goes.
    #[command(flatten)]
    pub cni_directories: cni::Directories,

    /// The agent's own DaemonSet, in its own namespace: once it is deleted, an agent that stops removes everything from
    /// the node; until then it is being replaced, and everything stays.
    #[arg(long, env = "CULVERT_DAEMONSET", value_name = "NAME", default_value = "culvert-node")]
    pub daemonset: String,

    /// Where eBPF programs, links and maps are pinned, so that they outlive the agent. Mounted as bpffs if it is not.
    #[arg(long, env = "CULVERT_PIN_DIR", value_name = "PATH", default_value = "/sys/fs/bpf/culvert")]
    pub pin_dir: PathBuf,

    /// Where the admin endpoints listen. They are for this node only: give a loopback address.
    #[arg(long, env = "CULVERT_ADMIN_ADDR", value_name = "IP:PORT", default_value = "127.0.0.1:15000")]
    pub admin_addr: SocketAddr,

    /// Where Prometheus scrapes.
    #[arg(long, env = "CULVERT_METRICS_ADDR", value_name = "IP:PORT", default_value = "0.0.0.0:15020")]
    pub metrics_addr: SocketAddr,

    /// Where the kubelet asks whether the agent is ready.
    #[arg(long, env = "CULVERT_READINESS_ADDR", value_name = "IP:PORT", default_value = "0.0.0.0:15021")]
    pub readiness_addr: SocketAddr,

    /// Threads that carry traffic; by default one for each CPU the agent may use, 16 at the most.
    #[arg(long, env = "CULVERT_WORKERS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub workers: Option<u16>,

    /// How long connections have to finish when the agent stops or a pod leaves the mesh.
    #[arg(long, env = "CULVERT_DRAIN_SECONDS", value_name = "SECONDS", default_value = "25", value_parser = seconds)]
    pub drain_seconds: Duration,

    /// What is logged: a level, or `target=level` separated by commas. Can be changed at run time by `/logging`.
    #[arg(long, env = "CULVERT_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,

    /// How it is logged: text or json. `LOG_FORMAT`, which ztunnel reads, counts too.
    #[arg(long, env = "CULVERT_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Whether each connection is logged when it closes.
    #[arg(long, env = "CULVERT_ACCESS_LOG", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub access_log: bool,
}

/// A bad configuration, in one line that names the flag and the cure.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl NodeConfig {
    /// Checks what clap cannot: that the paths are what they should be.
    ///
    /// # Errors
    /// The first flag that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.node_name.is_empty() {
            return Err(ConfigError("--node-name: empty; give the node's name, for instance $(hostname)".to_owned()));
        }
        match &self.config_dir {
            Some(directory) => is_directory("--config-dir", directory, "create it, and put the YAML files there")?,
            None if cluster::is_configured() => {}
            None => return Err(ConfigError(cluster::NOT_CONFIGURED.to_owned())),
        }
        self.authority.check()?;
        self.rules()?;
        is_directory("--cgroup", &self.cgroup, "give the cgroup v2 directory that holds the pods' cgroups")?;
        let ports = [self.admin_addr, self.metrics_addr, self.readiness_addr];
        distinct("--admin-addr, --metrics-addr, --readiness-addr", &ports)
    }

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

    /// The number of worker threads.
    pub fn worker_count(&self) -> usize {
        let cpus = || std::thread::available_parallelism().map_or(1, usize::from).min(16);
        self.workers.map_or_else(cpus, usize::from)
    }
}

/// Whether the addresses that `flags` gave differ; port 0 is any.
fn distinct(flags: &str, addresses: &[SocketAddr]) -> Result<(), ConfigError> {
    let is_taken = |(i, a): (usize, &SocketAddr)| a.port() != 0 && addresses[..i].contains(a);
    if addresses.iter().enumerate().any(is_taken) {
        return Err(ConfigError(format!("{flags}: two are the same; give each its own port")));
    }
    Ok(())
}

fn is_directory(flag: &str, path: &Path, cure: &str) -> Result<(), ConfigError> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(ConfigError(format!("{flag}: {} is not a directory; {cure}", path.display()))),
        Err(error) => Err(ConfigError(format!("{flag}: {}: {error}; {cure}", path.display()))),
    }
}

fn seconds(value: &str) -> Result<Duration, String> {
    match value.parse::<u64>() {
        Ok(seconds) if seconds <= 3600 => Ok(Duration::from_secs(seconds)),
        _ => Err("give whole seconds, 3600 at the most".to_owned()),
    }
}

/// Turns clap's multi-line complaint into one line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    let details: Vec<&str> =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more")).collect();
    let details = if details.is_empty() { String::new() } else { format!(" {}", details.join(", ")) };
    format!("{first}{details}; see `culvert --help`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(extra: &[&str]) -> Result<NodeConfig, clap::Error> {
        let flags = ["culvert", "node", "--node-name", "n1", "--config-dir", "/", "--ca-dir", "/", "--cgroup", "/"];
        let Role::Node(config) = Cli::try_parse_from(flags.iter().chain(extra))?.role else { panic!("another role") };
        Ok(*config)
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
        node(&[]).unwrap().check().unwrap();
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_the_flag() {
        let line = one_line(&node(&["--admin-addr", "nowhere"]).unwrap_err());
        assert!(line.contains("--admin-addr") && !line.contains('\n'), "{line}");
        let line = one_line(&Cli::try_parse_from(["culvert", "node"]).unwrap_err());
        assert!(line.contains("--node-name") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn a_directory_that_is_missing_is_named_with_its_flag() {
        let config = NodeConfig { config_dir: Some("/nowhere/at/all".into()), ..node(&[]).unwrap() };
        assert!(config.check().unwrap_err().to_string().starts_with("--config-dir: /nowhere/at/all"));
    }

    #[test]
    fn without_a_directory_the_ca_service_signs() {
        let service = |address: &str| {
            let mut config = node(&["--ca-address", address]).unwrap();
            config.authority.ca_dir = None;
            config.check().map_err(|error| error.to_string())
        };
        assert_eq!(service("istiod.istio-system.svc:15012"), Ok(()));
        for bad in ["istiod.istio-system.svc", ":15012", "istiod:0", "istiod:x"] {
            assert!(service(bad).unwrap_err().starts_with("--ca-address: "), "{bad}");
        }
    }

    #[test]
    fn the_rules_of_enrolment_can_be_set_and_are_checked() {
        assert_eq!(node(&[]).unwrap().rules().unwrap(), EnrolmentRules::default());
        let rules = node(&["--exclude-namespaces", "a, b,", "--enablement-selectors", "[]"]).unwrap().rules().unwrap();
        assert_eq!(rules.exclude_namespaces, ["a".into(), "b".into()].into());
        assert!(rules.enablement_selectors.is_empty());
        let none = node(&["--exclude-namespaces", ""]).unwrap().rules().unwrap();
        assert!(none.exclude_namespaces.is_empty());
        let wrong = node(&["--enablement-selectors", "[{podSelector: {matchLabel: {}}}]"]).unwrap();
        let line = wrong.check().unwrap_err().to_string();
        assert!(line.starts_with("--enablement-selectors:") && line.contains("matchLabel"), "{line}");
        assert!(!node(&[]).unwrap().cni && node(&["--cni"]).unwrap().cni && !node(&["--cni=false"]).unwrap().cni);
    }

    #[test]
    fn two_servers_on_one_port_are_refused() {
        let config = node(&["--metrics-addr", "127.0.0.1:15000"]).unwrap();
        assert!(config.check().unwrap_err().to_string().contains("--metrics-addr"));
    }
}
