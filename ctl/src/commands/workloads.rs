//! `culvertctl workloads`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use super::Filter;
use crate::dump::{self, Workload, typed};
use crate::table::Table;
use crate::{Options, output};

pub(super) fn run(options: &Options, filter: &Filter) -> Result<ExitCode> {
    let all = dump::member(options, "workloads", |snapshot| dump::values(snapshot.workloads()))?;
    let (values, table) = select(all, filter)?;
    output::print(options.output, &values, || table.render("no workloads"))?;
    Ok(ExitCode::SUCCESS)
}

fn select(all: Vec<Value>, filter: &Filter) -> Result<(Vec<Value>, Table)> {
    let mut kept = Vec::new();
    let mut table = Table::new(["NAMESPACE", "NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"]);
    for value in all {
        let workload: Workload = typed(&value)?;
        if !filter.takes(&workload.namespace) {
            continue;
        }
        kept.push((workload.namespace.clone(), workload.name.clone(), value));
        table.row([
            workload.namespace,
            workload.name,
            workload.addresses.into_iter().next().or(workload.hostname).unwrap_or_default(),
            workload.node,
            workload.waypoint.map_or_else(|| "none".to_owned(), |waypoint| waypoint.gateway.to_string()),
            workload.protocol,
        ]);
    }
    kept.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    Ok((kept.into_iter().map(|(_, _, value)| value).collect(), table.sorted()))
}
