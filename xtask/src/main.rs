//! `cargo xtask TASK`: everything this repository does to itself. One file a task; CI calls only these.

mod apt;
mod bench;
mod crds;
mod demo;
mod e2e;
mod ebpf;
mod fuzz;
mod image;
mod kernels;
mod run;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Build, test, show and measure Culvert")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the tasks need and is missing; they do it themselves
    Setup,
    /// Build the eBPF programs into target/ebpf/
    Ebpf,
    /// Run every test of the workspace on the real kernel (root); what CI runs
    Test {
        /// Further arguments of cargo test
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Show two nodes, four pods and real traffic, and say what happened (root)
    Demo(demo::Demo),
    /// Measure direct traffic against Culvert, interleaved (root)
    Bench(bench::Bench),
    /// Install Culvert on real Kubernetes nodes and walk it through its life (root)
    E2e(e2e::EndToEnd),
    /// Boot other kernels under QEMU and enrol pods on each
    Kernels(kernels::Kernels),
    /// Build the container image as an OCI archive, without Docker
    Image(image::Options),
    /// Write what is generated in deploy/: the CRDs and the chart's schema of values
    Crds,
    /// Run every fuzz target for a bounded time
    Fuzz(fuzz::Fuzz),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup => setup::everything(),
        Task::Ebpf => ebpf::build(),
        Task::Test { arguments } => test::run_all(&arguments),
        Task::Demo(options) => demo::show(&options),
        Task::Bench(options) => bench::measure(&options),
        Task::E2e(options) => e2e::prove(&options),
        Task::Kernels(options) => kernels::boot_all(&options),
        Task::Image(options) => image::write(&options),
        Task::Crds => crds::write(),
        Task::Fuzz(options) => fuzz::run_targets(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On one line where it can be: what is wrong, and the cure.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
