//! A machine of its own for a node: namespaces for mounts, processes, cgroups and the network, over this machine's
//! files.
//!
//! What runs in it sees `/`, `/etc/cni`, `/var/lib/kubelet` and bpffs as any node has them, and writes to memory. All of
//! it ends with the machine's first process: nothing can be left behind on the host, and what is left behind on the
//! node can be looked for.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cgroup::{self, Cgroup};
use crate::deadline::eventually;
use crate::process::{Finished, Process};
use crate::scope::Scope;
use crate::topology::Node;

const START: Duration = Duration::from_secs(30);

/// A running machine; killed when dropped, with everything in it.
#[derive(Debug)]
pub struct Machine {
    init: Process,
    /// The first process inside, as this machine numbers it.
    pid: u32,
    // Removed after the processes that were in them.
    _hierarchies: Hierarchies,
    _cgroup: Cgroup,
}

impl Machine {
    /// In the network namespace of `node`. `visible` directories of the host are there under their own names, and
    /// writable.
    ///
    /// # Errors
    /// When the kernel refuses one of the namespaces or mounts.
    pub fn start(scope: &Scope, node: &Node, visible: &[&Path]) -> Result<Self> {
        let cgroup = scope.agent_cgroup(&format!("{}-machine", node.name()))?;
        let hierarchies = Hierarchies::create(&format!("{}-{}", scope.prefix(), node.name()))?;
        let log = scope.directory().join(format!("{}-machine.log", node.name()));
        let mut command = node.place().in_cgroup(cgroup.path()).command("/bin/sh")?;
        command.args(["-euc", OUTSIDE]).env("INSIDE", INSIDE).env("HIERARCHIES", hierarchies.lines());
        let work = scope.directory().join(format!("{}-machine", node.name()));
        fs::create_dir_all(&work).with_context(|| format!("cannot create {}", work.display()))?;
        command.env("work", work).env("UNIFIED", cgroup::mount_point()?).env("NAME", node.name());
        command.env("VISIBLE", visible.iter().map(|path| format!("{}\n", path.display())).collect::<String>());
        let init = Process::spawn_server("a machine", command, &log)?;
        let mut machine = Self { init, pid: 0, _hierarchies: hierarchies, _cgroup: cgroup };
        machine.pid = machine.await_ready(&log)?;
        Ok(machine)
    }

    /// A file of the machine, as a path of the host's.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--net", "--cgroup", "--root", "--wd", "--target", &self.pid.to_string()]);
        command.arg("--").arg(program);
        command
    }

    /// Runs a program inside to its end.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub fn output(&self, limit: Duration, program: &str, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.command(program);
        command.args(arguments);
        Process::spawn(program, command)?.finish(limit)
    }

    fn await_ready(&mut self, log: &Path) -> Result<u32> {
        let child = format!("/proc/{0}/task/{0}/children", self.init.pid());
        let ready = eventually(START, "the machine to be set up", || {
            if let Ok(Some(status)) = self.init.try_wait() {
                return Some(Err(status));
            }
            let pid: u32 = fs::read_to_string(&child).ok()?.split_whitespace().next()?.parse().ok()?;
            Path::new(&format!("/proc/{pid}/root/run/ready")).exists().then_some(Ok(pid))
        });
        match ready {
            Ok(Ok(pid)) => Ok(pid),
            Ok(Err(status)) => bail!("the machine ended, {status}: {}", super::end_of(log)),
            Err(error) => Err(error.context(super::end_of(log))),
        }
    }
}

/// The machine's cgroup in each hierarchy of cgroup v1, where the host has any; removed when dropped.
#[derive(Debug)]
struct Hierarchies(Vec<Hierarchy>);

#[derive(Debug)]
struct Hierarchy {
    of: cgroup::Hierarchy,
    cgroup: PathBuf,
}

impl Hierarchies {
    fn create(name: &str) -> Result<Self> {
        let mut made = Self(Vec::new());
        for of in cgroup::hierarchies() {
            let cgroup = of.own.join(name);
            fs::create_dir_all(&cgroup).with_context(|| format!("cannot create {}", cgroup.display()))?;
            // A cpuset begins without any CPU or memory, and takes no process then.
            for file in ["cpuset.cpus", "cpuset.mems"].iter().filter(|file| of.own.join(file).exists()) {
                fs::write(cgroup.join(file), fs::read_to_string(of.own.join(file))?)?;
            }
            let _ = fs::write(cgroup.join("cgroup.clone_children"), "1");
            made.0.push(Hierarchy { of, cgroup });
        }
        Ok(made)
    }

    /// `mount point, options, cgroup`, one a line.
    fn lines(&self) -> String {
        let lines = self
            .0
            .iter()
            .map(|one| format!("{} {} {}\n", one.of.mount.display(), one.of.options, one.cgroup.display()));
        lines.collect()
    }
}

impl Drop for Hierarchies {
    fn drop(&mut self) {
        for hierarchy in &self.0 {
            cgroup::remove_tree(&hierarchy.cgroup);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // unshare kills its child, the machine's first process, and the kernel everything else.
        let _ = self.init.kill();
    }
}

/// Enters the machine's cgroups, so that they are the roots of its cgroup namespace.
const OUTSIDE: &str = r#"
echo "$HIERARCHIES" | while read -r mount options cgroup; do
  [ -z "$cgroup" ] || echo $$ >"$cgroup/cgroup.procs"
done
exec unshare --mount --pid --cgroup --uts --fork --kill-child /bin/sh -euc "$INSIDE"
"#;

/// Builds the machine's file system and waits for its end.
const INSIDE: &str = r#"
mount --make-rprivate /
mount -t tmpfs node "$work"
mkdir "$work/upper" "$work/work" "$work/root"
root=$work/root
mount -t overlay node -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"
mkdir -p "$root/old"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
case $UNIFIED in
/sys/fs/cgroup) mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup" ;;
*)
  mount -t tmpfs cgroup "$root/sys/fs/cgroup"
  echo "$HIERARCHIES" | while read -r mount options cgroup; do
    [ -n "$cgroup" ] || continue
    mkdir -p "$root$mount"
    mount -t cgroup -o "$options" cgroup "$root$mount"
  done
  mkdir -p "$root$UNIFIED"
  mount -t cgroup2 cgroup2 "$root$UNIFIED"
  ;;
esac
mount -t bpf bpf "$root/sys/fs/bpf"
# A new node's, whatever this machine is or has run.
for directory in /run /tmp /etc/cni /opt/cni /var/lib/containerd /var/lib/kubelet /var/lib/cni /var/lib/culvert /var/log/pods; do
  mkdir -p "$root$directory"
  mount -t tmpfs node "$root$directory"
done
echo "$VISIBLE" | while read -r directory; do
  [ -n "$directory" ] || continue
  mkdir -p "$root$directory"
  mount --bind "$directory" "$root$directory"
done
cd "$root"
pivot_root . old
cd /
umount -l /old
mount --make-rshared /
hostname "$NAME"
touch /run/ready
while :; do sleep 1000000; done
"#;
