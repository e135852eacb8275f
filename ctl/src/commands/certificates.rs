//! `culvertctl certificates`

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::dump::{Certificate, typed};
use crate::table::{Table, duration};
use crate::{Options, admin, output};

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    if options.config_dir.is_some() {
        bail!("a directory holds no certificates: give --admin URL, not --config-dir");
    }
    let all: Vec<Value> = admin::read(&options.admin, "/config_dump/certificates")?;
    let text = render(&all)?;
    output::print(options.output, &all, || text)?;
    Ok(ExitCode::SUCCESS)
}

fn render(all: &[Value]) -> Result<String> {
    let mut table = Table::new(["IDENTITY", "STATE", "EXPIRES IN", "SERIAL"]);
    let mut errors = Vec::new();
    for value in all {
        let certificate: Certificate = typed(value)?;
        errors.extend(certificate.error.map(|error| format!("{}: {error}\n", certificate.identity)));
        table.row([
            certificate.identity,
            certificate.state,
            certificate.expires_in.map(duration).unwrap_or_default(),
            certificate.serial.unwrap_or_default(),
        ]);
    }
    errors.sort();
    let separator = if errors.is_empty() { "" } else { "\n" };
    Ok(format!("{}{separator}{}", table.sorted().render("no certificates"), errors.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_below() {
        let all = serde_json::from_str::<Vec<Value>>(include_str!("../../tests/fixtures/certificates.json")).unwrap();
        insta::assert_snapshot!(render(&all).unwrap(), @r#"
IDENTITY                                 STATE    EXPIRES IN  SERIAL
spiffe://cluster.local/ns/shop/sa/cart   failing  -           -
spiffe://cluster.local/ns/shop/sa/front  ready    23h59m      1a2b

spiffe://cluster.local/ns/shop/sa/cart: no CA answers
"#);
    }
}
