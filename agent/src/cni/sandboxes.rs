//! What the CNI plugin has told of the node's sandboxes, one file each, so that an agent that starts anew knows them:
//! a pod that is between its ADD and its addresses in the API server would otherwise be let go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use culvert_core::mesh::Sandbox;
use culvert_core::workload::NamespacedName;

use super::netconf::is_container_id;
use super::protocol::Attachment;
use crate::files::{make_private_directory, read_bounded, remove_file, write_atomically};

/// The directory, in the state directory.
pub(super) const DIRECTORY: &str = "sandboxes";
/// The largest file, in bytes.
const MAX_BYTES: u64 = 16 << 10;
/// More than a node has pods.
const MAX_FILES: usize = 4096;

/// The sandboxes that are written down.
#[derive(Clone, Debug)]
pub(super) struct Records(PathBuf);

impl Records {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self(state_dir.join(DIRECTORY))
    }

    pub(super) fn write(&self, attachment: &Attachment) -> io::Result<()> {
        make_private_directory(&self.0)?;
        write_atomically(&self.path(&attachment.container_id), &*serde_json::to_vec(attachment)?, 0o600)
    }

    /// Strikes out a sandbox; unknown ones are fine.
    pub(super) fn remove(&self, container_id: &str) -> io::Result<()> {
        remove_file(&self.path(container_id))
    }

    /// Strikes out those that are none of `valid` and whose network namespace is gone, and returns them. The list alone
    /// does not do: of several runtimes that share a network configuration each knows its own sandboxes only.
    pub(super) fn collect_garbage(&self, valid: &[String]) -> io::Result<Vec<Attachment>> {
        let is_garbage = |known: &Attachment| !valid.contains(&known.container_id) && !has_netns(known);
        let gone: Vec<_> = self.entries().filter_map(|path| self.read(&path)).filter(is_garbage).collect();
        gone.iter().try_for_each(|attachment| self.remove(&attachment.container_id))?;
        Ok(gone)
    }

    /// Those whose network namespace is still there. What cannot be read is struck out.
    pub(super) fn load(&self) -> Vec<Attachment> {
        let load = |path: PathBuf| {
            let found = self.read(&path).filter(has_netns);
            if found.is_none() {
                let _ = remove_file(&path);
            }
            found
        };
        self.entries().filter_map(load).collect()
    }

    fn entries(&self) -> impl Iterator<Item = PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten().take(MAX_FILES);
        entries.map(|entry| entry.path())
    }

    /// What is written there, under its own name.
    fn read(&self, path: &Path) -> Option<Attachment> {
        let bytes = read_bounded(path, MAX_BYTES).ok()?;
        let attachment: Attachment = serde_json::from_slice(&bytes).ok()?;
        (self.path(&attachment.container_id) == path).then_some(attachment)
    }

    fn path(&self, container_id: &str) -> PathBuf {
        let name = if is_container_id(container_id) { container_id } else { "invalid" };
        self.0.join(format!("{name}.json"))
    }
}

/// Whether its network namespace is there; what cannot be looked at may be.
fn has_netns(attachment: &Attachment) -> bool {
    attachment.netns.as_deref().is_some_and(|netns| Path::new(netns).try_exists().unwrap_or(true))
}

/// The sandboxes that an earlier agent was told of, for the mesh to know before it reads anything.
pub fn load(state_dir: &Path) -> Vec<(NamespacedName, Sandbox)> {
    Records::new(state_dir).load().iter().map(|attachment| (pod(attachment), sandbox(attachment))).collect()
}

/// Whose sandbox it is.
pub(super) fn pod(attachment: &Attachment) -> NamespacedName {
    NamespacedName::new(attachment.namespace.as_str(), attachment.name.as_str())
}

/// The sandbox as the mesh keeps it.
pub(super) fn sandbox(attachment: &Attachment) -> Sandbox {
    Sandbox {
        uid: attachment.uid.as_deref().map(Arc::from),
        netns: attachment.netns.as_deref().map(Arc::from),
        addresses: attachment.addresses.iter().copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::testing::TempDir;

    fn attachment(id: &str, netns: &str) -> Attachment {
        Attachment {
            container_id: id.to_owned(),
            netns: Some(netns.to_owned()),
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            uid: Some("u".to_owned()),
            addresses: vec!["10.0.0.9".parse().unwrap()],
        }
    }

    #[test]
    fn sandboxes_are_remembered_until_they_are_struck_out_or_gone() {
        let directory = TempDir::new();
        let records = Records::new(&directory);
        assert_eq!(records.load(), []);
        records.remove("unknown").unwrap();
        records.write(&attachment("a", "/proc/self/ns/net")).unwrap();
        records.write(&attachment("b", "/proc/self/ns/net")).unwrap();
        records.write(&attachment("c", "/nowhere")).unwrap();
        fs::write(directory.join("sandboxes/broken.json"), "{").unwrap();
        let mut found: Vec<_> = records.load().into_iter().map(|found| found.container_id).collect();
        found.sort();
        assert_eq!(found, ["a", "b"]);
        assert_eq!(fs::read_dir(directory.join("sandboxes")).unwrap().count(), 2);
        assert_eq!(load(&directory)[0].1.uid.as_deref(), Some("u"));
        records.remove("a").unwrap();
        records.remove("b").unwrap();
        assert_eq!(load(&directory), []);
    }

    #[test]
    fn only_what_is_neither_valid_nor_there_is_garbage() {
        let directory = TempDir::new();
        let records = Records::new(&directory);
        for (id, netns) in [("there", "/proc/self/ns/net"), ("valid", "/nowhere"), ("gone", "/nowhere")] {
            records.write(&attachment(id, netns)).unwrap();
        }
        let gone = records.collect_garbage(&["valid".to_owned()]).unwrap();
        assert_eq!(gone, [attachment("gone", "/nowhere")]);
        let names = ["there", "valid", "gone"].map(|id| records.path(id).exists());
        assert_eq!(names, [true, true, false]);
    }

    #[test]
    fn an_id_never_leads_out_of_the_directory() {
        let records = Records::new(Path::new("/state"));
        assert_eq!(records.path("../../etc/passwd"), Path::new("/state/sandboxes/invalid.json"));
    }
}
