//! `culvertctl policies`

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use super::Filter;
use crate::dump::{self, Policy, Scope, typed};
use crate::table::Table;
use crate::{Options, output};

pub(super) fn run(options: &Options, filter: &Filter) -> Result<ExitCode> {
    let all = dump::member(options, "policies", |snapshot| dump::values(snapshot.authorization_policies()))?;
    let (values, table) = select(all, filter)?;
    output::print(options.output, &values, || table.render("no policies"))?;
    Ok(ExitCode::SUCCESS)
}

fn select(all: Vec<Value>, filter: &Filter) -> Result<(Vec<Value>, Table)> {
    let mut kept = Vec::new();
    let mut table = Table::new(["NAMESPACE", "NAME", "ACTION", "RULES", "SELECTS"]);
    for value in all {
        let policy: Policy = typed(&value)?;
        if !filter.takes(&policy.name.namespace) {
            continue;
        }
        kept.push((policy.name.clone(), value));
        let never = policy.rules.iter().filter(|rule| rule.get("never").is_some()).count();
        table.row([
            policy.name.namespace,
            policy.name.name,
            if policy.dry_run { format!("{} (dry run)", policy.action) } else { policy.action },
            match never {
                0 => policy.rules.len().to_string(),
                never => format!("{} ({never} never match)", policy.rules.len()),
            },
            match policy.scope {
                Scope::Mesh => "the mesh".to_owned(),
                Scope::Namespace => "the namespace".to_owned(),
                Scope::Selector(labels) => pairs(&labels),
                Scope::MeshSelector(labels) => format!("{} in every namespace", pairs(&labels)),
                Scope::Targets(targets) => targets.iter().map(target).collect::<Vec<_>>().join(","),
            },
        ]);
    }
    kept.sort_by(|a, b| a.0.cmp(&b.0));
    Ok((kept.into_iter().map(|(_, value)| value).collect(), table.sorted()))
}

fn pairs(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// What a policy of waypoints is attached to: `Service/cart`.
fn target(target: &Value) -> String {
    match target.as_object().and_then(|target| target.iter().next()) {
        Some((kind, name)) => format!("{kind}/{}", name.as_str().unwrap_or_default()),
        None => "every waypoint".to_owned(),
    }
}
