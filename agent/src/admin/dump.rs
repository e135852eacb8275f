//! The members of `/config_dump`.

use std::io::{self, Write};
use std::sync::Arc;

use culvert_core::mesh::Snapshot;
use serde::Serialize;

use super::Report;
use crate::identity::CertificateStore;

/// Reads the snapshot in force.
pub type ReadSnapshot = Arc<dyn Fn() -> Arc<Snapshot> + Send + Sync>;

/// What the mesh is, from the snapshot in force at the moment of each request, and the certificates in use, without
/// their keys.
pub fn mesh_members(snapshot: ReadSnapshot, certificates: CertificateStore) -> Vec<(&'static str, Report)> {
    let member = |list: List| {
        let snapshot = snapshot.clone();
        Report::writing(move |to| write_list(to, &snapshot(), list))
    };
    let options = snapshot.clone();
    vec![
        (
            "version",
            Report::new({
                let snapshot = snapshot.clone();
                move || snapshot().version()
            }),
        ),
        ("options", Report::new(move || options().options().clone())),
        ("workloads", member(|snapshot, each| snapshot.workloads().for_each(|item| each(item)))),
        ("services", member(|snapshot, each| snapshot.services().for_each(|item| each(item)))),
        ("policies", member(|snapshot, each| snapshot.authorization_policies().for_each(|item| each(item)))),
        ("waypoints", member(|snapshot, each| snapshot.waypoints().for_each(|item| each(item)))),
        ("findings", member(|snapshot, each| snapshot.findings().for_each(|(_, item)| each(item)))),
        ("certificates", Report::new(move || certificates.report())),
    ]
}

/// Hands each item of one kind in a snapshot to a function.
type List = fn(&Snapshot, &mut dyn FnMut(&dyn ErasedSerialize));

/// [`Serialize`] that a list of anything can be written by.
trait ErasedSerialize {
    fn write_json(&self, to: &mut dyn Write) -> serde_json::Result<()>;
}

impl<T: Serialize> ErasedSerialize for T {
    fn write_json(&self, to: &mut dyn Write) -> serde_json::Result<()> {
        serde_json::to_writer(to, self)
    }
}

/// Writes a list with one item a line, without ever holding more than one of them as text.
fn write_list(to: &mut dyn Write, snapshot: &Snapshot, list: List) -> serde_json::Result<()> {
    let mut written: io::Result<()> = to.write_all(b"[");
    let mut separator: &[u8] = b"\n";
    list(snapshot, &mut |item| {
        if written.is_ok() {
            written = to.write_all(separator).and_then(|()| item.write_json(to).map_err(Into::into));
            separator = b",\n";
        }
    });
    written.and_then(|()| to.write_all(b"\n]")).map_err(serde::ser::Error::custom)
}
