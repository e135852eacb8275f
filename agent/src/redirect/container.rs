//! What a container runtime shuts that the agent needs, opened with its capabilities rather than by `privileged`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::error::LoadError;

const SYSCTLS: &str = "/proc/sys";

/// Enters the node's cgroup namespace and makes sysctls writable; where both are as they should be, nothing is done.
///
/// # Errors
///
/// [`LoadError::Container`]: a capability or a security profile is missing.
pub(super) fn open_up() -> Result<(), LoadError> {
    enter_cgroup_namespace().map_err(|error| LoadError::Container {
        what: "cannot enter the node's cgroup namespace (/proc/1/ns/cgroup)",
        reason: error.to_string(),
        cure: "the agent's pod needs hostPID, and the capabilities SYS_PTRACE and SYS_ADMIN, as in the chart",
    })?;
    make_sysctls_writable().map_err(|error| LoadError::Container {
        what: "cannot make /proc/sys writable",
        reason: error.to_string(),
        cure: "the agent's pod needs the capability SYS_ADMIN, AppArmor unconfined (Helm value node.appArmorProfile), \
               and on SELinux the type spc_t (node.seLinuxOptions)",
    })
}

/// On a node with cgroup v2 alone, a container without `privileged` has a cgroup namespace of its own. In it the agent
/// cannot see where it is, and systemd's mount option `nsdelegate` forbids it to move.
fn enter_cgroup_namespace() -> io::Result<()> {
    // By processes: the thread that calls is the first one.
    let (own, node) = ("/proc/self/ns/cgroup", "/proc/1/ns/cgroup");
    let id = |path: &str| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    let own = match id(own) {
        // A kernel without cgroup namespaces.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    // Where the first process is out of sight there is nothing to enter by: `cgroup::own` says whether it matters.
    match id(node) {
        Ok(node) if node != own => {}
        _ => return Ok(()),
    }
    Ok(setns(File::open(node)?, CloneFlags::CLONE_NEWCGROUP)?)
}

/// Runtimes mount `/proc/sys` read-only. What is below `net` belongs to the network namespace that a thread is in, which
/// is how the settings of pods are reached through it.
fn make_sysctls_writable() -> io::Result<()> {
    if !statvfs(SYSCTLS)?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(None::<&Path>, SYSCTLS, None::<&str>, flags, None::<&str>)?)
}
