//! `culvertctl services`

use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use super::Filter;
use crate::dump::{self, Service, ServicePort, typed};
use crate::table::Table;
use crate::{Options, output};

pub(super) fn run(options: &Options, filter: &Filter) -> Result<ExitCode> {
    let all = dump::member(options, "services", |snapshot| dump::values(snapshot.services()))?;
    let (values, table) = select(all, filter)?;
    output::print(options.output, &values, || table.render("no services"))?;
    Ok(ExitCode::SUCCESS)
}

fn select(all: Vec<Value>, filter: &Filter) -> Result<(Vec<Value>, Table)> {
    let mut kept = Vec::new();
    let mut table = Table::new(["NAMESPACE", "NAME", "VIP", "PORTS", "WAYPOINT"]);
    for value in all {
        let service: Service = typed(&value)?;
        if !filter.takes(&service.key.namespace) {
            continue;
        }
        kept.push((service.key.namespace.clone(), service.key.hostname, value));
        table.row([
            service.key.namespace,
            service.name,
            service.vips.iter().map(|vip| address(vip)).collect::<Vec<_>>().join(","),
            service.ports.iter().map(port).collect::<Vec<_>>().join(","),
            service.waypoint.map_or_else(|| "none".to_owned(), |waypoint| waypoint.gateway.to_string()),
        ]);
    }
    kept.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    Ok((kept.into_iter().map(|(_, _, value)| value).collect(), table.sorted()))
}

/// A network of one address is the address.
fn address(vip: &str) -> String {
    match vip.split_once('/') {
        Some((address, "32")) => address.to_owned(),
        Some((address, "128")) => address.to_owned(),
        _ => vip.to_owned(),
    }
}

/// `80>8080`, or `80` where both are one.
fn port(port: &ServicePort) -> String {
    let target = match &port.target {
        Value::String(name) => name.clone(),
        number => number.to_string(),
    };
    if target == port.port.to_string() { target } else { format!("{}>{target}", port.port) }
}
