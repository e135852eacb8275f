//! The files by which agent and plugin know what is when the other does not run. Written whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use culvert_core::enrolment::EnrolmentRules;
use serde::{Deserialize, Serialize};

/// The file of [`MeshCache`], in the state directory.
pub(super) const MESH_CACHE: &str = "cni-mesh.json";
/// The most of it that is read, in bytes: tens of thousands of namespaces.
const MAX_CACHE: u64 = 32 << 20;

/// What a plugin has to know of the mesh when neither agent nor API server answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MeshCache {
    /// How pods are chosen.
    pub(super) rules: EnrolmentRules,
    /// The labels of every namespace.
    pub(super) namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// The pods of this node that were in the mesh, as `namespace/name`: their own labels may have put them there.
    pub(super) pods: BTreeSet<String>,
}

impl MeshCache {
    /// What the agent wrote last; `None` if there is nothing that can be read.
    pub(super) fn load(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&read_bounded(&state_dir.join(MESH_CACHE), MAX_CACHE).ok()?).ok()
    }

    /// Writes it where a plugin finds it.
    pub(super) fn store(&self, state_dir: &Path) -> io::Result<()> {
        write_atomically(&state_dir.join(MESH_CACHE), &serde_json::to_vec(self)?, 0o600)
    }
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// Puts a file in the place of another in one step, on disk before anyone sees it.
pub(super) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    copy_atomically(path, bytes, mode)
}

/// The same with what `from` holds, however much that is.
pub(super) fn copy_atomically(path: &Path, mut from: impl Read, mode: u32) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file"));
    };
    // Hidden, and with no extension that a container runtime reads.
    let hidden = directory.join(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&hidden);
    let written = opened.and_then(|mut file| {
        // One left by a writer that died may have another mode.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        io::copy(&mut from, &mut file)?;
        file.sync_all()
    });
    let result = written.and_then(|()| fs::rename(&hidden, path));
    if result.is_err() {
        let _ = fs::remove_file(&hidden);
    }
    result
}

/// Whether two files hold the same; little of them is in memory at a time.
pub(super) fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let [mut one, mut other] = [fs::File::open(one)?, fs::File::open(other)?];
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut left, mut right) = ([0; 32 << 10], [0; 32 << 10]);
    loop {
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(true);
        }
        let (Some(left), Some(right)) = (left.get(..read), right.get_mut(..read)) else { return Ok(false) };
        if other.read_exact(right).is_err() || left != right {
            return Ok(false);
        }
    }
}

/// Makes a directory that only root may look into.
pub(super) fn make_private_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// A removed file is as good as none.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An empty directory of the test's own.
    pub(in super::super) fn directory(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("culvert-cni-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn what_was_written_last_is_read_and_nothing_else_is_left() {
        let directory = directory("state");
        assert_eq!(MeshCache::load(&directory), None);
        let mut cache = MeshCache::default();
        cache.store(&directory).unwrap();
        cache.namespaces.insert("shop".to_owned(), BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        cache.pods.insert("shop/cart".to_owned());
        cache.store(&directory).unwrap();
        assert_eq!(MeshCache::load(&directory), Some(cache));
        let files: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, [MESH_CACHE]);
        assert_eq!(fs::metadata(directory.join(MESH_CACHE)).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(directory.join(MESH_CACHE), "{").unwrap();
        assert_eq!(MeshCache::load(&directory), None);
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let path = directory("large").join("file");
        fs::write(&path, [0; 11]).unwrap();
        assert!(read_bounded(&path, 10).is_err());
        assert_eq!(read_bounded(&path, 11).unwrap().len(), 11);
    }
}
