//! `cargo xtask bench`: the price of the mesh, as ratios to no mesh at all.
//!
//! Every contender has a topology of its own, pod–node–node–pod, three routed veth pairs, MTU 1500; `direct` has nothing
//! on its nodes. In every round each measurement is taken of all contenders one right after the other, and ratios are
//! of the same round: what else the machine does then weighs on all alike. The medians over all rounds are printed.

mod contender;
mod kubernetes;
mod memory;
mod report;
mod traffic;
mod waypoint;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Uid;

use crate::run::{cargo, run, target};
use crate::{ebpf, setup};
use contender::{Contender, Kind};
use report::Report;
use traffic::Load;

#[derive(Args)]
pub(crate) struct Bench {
    /// How often everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// How long each single measurement takes
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Only traffic, only memory, only what is read from an API server, or only connections that are not captured
    #[arg(long, value_parser = ["traffic", "memory", "kubernetes", "bypass"])]
    only: Option<String>,
    /// Only the measurements whose name contains this
    #[arg(long, default_value = "")]
    matching: String,
    /// Another mesh: a shell command that serves the pods of the JSON file $CULVERT_BENCH_TOPOLOGY, prints `ready`, and
    /// ends on SIGTERM
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    peers: Vec<String>,
    /// What a waypoint costs, beside Envoy, rather than what the agents do; `--matching` chooses among its routes
    #[arg(long, conflicts_with_all = ["only", "peers"])]
    waypoint: bool,
    /// Where the JSON goes
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn measure(options: &Bench) -> Result<()> {
    ensure!(Uid::effective().is_root(), "the benchmark makes network namespaces: run it as root");
    setup::install(setup::TOPOLOGY)?;
    setup::install(setup::BENCH)?;
    ebpf::build()?;
    run(cargo().args(["build", "--quiet", "--release", "--package", "culvert"]))?;
    run(cargo().args(["build", "--quiet", "--release", "--package", "culvert-tests", "--bin", "culvert-load"]))?;
    raise_descriptor_limit()?;
    let output = options.output.clone().unwrap_or_else(|| target().join("bench.json"));
    if options.waypoint {
        setup::install(&[setup::Part::Envoy])?;
        run(cargo().args(["build", "--quiet", "--release", "--package", "culvert", "--example", "hbone-load"]))?;
        return waypoint::measure(options.rounds, options.seconds, &options.matching, &output);
    }

    let mut kinds = vec![Kind::Direct, Kind::Culvert];
    for peer in &options.peers {
        let Some((name, command)) = peer.split_once('=') else { bail!("--peer wants NAME=COMMAND, not {peer}") };
        kinds.push(Kind::Peer { name: name.to_owned(), command: command.to_owned() });
    }
    let uncaptured = [Kind::Direct, Kind::Bypass];
    let mut report = Report::new(kinds.iter().chain(&uncaptured[1..]));
    let wanted = |part| options.only.as_deref().is_none_or(|only| only == part);
    if wanted("traffic") {
        traffic(options, &kinds, &Load::ALL, &mut report)?;
    }
    if wanted("bypass") {
        traffic(options, &uncaptured, &[Load::Connect], &mut report)?;
    }
    if wanted("memory") {
        memory::measure(&mut report)?;
    }
    if wanted("kubernetes") {
        setup::install(&[setup::Part::Kubernetes, setup::Part::Program("openssl", "openssl")])?;
        kubernetes::measure(&mut report)?;
    }
    report.print();
    report.write(&output)?;
    println!("\nAll of it: {}", output.display());
    Ok(())
}

fn traffic(options: &Bench, kinds: &[Kind], loads: &[Load], report: &mut Report) -> Result<()> {
    let mut contenders = kinds.iter().map(Contender::start).collect::<Result<Vec<_>>>()?;
    for contender in &contenders {
        contender.warm_up()?;
    }
    for round in 0..options.rounds {
        eprintln!("bench: round {} of {}", round + 1, options.rounds);
        for load in loads.iter().filter(|load| load.name().contains(&options.matching)) {
            for contender in &contenders {
                let sample = load.measure(contender, options.seconds);
                let sample = sample.with_context(|| format!("{}, {}", contender.name(), load.name()))?;
                report.add(*load, contender.name(), sample);
            }
        }
        // Who goes first changes with the round.
        contenders.rotate_left(1);
    }
    Ok(())
}

/// Thousands of connections are held open on either side of two proxies.
fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}
