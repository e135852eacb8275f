//! The files by which agent and plugin know what is when the other does not run. Written whole or not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use culvert_core::enrolment::EnrolmentRules;
use serde::{Deserialize, Serialize};

use crate::files::{read_bounded, write_atomically};

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
    /// The namespaces outside of the mesh with pods, on whatever node, that their own labels put into it: a pod of one of
    /// these that nobody knows yet may have the label too.
    #[serde(default)]
    pub(super) mixed: BTreeSet<String>,
}

impl MeshCache {
    /// What the agent wrote last; `None` if there is nothing that can be read.
    pub(super) fn load(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&read_bounded(&state_dir.join(MESH_CACHE), MAX_CACHE).ok()?).ok()
    }

    /// Writes it where a plugin finds it.
    pub(super) fn store(&self, state_dir: &Path) -> io::Result<()> {
        write_atomically(&state_dir.join(MESH_CACHE), &*serde_json::to_vec(self)?, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::files::testing::TempDir;

    #[test]
    fn what_was_written_last_is_read_and_nothing_else_is_left() {
        let directory = TempDir::new();
        assert_eq!(MeshCache::load(&directory), None);
        let mut cache = MeshCache::default();
        cache.store(&directory).unwrap();
        cache.namespaces.insert("shop".to_owned(), BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        cache.pods.insert("shop/cart".to_owned());
        cache.store(&directory).unwrap();
        assert_eq!(MeshCache::load(&directory), Some(cache));
        let files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, [MESH_CACHE]);
        assert_eq!(fs::metadata(directory.join(MESH_CACHE)).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(directory.join(MESH_CACHE), "{").unwrap();
        assert_eq!(MeshCache::load(&directory), None);
    }
}
