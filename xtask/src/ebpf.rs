//! `cargo xtask ebpf`: the eBPF programs, for both the tests and the agent that embeds them.
//!
//! Built with Debian's own rustc, whose LLVM is the one bpf-linker is linked with; where rustup has a nightly with
//! `rust-src` and a bpf-linker is on the path, with those.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{root, run, run_quietly, target, which};
use crate::setup::{self, Part};

const TARGET: &str = "bpfel-unknown-none";
const PROGRAMS: &str = "culvert-ebpf";

/// Builds the programs into `target/ebpf/culvert-ebpf`; cargo skips what is up to date.
pub(crate) fn build() -> Result<()> {
    setup::install(&[Part::Ebpf])?;
    let build = target().join("ebpf/build");
    run(cargo()?
        .args(["build", "--quiet", "--release", "--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(&build))?;
    let built = build.join(TARGET).join("release").join(PROGRAMS);
    let programs = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // Left alone when nothing changed: the agent that embeds it is not built again.
    let destination = programs_path();
    if fs::read(&destination).is_ok_and(|there| there == programs) {
        return Ok(());
    }
    fs::write(&destination, programs).with_context(|| format!("cannot write {}", destination.display()))
}

/// Where the built programs are.
pub(crate) fn programs_path() -> PathBuf {
    target().join("ebpf").join(PROGRAMS)
}

/// Whether rustup's nightly and a bpf-linker on the path can do without Debian's packages.
pub(crate) fn nightly_suffices() -> bool {
    if which("bpf-linker").is_none() || which("rustup").is_none() {
        return false;
    }
    let sysroot = run_quietly(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]));
    sysroot.is_ok_and(|path| PathBuf::from(path.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
}

/// The cargo that can build for eBPF, on the programs' crate.
pub(crate) fn cargo() -> Result<Command> {
    let mut command = if nightly_suffices() {
        let mut rustup = Command::new("rustup");
        rustup.args(["run", "nightly", "cargo"]);
        rustup
    } else {
        let mut debian = Command::new("/usr/bin/cargo");
        // `-Z` on a stable compiler: only core is built this way, for a target that has no prebuilt one.
        debian.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        debian
    };
    let linker = setup::bpf_linker().context("bpf-linker is missing: cargo xtask setup")?;
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = linker.parent().map(PathBuf::from).into_iter().chain(env::split_paths(&path));
    command.current_dir(root().join("ebpf")).env("PATH", env::join_paths(directories)?);
    // What the outer cargo says of the host's build must not reach this one.
    for variable in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
        "LD_LIBRARY_PATH",
        "RUSTDOC",
        "CARGO",
    ] {
        command.env_remove(variable);
    }
    Ok(command)
}
