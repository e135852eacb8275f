//! `cargo xtask TASK`: everything this repository does to itself. One file a task; CI calls only these.

mod ebpf;
mod run;
mod setup;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Build, test, show and measure Culvert")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the other tasks need and is missing (Debian packages, bpf-linker); they call it themselves
    Setup,
    /// Build the eBPF programs into target/ebpf/
    Ebpf,
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Setup => setup::everything(),
        Task::Ebpf => ebpf::build(),
    }
}
