//! What files held when they were last in order, on disk: a file that is broken when the agent starts says as little of
//! the policies it held as one that is broken later, which keeps its last good objects.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use culvert_api::yaml;

use crate::files::{make_private_directory, read_bounded, write_atomically};

/// A copy of every file of a configuration directory, each as it was when it was in order. One that is empty is of a
/// file that never was.
#[derive(Debug)]
pub(super) struct LastGood {
    directory: PathBuf,
    /// Whether it was said that copies cannot be kept.
    told: AtomicBool,
}

impl LastGood {
    /// The copies in `directory`, which is made when it is needed.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, told: AtomicBool::new(false) }
    }

    /// What `path` held.
    pub(super) fn read(&self, path: &Path) -> Option<Vec<u8>> {
        read_bounded(&self.directory.join(name(path)), yaml::MAX_BYTES as u64).ok()
    }

    /// Keeps what `path` holds.
    pub(super) fn keep(&self, path: &Path, bytes: &[u8]) {
        if self.read(path).is_some_and(|kept| kept == bytes) {
            return;
        }
        let copy = self.directory.join(name(path));
        let kept = make_private_directory(&self.directory).and_then(|()| write_atomically(&copy, bytes, 0o600));
        if let Err(error) = kept
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                "--state-dir: {}: {error}: a file that is broken when the agent starts will have it refuse connections; \
                 name a directory that can be written",
                self.directory.display(),
            );
        }
    }

    /// Forgets all but the files at `paths`.
    pub(super) fn retain<'a>(&self, paths: impl Iterator<Item = &'a Path>) {
        let wanted: HashSet<OsString> = paths.map(|path| name(path).into()).collect();
        // What is not there need not be removed.
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten().filter(|entry| !wanted.contains(&entry.file_name())) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The name of a path's copy: paths are longer than names may be.
fn name(path: &Path) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, path.as_os_str().as_bytes());
    digest.as_ref().iter().fold(String::new(), |mut name, byte| {
        // Writing to a string does not fail.
        let _ = write!(name, "{byte:02x}");
        name
    })
}
