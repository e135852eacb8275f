//! The waypoint's flags.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;
use culvert_core::address::HBONE_PORT;
use culvert_core::workload::NamespacedName;

use super::{AuthorityConfig, ConfigError, EndpointConfig, EnrolmentConfig, LogConfig, TrafficConfig};

/// The waypoint's flags.
#[derive(Clone, Debug, Args)]
pub struct WaypointConfig {
    /// The Gateway whose waypoint this is, NAMESPACE/NAME. The waypoint runs in that namespace.
    #[arg(long, env = "CULVERT_GATEWAY", value_name = "NAMESPACE/NAME", value_parser = gateway)]
    pub gateway: NamespacedName,

    /// The name of the waypoint's own pod, which tells this replica from the others. Without it, the waypoint is the pod
    /// behind the Gateway's Service that has the address of --hbone-addr, or the only one.
    #[arg(long, env = "CULVERT_POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,

    /// The service account that the waypoint has its certificate for; by default that of its own pod.
    #[arg(long, env = "CULVERT_SERVICE_ACCOUNT", value_name = "NAME")]
    pub service_account: Option<String>,

    /// Read Kubernetes objects from the YAML files of this directory, and follow their changes. Without it they come
    /// from the Kubernetes API server: the one that `KUBECONFIG` names, or else the pod's own.
    #[arg(long, env = "CULVERT_CONFIG_DIR", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,

    /// Who signs its certificate.
    #[command(flatten)]
    pub authority: AuthorityConfig,

    /// Where clients' tunnels arrive, separated by commas. By default port 15008 of every address, IPv4 and IPv6.
    #[arg(long, env = "CULVERT_HBONE_ADDR", value_name = "IP:PORT,…", value_delimiter = ',')]
    pub hbone_addr: Vec<SocketAddr>,

    /// Which pods belong to the mesh.
    #[command(flatten)]
    pub enrolment: EnrolmentConfig,

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

impl WaypointConfig {
    /// Checks what clap cannot.
    ///
    /// # Errors
    /// The first flag that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let names = [("--pod-name", &self.pod_name), ("--service-account", &self.service_account)];
        if let Some((flag, _)) = names.iter().find(|(_, name)| name.as_deref().is_some_and(|name| !is_name(name))) {
            return Err(ConfigError(format!("{flag}: not a name of Kubernetes; leave it out, or correct it")));
        }
        super::check_source(self.config_dir.as_deref())?;
        self.authority.check()?;
        self.enrolment.rules()?;
        let ports: Vec<_> = self.hbone_addr.iter().copied().chain(self.endpoints.addresses()).collect();
        super::distinct(&format!("--hbone-addr, {}", EndpointConfig::FLAGS), &ports)
    }

    /// Where to listen for tunnels: as told, or else on every address.
    pub fn listen_on(&self) -> Vec<SocketAddr> {
        match &*self.hbone_addr {
            [] => vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), HBONE_PORT)],
            given => given.to_vec(),
        }
    }
}

fn gateway(text: &str) -> Result<NamespacedName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(NamespacedName::new(namespace, name)),
        _ => Err("give NAMESPACE/NAME of a Gateway".to_owned()),
    }
}

/// Whether `text` could name an object (RFC 1123).
fn is_name(text: &str) -> bool {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(is_known)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{Cli, Role, one_line};

    fn waypoint(extra: &[&str]) -> Result<WaypointConfig, clap::Error> {
        let flags = ["culvert", "waypoint", "--config-dir", "/", "--ca-dir", "/"];
        let Role::Waypoint(config) = Cli::try_parse_from(flags.iter().chain(extra))?.role else {
            panic!("another role")
        };
        Ok(*config)
    }

    #[test]
    fn a_gateway_is_all_that_has_to_be_said() {
        let config = waypoint(&["--gateway", "shop/wp"]).unwrap();
        config.check().unwrap();
        assert_eq!(config.gateway, NamespacedName::new("shop", "wp"));
        assert_eq!(config.listen_on(), ["[::]:15008".parse().unwrap()]);
        let addresses = waypoint(&["--gateway", "shop/wp", "--hbone-addr", "10.0.0.1:15008,[fd00::1]:15008"]).unwrap();
        assert_eq!(addresses.listen_on(), ["10.0.0.1:15008".parse().unwrap(), "[fd00::1]:15008".parse().unwrap()]);
    }

    #[test]
    fn a_bad_value_is_one_line_that_names_the_flag() {
        for bad in ["shop", "shop/", "/wp", "shop/wp/x", "Shop/wp", ""] {
            let line = one_line(&waypoint(&["--gateway", bad]).unwrap_err());
            assert!(line.contains("--gateway") && line.contains("NAMESPACE/NAME") && !line.contains('\n'), "{line}");
        }
        for (flags, line) in [
            (["--hbone-addr", "127.0.0.1:15000"], "--hbone-addr, --admin-addr"),
            (["--hbone-addr", "10.0.0.1:1,10.0.0.1:1"], "--hbone-addr, --admin-addr"),
            (["--pod-name", "wp_1"], "--pod-name: "),
            (["--service-account", ""], "--service-account: "),
            (["--enablement-selectors", "x"], "--enablement-selectors: "),
        ] {
            let config = waypoint(&["--gateway", "shop/wp", flags[0], flags[1]]).unwrap();
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(line), "{error}");
        }
    }
}
