//! cgroup2 directories that go away with their guard.
//!
//! A test's threads must be able to enter a pod's cgroup one by one (hooks see the cgroup of the thread), which the
//! kernel allows only within a threaded subtree of the cgroup that holds the process. So a process that uses the
//! harness first moves itself to `cvt-PID/self`; pods' cgroups are threaded directories below it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::deadline::eventually;
use crate::scope::Scope;

/// A cgroup2 directory; removed when dropped, with everything in it killed first.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    /// Ancestors made for it, nearest first.
    made: Vec<PathBuf>,
    _scope: Scope,
}

impl Cgroup {
    /// `path` below the process's own cgroup `base`, every level threaded.
    pub(crate) fn create(scope: &Scope, base: &Path, path: &Path) -> Result<Self> {
        let mut made = Vec::new();
        let mut at = base.to_path_buf();
        for component in path.components() {
            at.push(component);
            if at.exists() {
                continue;
            }
            fs::create_dir(&at).with_context(|| format!("cannot create cgroup {}", at.display()))?;
            fs::write(at.join("cgroup.type"), "threaded")
                .with_context(|| format!("cannot make cgroup {} threaded", at.display()))?;
            made.insert(0, at.clone());
        }
        Ok(Self { path: at, made, _scope: scope.clone() })
    }

    /// An ordinary cgroup, for whole processes.
    pub(crate) fn create_domain(scope: &Scope, path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot create cgroup {}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), made: vec![path.to_path_buf()], _scope: scope.clone() })
    }

    /// Where it is in the file system.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for path in &self.made {
            remove_tree(path);
        }
    }
}

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
///
/// # Errors
/// When it is not mounted at all.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(path), Some("cgroup2")) = (fields.next(), fields.next()) {
            return Ok(PathBuf::from(path));
        }
    }
    bail!("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// One of version 1's hierarchies, beside cgroup2 on many machines.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
    /// What it is mounted with: its controllers, or its name.
    pub(crate) options: String,
    /// This process's cgroup in it.
    pub(crate) own: PathBuf,
}

/// All of them that are mounted.
pub(crate) fn hierarchies() -> Vec<Hierarchy> {
    let mine = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    // `4:memory:/path`; version 2 is `0::/path`.
    let all = mine.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (options, path) = rest.split_once(':').filter(|(options, _)| !options.is_empty())?;
        let mount = mounts.lines().find_map(|mount| {
            let [_, mount, kind, has, ..] = *mount.split(' ').collect::<Vec<_>>() else { return None };
            let wanted = options.split(',').all(|option| has.split(',').any(|one| one == option));
            (kind == "cgroup" && wanted).then(|| PathBuf::from(mount))
        })?;
        let own = mount.join(path.trim_start_matches('/'));
        Some(Hierarchy { mount, options: options.to_owned(), own })
    });
    all.collect()
}

/// Moves this process below `own`; returns where it was.
pub(crate) fn move_to_own(own: &Path) -> Result<PathBuf> {
    let mine = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
    let Some(path) = mine.lines().find_map(|line| line.strip_prefix("0::/")) else {
        bail!("this process is in no cgroup2");
    };
    let came_from = mount_point()?.join(path);
    let home = own.join("self");
    fs::create_dir_all(&home).with_context(|| format!("cannot create cgroup {}", home.display()))?;
    fs::write(home.join("cgroup.procs"), process::id().to_string())
        .with_context(|| format!("cannot move to cgroup {}", home.display()))?;
    Ok(came_from)
}

pub(crate) fn move_back(came_from: &Path) {
    let _ = fs::write(came_from.join("cgroup.procs"), process::id().to_string());
}

/// Kills whatever is in a cgroup and below it.
pub(crate) fn kill(path: &Path) {
    let _ = fs::write(path.join("cgroup.kill"), "1");
}

/// Removes a cgroup and those below it, waiting a little for killed processes to be gone.
pub(crate) fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    let _ = eventually(Duration::from_secs(2), "an empty cgroup", || match fs::remove_dir(path) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => None,
        _ => Some(()),
    });
}
