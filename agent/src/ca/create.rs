//! Making a new certificate authority in an empty directory.
//!
//! Several agents may start on one directory at once, and any of them may be killed half-way. A lock file lets one of
//! them work at a time. The files are written into a staging directory, which is renamed once it is complete; then they
//! are moved to their places one by one. Whoever finds a complete staging directory finishes the moves; whoever finds
//! an incomplete one throws it away.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::CaError;
use super::material::{CA_CERT, CA_KEY, CERT_CHAIN, Origin, REQUIRED, ROOT_CERT};

const LOCK: &str = ".culvert-ca.lock";
const INCOMPLETE: &str = ".culvert-ca.incomplete";
const COMPLETE: &str = ".culvert-ca.complete";

/// As long as Istio's self-signed root.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Makes sure that `directory` holds an authority, creating one when it is empty. Returns whether it did.
///
/// # Errors
/// When the directory cannot be written, or holds other things.
pub(super) fn create_if_empty(directory: &Path, now: SystemTime) -> Result<bool, CaError> {
    if !is_wanting(directory) {
        return Ok(false);
    }
    let io = |source| CaError::Io {
        place: format!("--ca-dir: {}", directory.display()),
        source,
        cure: "give a directory that can be written, or one that holds an authority already",
    };
    DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(io)?;
    let lock = File::create(directory.join(LOCK)).map_err(io)?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| io(errno.into()))?;
    // Another agent may have been here while this one waited.
    if !is_wanting(directory) {
        return Ok(false);
    }
    if !directory.join(COMPLETE).exists() {
        refuse_other_things(directory, io)?;
        stage(directory, now).map_err(io)?;
    }
    install(directory).map_err(io)?;
    Ok(true)
}

/// Whether nothing of an authority is there, or one was left half-installed.
fn is_wanting(directory: &Path) -> bool {
    let nothing = !REQUIRED.iter().any(|file| directory.join(file).exists());
    // Looked for last: whoever sees some of the files without it sees the work of an agent that has finished.
    directory.join(COMPLETE).exists() || nothing
}

/// A directory of something else is more likely a slip of the pen than a wish for an authority.
fn refuse_other_things(directory: &Path, io: impl Fn(io::Error) -> CaError) -> Result<(), CaError> {
    for entry in fs::read_dir(directory).map_err(&io)? {
        let name = entry.map_err(&io)?.file_name();
        let is_ours = name.as_encoded_bytes().starts_with(b".") || name == OsStr::new("lost+found");
        if !is_ours {
            return Err(Origin::Directory(directory.to_owned()).bad(
                CA_CERT,
                format!("is missing, and the directory is not empty ({})", name.to_string_lossy()),
                "give an empty directory to have an authority created, or one that holds ca-cert.pem, ca-key.pem, \
                 cert-chain.pem and root-cert.pem",
            ));
        }
    }
    Ok(())
}

fn stage(directory: &Path, now: SystemTime) -> io::Result<()> {
    let staging = directory.join(INCOMPLETE);
    match fs::remove_dir_all(&staging) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(&staging)?;
    let (certificate, key) = root(now).map_err(io::Error::other)?;
    for (file, text, mode) in [
        (CA_KEY, &key, 0o600),
        (CA_CERT, &certificate, 0o644),
        (CERT_CHAIN, &certificate, 0o644),
        (ROOT_CERT, &certificate, 0o644),
    ] {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(staging.join(file))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    fs::rename(staging, directory.join(COMPLETE))?;
    File::open(directory)?.sync_all()
}

fn install(directory: &Path) -> io::Result<()> {
    let staging = directory.join(COMPLETE);
    for file in REQUIRED {
        match fs::rename(staging.join(file), directory.join(file)) {
            // Moved before the agent that began was killed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    File::open(directory)?.sync_all()?;
    fs::remove_dir(staging)
}

/// A self-signed root that is valid from an hour before `now` for ten years, and its key, in PEM.
pub(crate) fn root(now: SystemTime) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Culvert");
    params.distinguished_name.push(DnType::CommonName, "Culvert root");
    params.not_before = (now - Duration::from_secs(60 * 60)).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}
