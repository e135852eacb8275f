//! `culvertctl waypoint delete`

use std::process::ExitCode;

use anyhow::{Result, bail};
use culvert_api::names::label;
use kube::ResourceExt as _;

use super::Place;
use super::gateway::{REVISION, all, id, labelled};
use crate::cluster::{Cluster, Id};
use crate::output::write;

const HELP: &str = "\
What is bound to a waypoint that is gone is refused until it is bound to another, or to none.

Examples:
  culvertctl waypoint delete waypoint -n shop
  culvertctl waypoint delete --all -n shop
  culvertctl waypoint delete --revision canary -n shop --dry-run";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP, group = clap::ArgGroup::new("which").required(true).args(["names", "all", "revision"]))]
pub(super) struct Delete {
    #[command(flatten)]
    place: Place,

    /// Their names.
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    /// All of the namespace.
    #[arg(long)]
    all: bool,

    /// Those with this label istio.io/rev.
    #[arg(short, long, value_name = "REVISION")]
    revision: Option<String>,

    /// Say what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
}

impl Delete {
    pub(super) async fn run(self) -> Result<ExitCode> {
        let (cluster, namespace) = self.place.connect().await?;
        let waypoints = all(&cluster, Some(&namespace)).await?;
        // All are looked for before any is deleted: a name that is wrong must not leave half of it.
        if let Some(missing) = self.names.iter().find(|name| !waypoints.iter().any(|known| known.name_any() == **name))
        {
            bail!("there is no waypoint {namespace}/{missing}: culvertctl waypoint list shows those there are");
        }
        let is_meant = |gateway: &&kube::api::DynamicObject| match &self.revision {
            Some(revision) => labelled(gateway, REVISION, "default") == *revision,
            None => self.all || self.names.contains(&gateway.name_any()),
        };
        let names: Vec<_> = waypoints.iter().filter(is_meant).map(|gateway| gateway.name_any()).collect();
        for name in &names {
            if self.dry_run {
                write(&format!("would delete waypoint {namespace}/{name}\n"))?;
            } else if cluster.delete(&id(&namespace, name)).await? {
                write(&format!("waypoint {namespace}/{name} deleted\n"))?;
            }
        }
        if names.is_empty() {
            write("no waypoints\n")?;
        }
        warn(&cluster, &namespace, &names).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Says so where the namespace itself still names one of them.
async fn warn(cluster: &Cluster, namespace: &str, names: &[String]) -> Result<()> {
    let there = cluster.find(&Id::new("v1", "Namespace", None, namespace)).await?;
    let bound = there.and_then(|there| there.labels().get(label::USE_WAYPOINT).cloned());
    if let Some(bound) = bound.filter(|bound| names.contains(bound)) {
        eprintln!(
            "culvertctl: namespace {namespace} still uses the waypoint {bound:?}, and connections to its services are \
             refused without it: kubectl label namespace {namespace} {}-",
            label::USE_WAYPOINT
        );
    }
    Ok(())
}
