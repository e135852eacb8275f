//! Where maps and links outlive the agent: a directory on a bpffs, one below it for each version of the layout.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use culvert_core::address::NetnsCookie;
use culvert_ebpf_common::LAYOUT_VERSION;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::error::LoadError;

/// What the name of a pin ends in before it takes the place of an earlier one.
pub(super) const UNFINISHED: &str = "-new";

/// The directory that the kernel makes for a bpffs.
const BPF: &str = "/sys/fs/bpf";

/// The directories of this layout's pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    version: PathBuf,
}

impl Pins {
    /// Makes the directories, mounting a bpffs where there is none; but not in a container, with which it would end, and
    /// with it the capture of pods.
    pub(super) fn open(root: &Path) -> Result<Self, LoadError> {
        let wrong = |reason: String| LoadError::Pins { path: root.to_path_buf(), reason };
        mount_bpffs(root).map_err(|error| {
            if error.kind() == io::ErrorKind::PermissionDenied {
                return LoadError::Privilege(format!("mounting a bpffs at {}", root.display()));
            }
            let point = mount_point(root).display();
            wrong(format!(
                "cannot mount a bpffs: {error}; mount one on the node (`mount -t bpf bpf {point}`), and at each start (in \
                 /etc/fstab: `bpf {point} bpf defaults 0 0`)"
            ))
        })?;
        let pins = Self { root: root.to_path_buf(), version: root.join(format!("v{LAYOUT_VERSION}")) };
        for path in [pins.maps(), pins.links(), pins.pods()] {
            fs::create_dir_all(&path).map_err(|error| wrong(format!("cannot create {}: {error}", path.display())))?;
        }
        pins.lock(FlockArg::LockExclusive)
            .and_then(|_alone| pins.share_agents())
            .map_err(|error| wrong(format!("the agents of another version: {error}")))?;
        Ok(pins)
    }

    /// Keeps other agents, whatever their layout, from what is done meanwhile. Fails where the pins are gone: Culvert
    /// has been uninstalled.
    pub(super) fn lock(&self, how: FlockArg) -> io::Result<Flock<File>> {
        fs::metadata(self.maps())?;
        Flock::lock(File::open(&self.root)?, how).map_err(|(_, errno)| io::Error::from(errno))
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn version(&self) -> &Path {
        &self.version
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

    /// Removes pins that an agent was killed over before they had their names.
    pub(super) fn remove_unfinished(&self) {
        let entries = fs::read_dir(self.pods()).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with(UNFINISHED))) {
            let _ = fs::remove_file(entry.path());
        }
    }

    /// Removes everything: programs are detached, maps are freed.
    pub(super) fn remove_all(&self) {
        remove_tree(&self.version);
        // Unless another version's are there.
        let _ = fs::remove_dir(&self.root);
    }
}

/// bpffs has no open files to hold back `remove_dir_all`, but it wants plain unlinks.
fn remove_tree(path: &Path) {
    let _ = fs::remove_dir_all(path);
}

/// Whether the agent runs in a pod, or its mounts are not those of the node's first process. Where that is out of sight,
/// they are its own affair.
fn is_in_container() -> bool {
    // The kubelet sets it in every container.
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return true;
    }
    let id = |path: &str| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let (own, node) = (id("/proc/self/ns/mnt"), id("/proc/1/ns/mnt"));
    node.is_some() && own != node
}

/// Where a bpffs for `root` belongs: directories cannot be made in sysfs, there it is the one that the kernel made for it.
fn mount_point(root: &Path) -> &Path {
    if root.starts_with(BPF) { Path::new(BPF) } else { root }
}

fn mount_bpffs(root: &Path) -> io::Result<()> {
    let is_bpffs = |path: &Path| statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    let point = mount_point(root);
    if !root.starts_with(BPF) && !is_bpffs(root.parent().unwrap_or(root)) {
        fs::create_dir_all(root)?;
    }
    if is_bpffs(point) || point.parent().is_some_and(is_bpffs) {
        return Ok(());
    }
    if is_in_container() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the node has none, and one of this container's would end with it, and leave pods in clear",
        ));
    }
    // Two agents that start together must not mount over each other.
    let lock = Flock::lock(File::open(point)?, FlockArg::LockExclusive).map_err(|(_, errno)| io::Error::from(errno))?;
    if !is_bpffs(point) {
        mount(Some("bpf"), point, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    }
    drop(lock);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::TempDir;

    #[test]
    fn a_pin_that_was_never_finished_is_collected_and_the_others_stay() {
        let root = TempDir::new();
        let pins = Pins { root: root.to_path_buf(), version: root.join("v0") };
        fs::create_dir_all(pins.pods()).unwrap();
        for name in ["17", "17-new", "18-new"] {
            fs::write(pins.pods().join(name), []).unwrap();
        }
        pins.remove_unfinished();
        let left: Vec<_> = fs::read_dir(pins.pods()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["17"]);
        assert_eq!(pins.pinned_pods(), [NetnsCookie(17)]);
    }
}
