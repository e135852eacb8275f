//! The controller's flags.

mod waypoints;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use super::{ConfigError, EndpointConfig, LogConfig};

pub use waypoints::{Autoscaling, Switch, WaypointDefaults, WaypointsConfig};

/// The controller's flags.
#[derive(Clone, Debug, Args)]
pub struct ControllerConfig {
    /// The namespace of the controller: its Lease, its keys and its Service are there.
    #[arg(long, env = "CULVERT_NAMESPACE", value_name = "NAME", default_value = "culvert-system")]
    pub namespace: String,

    /// What tells this replica from the others: the pod's name. Made up when it is not given.
    #[arg(long, env = "CULVERT_POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// Where the CA service listens.
    #[arg(long, env = "CULVERT_CA_ADDR", value_name = "IP:PORT", default_value = "0.0.0.0:15012")]
    pub ca_addr: SocketAddr,

    /// Further DNS names that the CA service's certificate is for, separated by commas. Those of the Service
    /// `culvert-controller` are always among them; `istiod.istio-system.svc` lets clients of istiod be pointed here.
    #[arg(long, env = "CULVERT_CA_DNS_NAMES", value_name = "NAME,…", value_delimiter = ',')]
    pub ca_dns_names: Vec<String>,

    /// The service accounts of node agents, NAMESPACE/NAME, separated by commas: they may ask for the certificates of
    /// the pods on their own node.
    #[arg(
        long,
        env = "CULVERT_TRUSTED_NODE_ACCOUNTS",
        value_name = "NAMESPACE/NAME,…",
        value_delimiter = ',',
        default_value = "culvert-system/culvert-node"
    )]
    pub trusted_node_accounts: Vec<String>,

    /// How long a new root that the controller made has to be in every namespace before it signs.
    #[arg(
        long,
        env = "CULVERT_ROOT_SPREAD_SECONDS",
        value_name = "SECONDS",
        default_value = "3600",
        value_parser = super::common::seconds
    )]
    pub root_spread_seconds: Duration,

    /// Whether the controller keeps its roots in a ConfigMap of every namespace. Not where the nodes' certificates come
    /// from another CA, which keeps its own there: istiod.
    #[arg(
        long,
        env = "CULVERT_DISTRIBUTE_ROOTS",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set
    )]
    pub distribute_roots: bool,

    /// How waypoints are run.
    #[command(flatten)]
    pub waypoints: WaypointsConfig,

    /// Where it is asked how it is.
    #[command(flatten)]
    pub endpoints: EndpointConfig,

    /// What it logs.
    #[command(flatten)]
    pub log: LogConfig,
}

impl ControllerConfig {
    /// Checks what clap cannot, and makes up the replica's name if it was not given.
    ///
    /// # Errors
    /// The first flag that is wrong.
    pub fn check(&mut self) -> Result<(), ConfigError> {
        if self.namespace.is_empty() {
            return Err(ConfigError("--namespace: empty; give the controller's namespace".to_owned()));
        }
        let is_account = |account: &String| {
            account.split_once('/').is_some_and(|(ns, name)| !ns.is_empty() && !name.is_empty() && !name.contains('/'))
        };
        if let Some(bad) = self.trusted_node_accounts.iter().find(|account| !is_account(account)) {
            return Err(ConfigError(format!(
                "--trusted-node-accounts: {bad:?} is not NAMESPACE/NAME (Helm: controller.trustedNodeAccounts)"
            )));
        }
        if let Some(bad) =
            self.ca_dns_names.iter().find(|name| rustls_pki_types::DnsName::try_from(name.as_str()).is_err())
        {
            return Err(ConfigError(format!(
                "--ca-dns-names: {bad:?} is no DNS name; names only, without ports (Helm: controller.caDnsNames)"
            )));
        }
        let [admin, metrics, readiness] = self.endpoints.addresses();
        let flags = format!("--ca-addr, {}", EndpointConfig::FLAGS);
        super::distinct(&flags, &[self.ca_addr, admin, metrics, readiness])?;
        self.waypoints.check()?;
        if self.pod_name.is_none() {
            self.pod_name = Some(format!("culvert-controller-{:016x}", rand::random::<u64>()));
        }
        Ok(())
    }

    /// What tells this replica from the others.
    pub fn identity(&self) -> String {
        self.pod_name.clone().unwrap_or_default()
    }

    /// Where waypoints get their certificates.
    pub fn waypoint_ca_address(&self) -> String {
        let own = || format!("culvert-controller.{}.svc:{}", self.namespace, self.ca_addr.port());
        self.waypoints.waypoint_ca_address.clone().unwrap_or_else(own)
    }

    /// The DNS names that the CA service's certificate is for.
    pub fn server_names(&self) -> Vec<String> {
        let namespace = &self.namespace;
        let service = format!("culvert-controller.{namespace}");
        let own = [service.clone(), format!("{service}.svc"), format!("{service}.svc.cluster.local")];
        let mut names: Vec<String> = own.into_iter().chain(self.ca_dns_names.iter().cloned()).collect();
        names.sort();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{Cli, Role};

    fn controller(flags: &[&str]) -> ControllerConfig {
        let flags = ["culvert", "controller"].iter().chain(flags);
        let Role::Controller(config) = Cli::try_parse_from(flags).unwrap().role else { panic!("another role") };
        *config
    }

    #[test]
    fn the_defaults_are_what_the_chart_installs() {
        let mut config = controller(&[]);
        config.check().unwrap();
        assert_eq!(config.trusted_node_accounts, ["culvert-system/culvert-node"]);
        assert!(config.server_names().contains(&"culvert-controller.culvert-system.svc".to_owned()));
        assert_eq!(config.ca_addr.port(), 15012);
        assert!(config.distribute_roots && !controller(&["--distribute-roots", "false"]).distribute_roots);
        let mut other = controller(&[]);
        other.check().unwrap();
        assert_ne!(config.identity(), other.identity(), "no two replicas are taken for one");
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_the_flag_and_the_cure() {
        for (flags, line) in [
            (
                ["--trusted-node-accounts", "culvert-node"],
                "--trusted-node-accounts: \"culvert-node\" is not NAMESPACE/NAME",
            ),
            (["--trusted-node-accounts", "a/b,c/d/e"], "--trusted-node-accounts: \"c/d/e\""),
            (["--ca-dns-names", "istiod.istio-system.svc:15012"], "--ca-dns-names: "),
            (["--metrics-addr", "127.0.0.1:15000"], "--ca-addr, --admin-addr, --metrics-addr"),
            (["--namespace", ""], "--namespace: empty"),
        ] {
            let error = controller(&flags).check().unwrap_err().to_string();
            assert!(error.starts_with(line), "{error}");
        }
    }
}
