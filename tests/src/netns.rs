//! Network namespaces with a name, so that `ip netns exec NAME …` works while a test stands still.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::Place;
use crate::scope::Scope;

/// Where `ip netns` keeps its names.
pub const DIRECTORY: &str = "/run/netns";

/// A named network namespace with `lo` up; when dropped, processes still in it are killed and the name is removed.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    _scope: Scope,
}

impl Netns {
    pub(crate) fn create(scope: &Scope, name: &str) -> Result<Self> {
        ip(&["netns", "add", name], "")?;
        let netns = Self { name: name.to_owned(), path: Path::new(DIRECTORY).join(name), _scope: scope.clone() };
        netns.sysctl(&[
            // Addresses are usable at once: the wire is ours.
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/disable_ipv6", "0"),
            // Strict, as hardened nodes have it: the datapath must not depend on a lax one.
            ("ipv4/conf/all/rp_filter", "1"),
            ("ipv4/conf/default/rp_filter", "1"),
        ])?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `/run/netns/NAME`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `ip` commands inside, one a line.
    pub fn ip(&self, commands: &str) -> Result<String> {
        ip(&["-n", &self.name, "-batch", "-"], commands)
    }

    /// Runs one `ip` command inside, with options of its own, and returns what it printed.
    pub fn ip_once(&self, arguments: &[&str]) -> Result<String> {
        ip(&[&["-n", &self.name], arguments].concat(), "")
    }

    /// Sets kernel parameters inside: paths below `/proc/sys/net`, and their values.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            settings.iter().try_for_each(|(path, value)| {
                let path = Path::new("/proc/sys/net").join(path);
                fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
            })
        })?
    }

    /// Runs a closure inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Place::netns(&self.path).run(work)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Joins two namespaces by a veth pair: `(namespace, interface name)` at each end, up, with this MTU.
pub fn veth((left, left_interface): (&Netns, &str), (right, right_interface): (&Netns, &str), mtu: u32) -> Result<()> {
    left.ip(&format!(
        "link add {left_interface} mtu {mtu} type veth peer name {right_interface} mtu {mtu} netns {}\nlink set {left_interface} up",
        right.name
    ))?;
    right.ip(&format!("link set {right_interface} up")).map(drop)
}

/// Moves the calling thread to the namespace at `path`.
pub(crate) fn enter(path: &Path) -> io::Result<()> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Kills what still runs in a namespace and removes its name.
pub(crate) fn remove(path: &Path) {
    if let Ok(netns) = fs::metadata(path) {
        for pid in processes_in(netns.ino()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
        let _ = ip(&["netns", "delete", name], "");
    }
}

fn processes_in(netns: u64) -> Vec<i32> {
    let own = i32::try_from(process::id()).ok();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| Some(*pid) != own)
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|ns| ns.ino() == netns))
        .collect()
}

fn ip(arguments: &[&str], input: &str) -> Result<String> {
    use std::io::Write;
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip: apt-get install iproute2")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        bail!(
            "ip {} failed: {}{}{input}",
            arguments.join(" "),
            reason.trim(),
            if input.is_empty() { "" } else { "\n" }
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
