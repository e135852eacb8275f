//! The commands.

mod analyze;
mod certificates;
mod check;
mod completions;
mod connections;
mod install;
mod log_level;
mod policies;
mod redirection;
mod services;
mod simulate;
mod uninstall;
mod version;
mod waypoint;
mod workloads;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::Options;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Decide one call beforehand: its path, who is asked, and why it is allowed or not.
    Simulate(simulate::Simulate),
    /// Show how each pod of the node is captured, and what is wrong if anything is.
    Redirection,
    /// List the workloads.
    #[command(visible_alias = "workload")]
    Workloads(Filter),
    /// List the services.
    #[command(visible_alias = "service")]
    Services(Filter),
    /// List the authorization policies that nodes enforce.
    #[command(visible_alias = "policy")]
    Policies(Filter),
    /// List the certificates of the node's workloads.
    #[command(visible_alias = "certificate")]
    Certificates,
    /// List the live connections of the node's pods.
    #[command(visible_alias = "connection")]
    Connections,
    /// Show the agent's log levels, or set them.
    LogLevel(log_level::LogLevel),
    /// Say what is wrong with the objects that an agent reads, or with those of a directory.
    Analyze,
    /// Say what a cluster or a node lacks for Culvert, before it is installed.
    Check(check::Check),
    /// Install Culvert in a cluster, or change how it is installed.
    Install(install::Install),
    /// Bring an installation to this version, with the values it has.
    Upgrade(install::Upgrade),
    /// Take every pod out of the mesh, and Culvert out of the cluster.
    Uninstall(uninstall::Uninstall),
    /// Make, list and delete waypoints.
    #[command(visible_alias = "waypoints")]
    Waypoint(waypoint::Waypoint),
    /// Print the version.
    Version,
    /// Print a completion script for a shell.
    Completions(completions::Completions),
}

/// Which objects to list.
#[derive(Debug, clap::Args)]
pub(crate) struct Filter {
    /// Only those of this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

impl Filter {
    /// Whether `namespace` is wanted.
    pub(crate) fn takes(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }
}

impl Command {
    pub(crate) fn run(self, options: &Options) -> Result<ExitCode> {
        match self {
            Self::Simulate(command) => command.run(options),
            Self::Redirection => redirection::run(options),
            Self::Workloads(filter) => workloads::run(options, &filter),
            Self::Services(filter) => services::run(options, &filter),
            Self::Policies(filter) => policies::run(options, &filter),
            Self::Certificates => certificates::run(options),
            Self::Connections => connections::run(options),
            Self::LogLevel(command) => command.run(options),
            Self::Analyze => analyze::run(options),
            Self::Check(command) => command.run(options),
            Self::Install(command) => command.run(),
            Self::Upgrade(command) => command.run(),
            Self::Uninstall(command) => command.run(),
            Self::Waypoint(command) => command.run(options),
            Self::Version => version::run(options),
            Self::Completions(command) => command.run(),
        }
    }
}
