//! `culvertctl waypoint list`

use std::process::ExitCode;

use anyhow::Result;
use culvert_api::names::label;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde::Serialize;

use super::Place;
use super::gateway::{REVISION, all, condition, labelled};
use crate::table::Table;
use crate::{Options, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  culvertctl waypoint list -n shop\n  culvertctl waypoint list -A -o json")]
pub(super) struct List {
    #[command(flatten)]
    place: Place,

    /// Those of every namespace.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
}

/// A waypoint, in a line.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    namespace: String,
    name: String,
    revision: String,
    traffic_type: String,
    /// `True`, `False`, or `Unknown` where nobody has said.
    programmed: String,
}

impl List {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode> {
        let (cluster, namespace) = self.place.connect().await?;
        let waypoints = all(&cluster, (!self.all_namespaces).then_some(&namespace)).await?;
        let lines: Vec<_> = waypoints.iter().map(line).collect();
        output::print(options.output, &lines, || {
            let mut table = Table::new(["NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED"]);
            for Line { namespace, name, revision, traffic_type, programmed } in &lines {
                table.row([namespace, name, revision, traffic_type, programmed].map(Clone::clone));
            }
            table.render("no waypoints")
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

fn line(gateway: &DynamicObject) -> Line {
    let programmed = condition(gateway, "Programmed").and_then(|found| found["status"].as_str().map(str::to_owned));
    Line {
        namespace: gateway.namespace().unwrap_or_default(),
        name: gateway.name_any(),
        revision: labelled(gateway, REVISION, "default"),
        traffic_type: labelled(gateway, label::WAYPOINT_FOR, "service"),
        programmed: programmed.unwrap_or_else(|| "Unknown".to_owned()),
    }
}
