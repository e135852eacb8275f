//! `culvertctl version`

use std::process::ExitCode;

use anyhow::Result;

use crate::{Options, output};

pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    let table = || format!("culvertctl {version}\n");
    output::print(options.output, &serde_json::json!({ "version": version }), table)?;
    Ok(ExitCode::SUCCESS)
}
