//! Kubernetes, compiled from Debian's own source package, and etcd and kubectl from its packages.
//!
//! Debian 12 has the sources of 1.20 and no binaries of the server. They are compiled as they are, but for two places
//! that the Go compiler of Debian 12 would make fail at run time. Everything stays in `target/tools/kube`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{step, tools};
use crate::apt::Apt;
use crate::run::run_quietly;

const SUITE: &str = "bookworm";
const GO: &str = "1.19";
/// From packages.
const PACKAGED: [&str; 2] = ["etcd", "kubectl"];
/// What the suites start.
pub(super) const SERVER: &[&str] = &["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// What a node wants besides.
pub(super) const NODE: &[&str] = &["kubelet"];

/// Whether all of these are there, ours or those of `$KUBEBUILDER_ASSETS`.
pub(super) fn are_there(programs: &[&str]) -> bool {
    let directory = given().unwrap_or_else(|| home().join("bin"));
    PACKAGED.iter().chain(programs).all(|program| directory.join(program).is_file())
}

/// Fetches and builds what is missing of these.
pub(super) fn build(programs: &[&str]) -> Result<()> {
    if let Some(given) = given() {
        // What envtest keeps there has no controllers; suites that need them say so.
        let there = given.join("kube-apiserver").is_file();
        ensure!(there, "KUBEBUILDER_ASSETS: {} has no kube-apiserver; unset it to have one built", given.display());
        return Ok(());
    }
    let bin = home().join("bin");
    fs::create_dir_all(&bin)?;
    let missing: Vec<&str> = programs.iter().copied().filter(|program| !bin.join(program).is_file()).collect();
    let root = home().join("root");
    let security = format!("{SUITE}-security");
    let apt = Apt::new(&home().join("apt"), &[("deb", SUITE), ("deb-src", SUITE), ("deb", &security)])?;
    if !PACKAGED.iter().all(|program| bin.join(program).is_file()) {
        step("fetching etcd and kubectl", || {
            apt.unpack(&["etcd-server", "kubernetes-client"], &root)?;
            PACKAGED.iter().try_for_each(|program| place(&root.join("usr/bin"), &bin, program))
        })?;
    }
    if !missing.is_empty() {
        let source = home().join("source");
        step("fetching the sources of Kubernetes and a Go compiler (200 MB)", || {
            let (go, library) = (format!("golang-{GO}-go"), format!("golang-{GO}-src"));
            apt.unpack(&[&go, &library, "golang-github-modern-go-reflect2-dev"], &root)?;
            unpack_source(&apt, &root, &source)
        })?;
        let what = format!("building {} (4 to 8 minutes on two cores)", missing.join(", "));
        step(&what, || compile(&missing, &root, &source))?;
        missing.iter().try_for_each(|program| place(&source.join("_output/bin"), &bin, program))?;
        fs::remove_dir_all(&source)?;
        fs::remove_dir_all(home().join("go"))?;
    }
    for leftover in ["root", "apt"] {
        let _ = fs::remove_dir_all(home().join(leftover));
    }
    Ok(())
}

fn home() -> PathBuf {
    tools().join("kube")
}

fn given() -> Option<PathBuf> {
    env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from)
}

/// Moved at once, so that what is there is whole.
fn place(from: &Path, bin: &Path, program: &str) -> Result<()> {
    fs::rename(from.join(program), bin.join(program)).with_context(|| format!("no {program} in {}", from.display()))
}

fn unpack_source(apt: &Apt, root: &Path, source: &Path) -> Result<()> {
    let archive = apt.upstream_source("kubernetes")?;
    let _ = fs::remove_dir_all(source);
    fs::create_dir_all(source)?;
    run_quietly(
        Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(&archive)
            .args(["--strip-components=1", "-C"])
            .arg(source),
    )?;
    fs::remove_file(archive)?;
    let vendor = source.join("vendor");

    // reflect2 1.0.1 crashes under Go 1.18 and later at the first write of a custom resource; Debian has 1.0.2.
    let library = "github.com/modern-go/reflect2";
    fs::remove_dir_all(vendor.join(library))?;
    let fixed = root.join("usr/share/gocode/src").join(library);
    run_quietly(Command::new("cp").arg("--recursive").arg(fixed).arg(vendor.join(library)))?;

    // Since Go 1.18 this comparison holds for "" as well: every empty string of a custom resource would be a null.
    let wrong = "if data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data)) {";
    for package in ["github.com/go-openapi/validate", "k8s.io/kube-openapi/pkg/validation/validate"] {
        let file = vendor.join(package).join("type.go");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(text.contains(wrong), "{} is not that of Kubernetes 1.20", file.display());
        fs::write(&file, text.replace(wrong, "if data == nil {"))?;
    }
    Ok(())
}

fn compile(programs: &[&str], root: &Path, source: &Path) -> Result<()> {
    let go = root.join("usr/lib").join(format!("go-{GO}"));
    let workspace = home().join("go");
    // Kubernetes 1.20 is built where GOPATH has it.
    let path = workspace.join("path/src/k8s.io");
    fs::create_dir_all(&path)?;
    let link = path.join("kubernetes");
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(source, &link)?;
    let wanted: Vec<String> = programs.iter().map(|program| format!("cmd/{program}")).collect();
    let mut make = Command::new("make");
    make.current_dir(source)
        .env_clear()
        .env("HOME", workspace.join("home"))
        .env("LANG", "C.UTF-8")
        .env("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", go.join("bin").display()))
        .env("GOROOT", &go)
        .env("GOPATH", workspace.join("path"))
        .env("GOCACHE", workspace.join("cache"))
        .env("GOPROXY", "off")
        .env("CGO_ENABLED", "0")
        .arg(format!("WHAT={}", wanted.join(" ")));
    run_quietly(&mut make).map(drop)
}
