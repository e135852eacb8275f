//! `culvertctl waypoint status`

use std::process::ExitCode;

use anyhow::{Result, bail};
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde::Serialize;

use super::Place;
use super::gateway::all;
use crate::table::Table;
use crate::{Options, output};

/// At least one waypoint takes no connections.
const EXIT_UNREADY: u8 = 2;

const HELP: &str = "\
Exit status: 0 all take connections, 1 usage or input error, 2 at least one does not.

Example:
  culvertctl waypoint status -n shop";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Status {
    #[command(flatten)]
    place: Place,

    /// Only this one.
    name: Option<String>,
}

/// A condition of a waypoint.
#[derive(Debug, Serialize)]
struct Line {
    namespace: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: String,
    message: String,
    /// Whether it speaks of the Gateway as it is now.
    current: bool,
}

impl Status {
    pub(super) async fn run(self, options: &Options) -> Result<ExitCode> {
        let (cluster, namespace) = self.place.connect().await?;
        let mut waypoints = all(&cluster, Some(&namespace)).await?;
        if let Some(name) = &self.name {
            waypoints.retain(|gateway| gateway.name_any() == *name);
            if waypoints.is_empty() {
                bail!("there is no waypoint {namespace}/{name}: culvertctl waypoint list shows those there are");
            }
        }
        let lines: Vec<_> = waypoints.iter().flat_map(lines).collect();
        output::print(options.output, &lines, || {
            let mut table = Table::new(["NAMESPACE", "NAME", "TYPE", "STATUS", "REASON", "MESSAGE"]);
            for Line { namespace, name, kind, status, reason, message, .. } in &lines {
                table.row([namespace, name, kind, status, reason, message].map(Clone::clone));
            }
            table.render("no waypoints")
        })?;
        let is_ready = |gateway: &DynamicObject| {
            let programmed = super::gateway::condition(gateway, "Programmed");
            programmed.is_some_and(|programmed| programmed["status"] == "True")
        };
        Ok(if waypoints.iter().all(is_ready) { ExitCode::SUCCESS } else { EXIT_UNREADY.into() })
    }
}

fn lines(gateway: &DynamicObject) -> Vec<Line> {
    let conditions = gateway.data["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (namespace, name) = (gateway.namespace().unwrap_or_default(), gateway.name_any());
    let line = |kind: &str, status: &str, reason: &str, message: &str, current| Line {
        namespace: namespace.clone(),
        name: name.clone(),
        kind: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        current,
    };
    if conditions.is_empty() {
        return vec![line(
            "Programmed",
            "Unknown",
            "",
            "nobody has said anything of it: is a controller running?",
            true,
        )];
    }
    let told = conditions.iter().map(|found| {
        let text = |field: &str| found[field].as_str().unwrap_or_default();
        let seen = found["observedGeneration"].as_i64().unwrap_or_default();
        let current = seen >= gateway.metadata.generation.unwrap_or_default();
        line(text("type"), text("status"), text("reason"), text("message"), current)
    });
    told.collect()
}
