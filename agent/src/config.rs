//! The command line of `culvert`. Each flag has an environment variable, `CULVERT_` and its name.

mod authority;
mod common;
mod controller;
mod waypoint;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::cluster;
use crate::cni::{self, CniConfig};

pub use authority::AuthorityConfig;
pub use common::{EndpointConfig, EnrolmentConfig, LogConfig, TrafficConfig};
pub use controller::{Autoscaling, ControllerConfig, Switch, WaypointDefaults, WaypointsConfig};
pub use waypoint::WaypointConfig;

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
    /// A waypoint: routes and authorizes the requests of the services that are bound to it.
    Waypoint(Box<WaypointConfig>),
    /// The controller: signs certificates, gives every namespace the roots, and says what became of policies.
    Controller(Box<ControllerConfig>),
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

    /// Which pods belong to the mesh.
    #[command(flatten)]
    pub enrolment: EnrolmentConfig,

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

    /// Where it is asked how it is.
    #[command(flatten)]
    pub endpoints: EndpointConfig,

    /// How it carries traffic.
    #[command(flatten)]
    pub traffic: TrafficConfig,

    /// What it logs.
    #[command(flatten)]
    pub log: LogConfig,
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
        check_source(self.config_dir.as_deref())?;
        self.authority.check()?;
        self.enrolment.rules()?;
        is_directory("--cgroup", &self.cgroup, "give the cgroup v2 directory that holds the pods' cgroups")?;
        distinct(EndpointConfig::FLAGS, &self.endpoints.addresses())
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

/// Whether objects can be had: from this directory, or from Kubernetes.
fn check_source(config_dir: Option<&Path>) -> Result<(), ConfigError> {
    match config_dir {
        Some(directory) => is_directory("--config-dir", directory, "create it, and put the YAML files there"),
        None if cluster::is_configured() => Ok(()),
        None => Err(ConfigError(cluster::NOT_CONFIGURED.to_owned())),
    }
}

fn is_directory(flag: &str, path: &Path, cure: &str) -> Result<(), ConfigError> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(ConfigError(format!("{flag}: {} is not a directory; {cure}", path.display()))),
        Err(error) => Err(ConfigError(format!("{flag}: {}: {error}; {cure}", path.display()))),
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
    use culvert_core::enrolment::EnrolmentRules;

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
        let rules = |flags: &[&str]| node(flags).unwrap().enrolment.rules().unwrap();
        assert_eq!(rules(&[]), EnrolmentRules::default());
        let given = rules(&["--exclude-namespaces", "a, b,", "--enablement-selectors", "[]"]);
        assert_eq!(given.exclude_namespaces, ["a".into(), "b".into()].into());
        assert!(given.enablement_selectors.is_empty());
        assert!(rules(&["--exclude-namespaces", ""]).exclude_namespaces.is_empty());
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
