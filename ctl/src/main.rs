//! `culvertctl`: see inside a Culvert mesh, ask why, be told beforehand.
//!
//! Commands read either the admin endpoints of an agent (`--admin`), or a directory of YAML (`--config-dir`) which they
//! read as the agent does; decisions come from `culvert-core`, the engine of the data path. One file a command.

mod admin;
mod chart;
mod check;
mod cluster;
mod commands;
mod directory;
mod dump;
mod output;
mod rollout;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::commands::Command;
use crate::output::Format;

/// A usage or input error, for every command.
const EXIT_ERROR: u8 = 1;

/// See inside a Culvert mesh, ask why, be told beforehand.
#[derive(Debug, Parser)]
#[command(name = "culvertctl", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  culvertctl redirection                          how each pod of this node is captured, problems first
  culvertctl workloads -o json                    the workloads that this node's agent knows
  culvertctl simulate --config-dir ./mesh --from shop/front --to cart:80
                                                  who decides that call, and why
  culvertctl analyze --config-dir ./mesh          what is wrong in a directory, before it is applied";

/// Flags of every command.
#[derive(Clone, Debug, clap::Args)]
struct Options {
    /// The admin endpoint of a node's agent.
    #[arg(long, global = true, env = "CULVERT_ADMIN", value_name = "URL", default_value = "http://127.0.0.1:15000")]
    admin: String,

    /// Read the objects of this directory instead of asking an agent.
    #[arg(long, global = true, env = "CULVERT_CONFIG_DIR", value_name = "DIR")]
    config_dir: Option<PathBuf>,

    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    output: Format,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Whoever reads through a pipe may have left.
            let _ = error.print();
            return if error.use_stderr() { EXIT_ERROR.into() } else { ExitCode::SUCCESS };
        }
    };
    match cli.command.run(&cli.options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("culvertctl: {error:#}");
            EXIT_ERROR.into()
        }
    }
}
