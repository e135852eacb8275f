//! Reading a directory in Istio's `cacerts` form.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use super::CaError;
use super::authority::Authority;
use super::material::{CA_CERT, CA_CRL, CA_KEY, CERT_CHAIN, Material, Origin, ROOT_CERT};

/// The largest file that is read: revocation lists of big installations reach a few MB.
pub(super) const MAX_FILE: u64 = 16 << 20;

const FOUR_FILES: &str = "put ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem there, or give an empty \
                          directory to have them created";

/// What identifies the state of some files without reading them: changes whenever one is written or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp<const N: usize>([Option<FileStamp>; N]);

/// Device, inode, size, and the times of the last change of content and of the inode.
type FileStamp = (u64, u64, u64, i64, i64);

/// The stamp of the files of an authority in `directory` now.
pub(super) fn stamp(directory: &Path) -> Stamp<5> {
    stamp_of([CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT, CA_CRL].map(|name| directory.join(name)))
}

/// The stamp of `files` now.
pub(super) fn stamp_of<const N: usize>(files: [impl AsRef<Path>; N]) -> Stamp<N> {
    Stamp(files.map(|file| {
        let meta = std::fs::metadata(file).ok()?;
        Some((meta.dev(), meta.ino(), meta.size(), meta.mtime() * 1_000_000_000 + meta.mtime_nsec(), meta.ctime_nsec()))
    }))
}

/// The authority in `directory`, proven to work at `now`.
///
/// # Errors
/// One line that names the file and the cure.
pub(super) fn load(directory: &Path, now: SystemTime) -> Result<Authority, CaError> {
    Authority::new(&read(directory)?, now)
}

/// What is in `directory`.
fn read(directory: &Path) -> Result<Material, CaError> {
    let origin = Origin::Directory(directory.to_owned());
    let read = |file| read_file(&directory.join(file), &origin.place(file), FOUR_FILES);
    let ca_crl = match read(CA_CRL) {
        Err(CaError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    Ok(Material {
        root_cert: read(ROOT_CERT)?,
        ca_cert: read(CA_CERT)?,
        ca_key: read(CA_KEY)?,
        cert_chain: read(CERT_CHAIN)?,
        ca_crl,
        origin,
    })
}

/// The contents of the file at `path`, which errors call `place`.
pub(super) fn read_file(path: &Path, place: &str, cure: &'static str) -> Result<Vec<u8>, CaError> {
    let io = |source| CaError::Io { place: place.to_owned(), source, cure };
    let mut text = Vec::new();
    File::open(path).and_then(|f| f.take(MAX_FILE + 1).read_to_end(&mut text)).map_err(io)?;
    if text.len() as u64 > MAX_FILE {
        let problem = "is larger than 16 MiB".to_owned();
        return Err(CaError::File { place: place.to_owned(), problem, cure: "check that it is the file you mean" });
    }
    Ok(text)
}
