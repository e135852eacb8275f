//! `cargo xtask e2e`: Culvert on real Kubernetes nodes, from `kubectl label` to an encrypted pod and back.
//!
//! Two nodes, each with a kubelet, containerd, runc and the reference CNI plugins on a machine of its own; an API server
//! with controllers and scheduler; pods of busybox; the chart as `culvertctl install` applies it. Every line is checked,
//! not only shown. Nothing outlives the run.

mod facts;
mod figures;
mod install;
mod trouble;
mod upgrade;
mod world;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Args;
use nix::unistd::Uid;

use crate::{image, setup};
use world::World;

#[derive(Args)]
pub(crate) struct EndToEnd {
    /// Measure as well: CNI ADD, policy propagation, a restart of the agent, its requests when idle
    #[arg(long)]
    measure: bool,
    /// Take culvert and culvertctl from this directory rather than build them as `cargo xtask image` does
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Leave everything up afterwards or where something fails, say how to look around, and wait for Ctrl-C
    #[arg(long)]
    keep: bool,
}

pub(crate) fn prove(options: &EndToEnd) -> Result<()> {
    ensure!(Uid::effective().is_root(), "nodes and their namespaces need root: run this as root");
    setup::install(setup::TOPOLOGY)?;
    setup::install(setup::NODES)?;
    let built = match &options.binaries {
        Some(directory) => install::image_of(directory)?,
        None => image::build(&image::Options::for_trying())?,
    };

    let started = Instant::now();
    let mut world = World::start(built)?;
    proven(started, "two real nodes are Ready, and pods on them reach each other");
    let walked = walk(&mut world, options, started);
    if options.keep {
        if let Err(error) = &walked {
            println!("failed: {error:#}");
        }
        world.look_around();
        loop {
            // Ctrl-C is the harness's: it takes everything down and ends the process.
            std::thread::park();
        }
    }
    walked.map_err(|error| error.context(world.diagnosis()))?;
    println!("\nDone in {:.0} s.", started.elapsed().as_secs_f64());
    Ok(())
}

fn walk(world: &mut World, options: &EndToEnd, started: Instant) -> Result<()> {
    facts::in_clear_before(world)?;
    let before = install::Untouched::of(world)?;
    install::install(world)?;
    proven(started, "Culvert is installed, its agents and controllers are ready, and no pod is touched");
    for (name, fact) in facts::ALL {
        fact(world)?;
        proven(started, name);
    }
    if options.measure {
        figures::measure(world)?;
    }
    facts::unlabelled(world)?;
    before.check_pods(world)?;
    proven(
        started,
        "label removed: the pods are out of the mesh without a restart, their network namespaces as they were",
    );
    facts::labelled(world)?;
    install::uninstall(world)?;
    before.check(world)?;
    proven(
        started,
        "uninstalled from a labelled namespace: no pin, rule, route, sysctl, plugin, file, annotation or object is left",
    );
    Ok(())
}

fn proven(started: Instant, fact: &str) {
    println!("{:>5.0} s  {fact}", started.elapsed().as_secs_f64());
}
