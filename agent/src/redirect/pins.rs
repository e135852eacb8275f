//! Where maps and links outlive the agent: a directory on a bpffs, one below it for each version of the layout.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use culvert_core::address::NetnsCookie;
use culvert_ebpf_common::LAYOUT_VERSION;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::LoadError;

/// The directories of this layout's pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    version: PathBuf,
}

impl Pins {
    /// Makes the directories, mounting a bpffs where there is none.
    pub(super) fn open(root: &Path) -> Result<Self, LoadError> {
        let wrong = |reason: String| LoadError::Pins { path: root.to_path_buf(), reason };
        mount_bpffs(root).map_err(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                return LoadError::Privilege(format!("mounting a bpffs at {}", root.display()));
            }
            wrong(format!("cannot mount a bpffs: {error}; mount one there (`mount -t bpf bpf {}`)", root.display()))
        })?;
        let pins = Self { root: root.to_path_buf(), version: root.join(format!("v{LAYOUT_VERSION}")) };
        for path in [pins.maps(), pins.links(), pins.pods()] {
            fs::create_dir_all(&path).map_err(|error| wrong(format!("cannot create {}: {error}", path.display())))?;
        }
        Ok(pins)
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.version.join("maps")
    }

    pub(super) fn links(&self) -> PathBuf {
        self.version.join("links")
    }

    pub(super) fn pods(&self) -> PathBuf {
        self.version.join("pods")
    }

    /// The link of one pod's program.
    pub(super) fn pod(&self, cookie: NetnsCookie) -> PathBuf {
        self.pods().join(cookie.to_string())
    }

    /// The pods whose link is pinned.
    pub(super) fn pinned_pods(&self) -> Vec<NetnsCookie> {
        let entries = fs::read_dir(self.pods()).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(NetnsCookie)).collect()
    }

    /// Removes the pins of other layouts, which this agent cannot read. Their links refuse what nobody listens for, so
    /// this comes after this agent has taken in its own pods.
    pub(super) fn remove_other_versions(&self) {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.path() != self.version) {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with('v')) {
                remove_tree(&entry.path());
            }
        }
    }

    /// Removes everything: programs are detached, maps are freed.
    pub(super) fn remove_all(&self) {
        remove_tree(&self.version);
    }
}

/// bpffs has no open files to hold back `remove_dir_all`, but it wants plain unlinks.
fn remove_tree(path: &Path) {
    let _ = fs::remove_dir_all(path);
}

fn mount_bpffs(root: &Path) -> io::Result<()> {
    const BPF: &str = "/sys/fs/bpf";
    let is_bpffs = |path: &Path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    // Directories cannot be made in sysfs: there the bpffs belongs on the directory that the kernel made for it.
    let point = if root.starts_with(BPF) { Path::new(BPF) } else { root };
    if !root.starts_with(BPF) && !is_bpffs(root.parent().unwrap_or(root)) {
        fs::create_dir_all(root)?;
    }
    if is_bpffs(point) || point.parent().is_some_and(is_bpffs) {
        return Ok(());
    }
    // Two agents that start together must not mount over each other.
    let lock = Flock::lock(File::open(point)?, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
    if !is_bpffs(point) {
        mount(Some("bpf"), point, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    }
    drop(lock);
    Ok(())
}
