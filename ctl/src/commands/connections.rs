//! `culvertctl connections`

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::dump::{Connection, typed};
use crate::table::{Table, bytes, duration};
use crate::{Options, admin, output};

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    if options.config_dir.is_some() {
        bail!("a directory has no connections: give --admin URL, not --config-dir");
    }
    let all: Vec<Value> = admin::read(&options.admin, "/connections")?;
    let text = render(&all)?;
    output::print(options.output, &all, || text)?;
    Ok(ExitCode::SUCCESS)
}

fn render(all: &[Value]) -> Result<String> {
    let mut table = Table::new(["DIRECTION", "FROM", "TO", "SENT", "RECEIVED", "AGE", "SECURITY"]);
    for value in all {
        let connection: Connection = typed(value)?;
        let is_tunnelled = connection.source_identity.is_some() && connection.hbone_target.is_some();
        table.row([
            connection.direction,
            connection.source_workload.unwrap_or(connection.source),
            connection.destination_workload.unwrap_or(connection.destination),
            bytes(connection.request_bytes),
            bytes(connection.response_bytes),
            duration(connection.age_seconds as u64),
            if is_tunnelled { "mTLS" } else { "plaintext" }.to_owned(),
        ]);
    }
    Ok(table.sorted().render("no connections"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_workloads_where_they_are_known() {
        let all = serde_json::from_str::<Vec<Value>>(include_str!("../../tests/fixtures/connections.json")).unwrap();
        insta::assert_snapshot!(render(&all).unwrap(), @r#"
DIRECTION  FROM            TO            SENT   RECEIVED  AGE   SECURITY
inbound    192.0.2.7:5000  shop/front-1  0 B    0 B       0s    plaintext
outbound   shop/front-1    shop/cart-1   120 B  4.5 MB    1m1s  mTLS
"#);
    }
}
