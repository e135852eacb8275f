//! `cargo xtask image`: Culvert's container image, as an OCI archive, without Docker.
//!
//! One layer with two programs and nothing else: no shell, no libraries. Both are linked statically, because the agent
//! copies itself onto the node as the CNI plugin, and a node's C library may be older than the build machine's, or musl.
//! The same sources and toolchain give the same bytes.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use culvert_tests::kube::Image;

use crate::ebpf;
use crate::run::{cargo, run, run_quietly, target};
use crate::setup::{self, Part};

const REPOSITORY: &str = "localhost/culvert";
const TRIPLE: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

#[derive(Args)]
pub(crate) struct Options {
    /// The image's name: what the chart's values image.repository and image.tag say
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
    /// Where the archive is written; by default target/image/culvert.tar
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    /// Build without optimizations: sooner ready, for trying things
    #[arg(long)]
    debug_build: bool,
}

/// An image, and what is in it.
pub(crate) struct Built {
    /// An OCI archive.
    pub(crate) archive: PathBuf,
    /// The directory that `culvert` and `culvertctl` were taken from.
    pub(crate) programs: PathBuf,
}

impl Options {
    /// The image that the chart's values name, soon ready.
    pub(crate) fn for_trying() -> Self {
        Self { name: None, archive: None, debug_build: true }
    }
}

pub(crate) fn write(options: &Options) -> Result<()> {
    build(options).map(drop)
}

pub(crate) fn build(options: &Options) -> Result<Built> {
    setup::install(&[Part::C, Part::Ebpf])?;
    ebpf::build()?;
    let profile = if options.debug_build { "dev" } else { "release" };
    // With --target, the flags are for what is built and not for what builds it: procedural macros cannot be static.
    run(cargo()
        .args(["build", "--target", TRIPLE, "--profile", profile, "--package", "culvert", "--package", "culvertctl"])
        .env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let built = target().join(TRIPLE).join(if options.debug_build { "debug" } else { "release" });

    let directory = target().join("image");
    match std::fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", directory.display()));
        }
        _ => {}
    }
    let mut image = Image::create(&directory)?;
    for program in ["culvert", "culvertctl"] {
        let path = built.join(program);
        // A program that asks for a dynamic loader finds none in this image.
        let listed = run_quietly(Command::new("ldd").arg(&path));
        if listed.is_ok_and(|libraries| libraries.contains("=>")) {
            bail!("{} is linked dynamically: is RUSTFLAGS set by .cargo/config.toml?", path.display());
        }
        image.add(&path, &format!("usr/bin/{program}"))?;
    }
    if !options.debug_build {
        image.compress();
    }
    image.write("etc/passwd", "root:x:0:0:root:/:/sbin/nologin\nculvert:x:1337:1337:culvert:/:/sbin/nologin\n")?;
    image.label("org.opencontainers.image.title", "culvert");
    image.label("org.opencontainers.image.version", env!("CARGO_PKG_VERSION"));
    image.label("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE"));
    image.label("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY"));
    let name = options.name.clone().unwrap_or_else(|| format!("{REPOSITORY}:{}", env!("CARGO_PKG_VERSION")));
    let mut archive = image.archive(&name, &["/usr/bin/culvert"])?;
    if let Some(wanted) = &options.archive {
        std::fs::copy(&archive, wanted).with_context(|| format!("cannot write {}", wanted.display()))?;
        archive.clone_from(wanted);
    }
    let size = std::fs::metadata(&archive)?.len();
    println!("{name}: {} ({:.1} MB)", archive.display(), size as f64 / 1e6);
    println!("into a node's containerd: ctr --namespace k8s.io images import {}", archive.display());
    Ok(Built { archive, programs: built })
}
