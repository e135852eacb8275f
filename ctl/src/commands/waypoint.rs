//! `culvertctl waypoint`: the Gateways of class `istio-waypoint`, by istioctl's verbs and flags. The controller runs
//! what they ask for.

mod apply;
mod delete;
mod gateway;
mod generate;
mod list;
mod status;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

use crate::Options;
use crate::cluster::{self, Cluster, ClusterOptions};

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Waypoint {
    #[command(subcommand)]
    command: Command,
}

const HELP: &str = "\
Examples:
  culvertctl waypoint apply -n shop --enroll-namespace --wait
                                                  a waypoint for every service of a namespace
  culvertctl waypoint apply -n shop --name web --for workload
  culvertctl waypoint generate -n shop            the same as YAML, to be kept elsewhere
  culvertctl waypoint list -A
  culvertctl waypoint status -n shop
  culvertctl waypoint delete waypoint -n shop";

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a waypoint, or change it.
    Apply(apply::Apply),
    /// Print a waypoint's Gateway, and ask no cluster.
    Generate(generate::Generate),
    /// List the waypoints.
    List(list::List),
    /// Say of each waypoint what became of it.
    Status(status::Status),
    /// Delete waypoints.
    Delete(delete::Delete),
}

/// Where waypoints are.
#[derive(Debug, clap::Args)]
struct Place {
    #[command(flatten)]
    cluster: ClusterOptions,

    /// The namespace; otherwise that of the kubeconfig's context.
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

impl Place {
    /// The cluster, and the namespace in it.
    async fn connect(&self) -> Result<(Cluster, String)> {
        let cluster = Cluster::connect(&self.cluster).await?;
        let namespace = self.namespace.clone().unwrap_or_else(|| cluster.client.default_namespace().to_owned());
        Ok((cluster, namespace))
    }
}

impl Waypoint {
    pub(super) fn run(self, options: &Options) -> Result<ExitCode> {
        match self.command {
            Command::Apply(command) => cluster::run(command.run(options)),
            Command::Generate(command) => command.run(options),
            Command::List(command) => cluster::run(command.run(options)),
            Command::Status(command) => cluster::run(command.run(options)),
            Command::Delete(command) => cluster::run(command.run()),
        }
    }
}
