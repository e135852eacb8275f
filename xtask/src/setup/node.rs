//! What a Kubernetes node is made of besides the kubelet: Debian's packages, unpacked into `target/tools/node`.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::{step, tools};
use crate::apt::Apt;

const SUITE: &str = "bookworm";
const PACKAGES: [&str; 4] = ["containerd", "runc", "containernetworking-plugins", "busybox-static"];

/// Where they are unpacked.
pub(crate) fn node_packages() -> PathBuf {
    tools().join("node")
}

pub(super) fn are_there() -> bool {
    node_packages().is_dir()
}

pub(super) fn unpack() -> Result<()> {
    let state = tools().join("node-apt");
    let root = tools().join("node.part");
    step("fetching containerd, runc and CNI plugins (40 MB)", || {
        let security = format!("{SUITE}-security");
        let apt = Apt::new(&state, &[("deb", SUITE), ("deb", &security)])?;
        let _ = fs::remove_dir_all(&root);
        apt.unpack(&PACKAGES, &root)?;
        fs::remove_dir_all(&state)?;
        // Moved at once, so that what is there is whole.
        Ok(fs::rename(&root, node_packages())?)
    })
}
