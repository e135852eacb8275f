//! Debian's kernel packages, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{directory, output_of};
use crate::apt::Apt;

const PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
pub(super) struct Kernel {
    /// As in `linux-image-VERSION`.
    pub(super) version: String,
    pub(super) image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// A module, decompressed.
    pub(super) fn module(&self, path: &str) -> Result<Vec<u8>> {
        let plain = self.modules.join("kernel").join(path);
        if plain.is_file() {
            return fs::read(&plain).with_context(|| format!("cannot read {}", plain.display()));
        }
        output_of(Command::new("xz").args(["--decompress", "--stdout"]).arg(plain.with_extension("ko.xz")))
    }
}

/// The kernel of a suite; downloaded unless it is there.
pub(super) fn kernel(suite: &str, series: &str) -> Result<Kernel> {
    let place = directory().join(series);
    if let Some(kernel) = unpacked(&place) {
        return Ok(kernel);
    }
    eprintln!("kernels: fetching {series} from {suite}");
    let apt = Apt::new(&place.join("apt"), &[("deb", suite)])?;
    let package = apt.depends(PACKAGE).with_context(|| format!("{suite} has no kernel"))?;
    apt.unpack(&[&package], &place.join("root"))?;
    unpacked(&place).with_context(|| format!("{package} holds no kernel"))
}

fn unpacked(place: &Path) -> Option<Kernel> {
    let root = place.join("root");
    let images = fs::read_dir(root.join("boot")).ok()?.flatten();
    let image = images.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("/vmlinuz-"))?;
    let version = image.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
    let modules = root.join("lib/modules").join(&version);
    modules.is_dir().then_some(Kernel { version, image, modules })
}
