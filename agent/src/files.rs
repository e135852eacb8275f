//! Files that are written whole or not at all, and read only as far as they should go.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}

/// Puts a file in the place of another in one step, on disk before anyone sees it. `from` may be bytes, or a file
/// however large.
pub(crate) fn write_atomically(path: &Path, mut from: impl Read, mode: u32) -> io::Result<()> {
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
pub(crate) fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
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
pub(crate) fn make_private_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// A removed file is as good as none.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::ops::Deref;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// An empty directory of a test's own, deleted with the value.
    pub(crate) struct TempDir(PathBuf);

    impl TempDir {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let name = format!("culvert-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }

        pub(crate) fn write(&self, name: &str, text: &str) {
            fs::write(self.0.join(name), text).unwrap();
        }

        pub(crate) fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Deref for TempDir {
        type Target = Path;

        fn deref(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::TempDir;
    use super::*;

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let directory = TempDir::new();
        let path = directory.join("file");
        fs::write(&path, [0; 11]).unwrap();
        assert!(read_bounded(&path, 10).is_err());
        assert_eq!(read_bounded(&path, 11).unwrap().len(), 11);
    }

    #[test]
    fn what_is_written_replaces_the_whole_and_leaves_nothing_beside_it() {
        let directory = TempDir::new();
        let path = directory.join("file");
        write_atomically(&path, &b"a longer text"[..], 0o600).unwrap();
        write_atomically(&path, &b"short"[..], 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(&*directory).unwrap().count(), 1);
    }
}
