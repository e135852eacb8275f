//! `cargo xtask demo`: two nodes, four pods, real traffic, and an account of what happened.
//!
//! Everything is checked, not only shown: the demo fails where Culvert does not do what it prints.

mod account;
mod mesh;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use culvert_tests::{Capture, eventually, nginx};
use nix::unistd::Uid;

use crate::run::{cargo, run};
use crate::{ebpf, setup};
use account::{Call, Expected};
use mesh::{Mesh, PORT, SECRET, SERVICE_PORT};

const LIMIT: Duration = Duration::from_secs(10);

#[derive(Args)]
pub(crate) struct Demo {
    /// Leave everything up afterwards, say how to look around, and wait for Ctrl-C
    #[arg(long)]
    keep: bool,
}

pub(crate) fn show(options: &Demo) -> Result<()> {
    ensure!(Uid::effective().is_root(), "the demo makes network namespaces and loads eBPF programs: run it as root");
    setup::install(setup::TOPOLOGY)?;
    ebpf::build()?;
    run(cargo().args(["build", "--quiet", "--package", "culvert", "--package", "culvertctl"]))?;

    let started = Instant::now();
    println!("Two nodes and four pods; one `culvert node` per node reads a directory of plain Istio YAML.\n");
    let mut mesh = Mesh::start()?;
    account::pods(&mesh);

    let wire = mesh.topology.node(1).wire_to(mesh.topology.node(2));
    let capture = Capture::start(mesh.topology.scope(), mesh.topology.node(1), &wire)?;
    calls(&mesh)?;
    let captured = capture.finish()?;
    account::wire(&captured)?;
    account::telemetry(&mesh)?;
    edit(&mut mesh)?;
    println!("\nDone in {:.1} s.", started.elapsed().as_secs_f64());

    if options.keep {
        account::look_around(&mesh);
        loop {
            // Ctrl-C is the harness's: it takes everything down and ends the process.
            std::thread::park();
        }
    }
    Ok(())
}

fn calls(mesh: &Mesh) -> Result<()> {
    println!("\nCalls, by curl to nginx in shop/orders:");
    let orders = mesh.topology.pod("orders");
    let [vip4, vip6] = mesh.service;
    for (from, to, port, expected) in [
        ("frontend", vip4, SERVICE_PORT, Expected::Answer),
        ("frontend", vip6, SERVICE_PORT, Expected::Answer),
        ("frontend", orders.ipv4(), PORT, Expected::Answer),
        ("batch", vip4, SERVICE_PORT, Expected::Refusal),
        ("legacy", orders.ipv4(), PORT, Expected::Refusal),
        ("legacy", orders.ipv6(), PORT, Expected::Refusal),
    ] {
        Call::make(mesh, from, to, port)?.report(mesh, expected)?;
    }
    Ok(())
}

/// A policy changes while a connection it allowed is open.
fn edit(mesh: &mut Mesh) -> Result<()> {
    println!("\nA policy is edited while shop/frontend reads a slow answer:");
    let mut reader = mesh.slow_reader(nginx::SLOW_PATH)?;
    let first = eventually(LIMIT, "the slow answer to begin", || {
        let read = reader.stdout().len();
        let ended = reader.try_wait().ok().flatten().is_some();
        (read > 0 || ended).then_some(read)
    })?;
    ensure!(first > 0, "the slow answer never began: {}", reader.stderr());

    let edited = Instant::now();
    mesh.deny_frontend()?;
    let status = reader.wait(LIMIT).context("the connection is still open")?;
    let took = edited.elapsed();
    ensure!(!status.success(), "the slow answer came to its end before the policy was edited");
    println!("  AuthorizationPolicy shop/orders-callers no longer names frontend");
    println!("  the connection was closed {} ms after the file was written", took.as_millis());
    account::closing_line(mesh)?;
    let [vip4, _] = mesh.service;
    Call::make(mesh, "frontend", vip4, SERVICE_PORT)?.report(mesh, Expected::Refusal)?;
    ensure!(took < Duration::from_secs(2), "an edit takes effect within a second or so, not {took:?}");
    ensure!(!reader.stdout().is_empty() && reader.stdout().contains(SECRET), "the slow answer was not the server's");
    Ok(())
}
