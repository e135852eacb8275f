//! `cargo xtask kernels`: the life of an enrolled pod on other kernels than this machine's.
//!
//! Debian's own kernels boot under QEMU without hardware support, with an initramfs that holds busybox, iproute2, the
//! agent and `culvert-selftest`. Nothing of the kernel packages is installed on the machine.

mod initramfs;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::ebpf;
use crate::run::{cargo, run, run_quietly, target};
use crate::setup::{self, Part};
use initramfs::Archive;

/// Debian's suites, and the series of the kernel each has.
const KERNELS: [(&str, &str); 2] = [("bookworm", "6.1"), ("bookworm-backports", "6.12")];
/// Longer than any run takes on a slow machine.
const LIMIT_SECONDS: &str = "600";

const PARTS: &[Part] = &[
    Part::C,
    Part::Ebpf,
    Part::Program("qemu-system-x86_64", "qemu-system-x86"),
    Part::Program("busybox", "busybox-static"),
    Part::Program("ip", "iproute2"),
    Part::Program("xz", "xz-utils"),
    Part::Program("dpkg-deb", "dpkg"),
];

#[derive(Args)]
pub(crate) struct Kernels {
    /// Only these series, such as 6.1
    series: Vec<String>,
}

pub(crate) fn boot_all(options: &Kernels) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the kernels are booted on x86-64 only");
    }
    setup::install(PARTS)?;
    ebpf::build()?;
    run(cargo().args(["build", "--quiet", "--release", "--package", "culvert"]))?;
    run(cargo().args(["build", "--quiet", "--release", "--package", "culvert-tests", "--bin", "culvert-selftest"]))?;
    let mut failed = Vec::new();
    for (suite, series) in KERNELS {
        if !options.series.is_empty() && !options.series.iter().any(|wanted| wanted == series) {
            continue;
        }
        let kernel = packages::kernel(suite, series)?;
        let started = Instant::now();
        println!("\n{}", kernel.version);
        let passed = boot(&kernel.image, &initramfs(&kernel)?, series)?;
        println!("  {} in {} s", if passed { "passed" } else { "failed" }, started.elapsed().as_secs());
        if !passed {
            failed.push(series);
        }
    }
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    Ok(())
}

/// Boots a kernel and shows what the self-test proves; the whole console goes to a file.
fn boot(image: &Path, initramfs: &Path, series: &str) -> Result<bool> {
    let mut qemu = Command::new("timeout");
    // Without cmpxchg16b: QEMU 7.2 emulates it with wrong results, and the allocator of Linux 6.12 falls over them.
    qemu.args([LIMIT_SECONDS, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max,-cx16", "-smp", "1"]);
    qemu.args(["-m", "1024", "-nographic", "-no-reboot", "-nic", "none"]);
    qemu.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]).stdin(Stdio::null());
    let output = qemu.output().context("cannot run qemu-system-x86_64")?;
    let console = String::from_utf8_lossy(&output.stdout);
    let log = directory().join(format!("console-{series}.log"));
    fs::write(&log, console.as_bytes())?;
    // The firmware's escape sequences may stand before the first of our lines.
    let ours = |line: &'_ str| ["proven: ", "selftest: "].iter().find_map(|word| line.find(word));
    let lines: Vec<_> = console.lines().filter_map(|line| Some(line[ours(line)?..].trim_end())).collect();
    for line in &lines {
        println!("  {line}");
    }
    let passed = lines.contains(&"selftest: passed");
    if !passed {
        println!("  the console: {}", log.display());
    }
    Ok(passed)
}

fn initramfs(kernel: &packages::Kernel) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "proc", "sys", "run", "tmp", "etc", "lib/modules"] {
        archive.directory(directory);
    }
    let release = target().join("release");
    archive.program("bin/culvert", &release.join("culvert"))?;
    archive.program("bin/culvert-selftest", &release.join("culvert-selftest"))?;
    for program in ["busybox", "ip"] {
        let path = crate::run::which(program).with_context(|| format!("{program} is not on the path"))?;
        archive.program(&format!("bin/{program}"), &path)?;
    }
    archive.file("lib/modules/veth.ko", 0o644, &kernel.module("drivers/net/veth.ko")?);
    archive.file("init", 0o755, INIT.as_bytes());
    let path = directory().join(format!("initramfs-{}", kernel.version));
    fs::write(&path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

const INIT: &str = "\
#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/bin RUST_BACKTRACE=0
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
insmod /lib/modules/veth.ko
ip link set lo up
culvert-selftest /bin/culvert
poweroff -f
";

fn directory() -> PathBuf {
    target().join("kernels")
}

/// Runs a command that prints something we want, silently.
fn output_of(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

fn libraries(program: &Path) -> Vec<PathBuf> {
    // A static program has none: ldd fails, and that is the answer.
    let printed = run_quietly(Command::new("ldd").arg(program)).unwrap_or_default();
    let paths = printed.split_whitespace().filter(|word| word.starts_with('/'));
    paths.map(PathBuf::from).collect()
}
