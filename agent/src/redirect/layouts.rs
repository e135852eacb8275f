//! What agents of other layouts left beside this one's pins. Their programs go on refusing the pods that they captured
//! until this agent has each of them: an upgrade that changes the layout leaves none in clear, however long it takes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use aya::maps::MapData;
use culvert_core::address::NetnsCookie;

use super::link::bpf;
use super::pins::Pins;

const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

/// The kernel's `bpf_attr` for `BPF_MAP_DELETE_ELEM`.
#[repr(C)]
struct Delete {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Pins {
    /// Has this layout use the map of agents that there is, if there is one: the programs of each layout exempt the
    /// agents of all, and one of them all is in charge. That map is the same in every layout.
    pub(super) fn share_agents(&self) -> io::Result<()> {
        let agents = |version: &Path| version.join("maps").join("AGENTS");
        let own = agents(self.version());
        if own.exists() {
            return Ok(());
        }
        match self.others().iter().map(|other| agents(other)).find(|other| other.exists()) {
            Some(other) => MapData::from_pin(&other).map_err(io::Error::other)?.pin(&own).map_err(io::Error::other),
            None => Ok(()),
        }
    }

    /// Whether an agent of another layout captured the pod.
    pub(super) fn is_held_elsewhere(&self, cookie: NetnsCookie) -> bool {
        self.others().iter().any(|other| pod(other, cookie).exists())
    }

    /// Ends what other layouts do to the pod.
    pub(super) fn take_from_others(&self, cookie: NetnsCookie) -> io::Result<()> {
        self.others().iter().try_for_each(|other| {
            let pods = other.join("maps").join("PODS");
            if pods.exists() {
                delete_row(&pods, cookie.0)?;
            }
            match fs::remove_file(pod(other, cookie)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
    }

    /// Detaches the programs of other layouts and frees their maps. Only once this agent has every pod of its own.
    pub(super) fn remove_others(&self) {
        for other in self.others() {
            // bpffs wants plain unlinks, and holds nothing back.
            let _ = fs::remove_dir_all(other);
        }
    }

    /// The directories of other layouts.
    pub(super) fn others(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root()).into_iter().flatten().flatten();
        let versions = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| name.starts_with('v')));
        versions.map(|entry| entry.path()).filter(|path| path != self.version()).collect()
    }
}

/// The link of one pod's program; its name is the same in every layout.
fn pod(version: &Path, cookie: NetnsCookie) -> PathBuf {
    version.join("pods").join(cookie.to_string())
}

/// Deletes a row of a map whose values may be of another layout. Fine if it is not there.
fn delete_row(path: &Path, key: u64) -> io::Result<()> {
    let map = MapData::from_pin(path).map_err(io::Error::other)?;
    if map.info().map_err(io::Error::other)?.key_size() != size_of::<u64>() as u32 {
        return Err(io::Error::other(format!("{} has other keys than network namespaces", path.display())));
    }
    let attributes = Delete {
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        _pad: 0,
        key: std::ptr::from_ref(&key) as u64,
        value: 0,
        flags: 0,
    };
    match bpf(BPF_MAP_DELETE_ELEM, &attributes) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}
