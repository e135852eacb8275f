//! The agent's own cgroup: how the programs know its sockets, which a pod cannot forge.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::error::LoadError;

/// Where the cgroup v2 hierarchy is mounted (a directory of its own on hybrid machines).
pub(super) fn mount() -> Result<PathBuf, LoadError> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|_| LoadError::NoCgroup2)?;
    let mut found = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let path = fields.next()?;
        (fields.next() == Some("cgroup2")).then(|| PathBuf::from(path))
    });
    found.next().ok_or(LoadError::NoCgroup2)
}

/// Checks that `path` is a cgroup v2 directory that can hold the pods.
pub(super) fn check_pods(path: &Path) -> Result<(), LoadError> {
    let wrong = |reason: String| LoadError::Cgroup { path: path.to_path_buf(), reason };
    let stat = statfs(path).map_err(|error| wrong(error.to_string()))?;
    if stat.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return Err(wrong("not a cgroup v2 directory".to_owned()));
    }
    Ok(())
}

/// The agent's own cgroup.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) id: u64,
    /// Where the agent was before it made that cgroup for itself, and what it made.
    made: Option<(PathBuf, PathBuf)>,
}

impl Own {
    /// Goes back to where the agent came from and removes the cgroup that it made, if it did.
    pub(super) fn leave(&self) {
        let Some((came_from, path)) = &self.made else { return };
        // What stays is collected by the next agent.
        if fs::write(came_from.join("cgroup.procs"), std::process::id().to_string()).is_ok() {
            let _ = fs::remove_dir(path);
        }
    }
}

/// Moves the agent into a cgroup of its own, unless it is alone in one already.
///
/// # Errors
///
/// [`LoadError::OwnCgroup`]: others would share it, or it holds the pods.
pub(super) fn own(mount: &Path, pods: &Path) -> Result<Own, LoadError> {
    let (own, made) = match current(mount)? {
        Some(path) if is_alone(&path) => (path, None),
        came_from => {
            let path = enter_new(mount)?;
            (path.clone(), Some((came_from.unwrap_or_else(|| mount.to_path_buf()), path)))
        }
    };
    // The programs compare ids: pods that live in the agent's cgroup itself would be taken for the agent.
    let (id, pods) = (id(&own)?, id(pods)?);
    if id == pods {
        return Err(LoadError::OwnCgroup(format!("{} is the one that holds the pods", own.display())));
    }
    Ok(Own { id, made })
}

/// The directory of the agent's cgroup; `None` for the root, which everything that nobody moved is in.
fn current(mount: &Path) -> Result<Option<PathBuf>, LoadError> {
    let text = fs::read_to_string("/proc/self/cgroup").map_err(|error| LoadError::OwnCgroup(error.to_string()))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Ok((!path.is_empty()).then(|| mount.join(path)))
}

fn is_alone(path: &Path) -> bool {
    let own = std::process::id().to_string();
    fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|procs| procs.lines().eq([own.as_str()]))
}

fn enter_new(mount: &Path) -> Result<PathBuf, LoadError> {
    let failed = |what: &str, path: &Path, error: std::io::Error| {
        LoadError::OwnCgroup(format!("cannot {what} {}: {error}", path.display()))
    };
    collect_dead(mount);
    let path = mount.join(format!("{PREFIX}{}", std::process::id()));
    match fs::create_dir(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed("create", &path, error)),
        _ => {}
    }
    let procs = path.join("cgroup.procs");
    fs::write(&procs, std::process::id().to_string()).map_err(|error| failed("enter", &path, error))?;
    if current(mount)?.as_deref() != Some(path.as_path()) || !is_alone(&path) {
        return Err(LoadError::OwnCgroup(format!("{} is not the agent's alone", path.display())));
    }
    Ok(path)
}

const PREFIX: &str = "culvert-node-";

/// Removes the cgroups of agents that are gone; the kernel keeps those that are not empty.
fn collect_dead(mount: &Path) {
    let entries = fs::read_dir(mount).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The id of the cgroup at `path`, if there is one.
pub(super) fn id_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|meta| meta.ino())
}

/// The cgroup's id is its inode (kernfs, 64-bit since Linux 5.5).
fn id(path: &Path) -> Result<u64, LoadError> {
    let meta = fs::metadata(path);
    meta.map(|meta| meta.ino()).map_err(|error| LoadError::OwnCgroup(format!("{}: {error}", path.display())))
}
