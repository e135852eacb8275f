//! An initramfs: a cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    /// A directory, and those above it.
    pub(super) fn directory(&mut self, name: &str) {
        for (end, _) in name.match_indices('/').chain([(name.len(), "")]) {
            self.entry(&name[..end], DIRECTORY | 0o755, &[]);
        }
    }

    pub(super) fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        if let Some((directory, _)) = name.rsplit_once('/') {
            self.directory(directory);
        }
        self.entry(name, REGULAR | mode, contents);
    }

    /// A program and the libraries it is linked with, each where the program looks for it.
    pub(super) fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        self.file(name, 0o755, &read(path)?);
        for library in super::libraries(path) {
            let place = library.to_string_lossy();
            self.file(place.trim_start_matches('/'), 0o755, &read(&library)?);
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        if !self.names.insert(name.to_owned()) {
            return;
        }
        let links = 1;
        // inode, mode, uid, gid, links, mtime, size, device (2), device of a special file (2), length of name, check
        let inode = self.names.len();
        let fields = [inode, mode as usize, 0, 0, links, 0, contents.len(), 0, 0, 0, 0, name.len() + 1, 0]
            .map(|field| format!("{field:08x}"));
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend_from_slice(fields.concat().as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_named_once() {
        let mut archive = Archive::default();
        archive.file("bin/a", 0o755, b"12345");
        archive.file("bin/b", 0o644, b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let heads = bytes.windows(6).enumerate().filter(|(_, window)| window == b"070701");
        let heads: Vec<_> = heads.map(|(at, _)| at).collect();
        // The directory once, two files and the trailer.
        assert_eq!(heads.len(), 4);
        assert!(heads.iter().all(|at| at % 4 == 0));
    }
}
