//! `culvertctl log-level`

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Result, bail};
use hyper::Method;

use crate::output::Format;
use crate::{Options, admin, output};

const HELP: &str = "\
Examples:
  culvertctl log-level                  the levels in force
  culvertctl log-level debug            everything
  culvertctl log-level info,hbone:debug one part of the agent";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct LogLevel {
    /// off, error, warn, info, debug or trace, for all or as TARGET:LEVEL; several with commas.
    #[arg(value_name = "LEVEL")]
    level: Option<String>,
}

impl LogLevel {
    pub(super) fn run(self, options: &Options) -> Result<ExitCode> {
        if options.config_dir.is_some() {
            bail!("a directory has no log: give --admin URL, not --config-dir");
        }
        let level = match self.level {
            Some(level) => admin::text(Method::POST, &options.admin, &format!("/logging?level={}", escape(&level)))?,
            None => admin::text(Method::GET, &options.admin, "/logging")?,
        };
        match options.output {
            Format::Table => output::write(&format!("{level}\n"))?,
            format => output::print(format, &serde_json::json!({ "level": level }), String::new)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Percent-encodes what has no place in a query.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:,".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_escaped() {
        assert_eq!(escape("info,hbone:debug"), "info,hbone:debug");
        assert_eq!(escape("a=b&c d"), "a%3Db%26c%20d");
    }
}
