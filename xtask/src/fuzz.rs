//! `cargo xtask fuzz`: every fuzz target for a bounded time.
//!
//! The targets are in cargo-fuzz's layout and run under it too; this needs neither it nor a nightly: coverage is had
//! from stable's own flags, without the address sanitizer, which safe code has little use for.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::run::{cargo, root, run, target};
use crate::setup;

const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions=on \
                        -Coverflow-checks=on";

#[derive(Args)]
pub(crate) struct Fuzz {
    /// How long to run each target
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Only these targets
    targets: Vec<String>,
}

pub(crate) fn run_targets(options: &Fuzz) -> Result<()> {
    let directory = root().join("fuzz");
    let all = targets(&directory)?;
    if let Some(unknown) = options.targets.iter().find(|wanted| !all.contains(wanted)) {
        bail!("no fuzz target {unknown}; there are {}", all.join(", "));
    }
    setup::install(setup::FUZZ)?;
    let build = target().join("fuzz");
    // The host's triple is named so that the flags do not reach build scripts.
    let host = host()?;
    let mut build_all = cargo();
    build_all.current_dir(&directory).env("RUSTFLAGS", COVERAGE).env_remove("CARGO_ENCODED_RUSTFLAGS");
    run(build_all.args(["build", "--release", "--bins", "--target", &host, "--target-dir"]).arg(&build))?;
    for name in all.iter().filter(|name| options.targets.is_empty() || options.targets.contains(name)) {
        let corpus = directory.join("corpus").join(name);
        fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
        let artifacts = directory.join("artifacts").join(name);
        fs::create_dir_all(&artifacts)?;
        let mut fuzz = std::process::Command::new(build.join(&host).join("release").join(name));
        fuzz.arg(format!("-max_total_time={}", options.seconds))
            .args(["-timeout=5", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(&corpus);
        let dictionary = directory.join("dictionaries").join(name);
        if dictionary.is_file() {
            fuzz.arg(format!("-dict={}", dictionary.display()));
        }
        let seeds = directory.join("seeds").join(name);
        if seeds.is_dir() {
            fuzz.arg(seeds);
        }
        eprintln!("fuzz: {name} for {} s", options.seconds);
        run(&mut fuzz).with_context(|| format!("{name} found something; the input is in {}", artifacts.display()))?;
    }
    Ok(())
}

fn targets(directory: &Path) -> Result<Vec<String>> {
    let sources = directory.join("fuzz_targets");
    let entries = fs::read_dir(&sources).with_context(|| format!("cannot read {}", sources.display()))?;
    let names = entries.flatten().filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".rs")?.to_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    Ok(names)
}

fn host() -> Result<String> {
    let version = crate::run::run_quietly(std::process::Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}
