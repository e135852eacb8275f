//! Reading a directory in Istio's `cacerts` form, and signing with what it holds.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::issue::Signer;
use super::trust::unix_time;
use super::{CaError, SignedCertificate, SigningRequest, TrustBundle, Usage};

/// The signing certificate.
pub(super) const CA_CERT: &str = "ca-cert.pem";
/// Its private key.
pub(super) const CA_KEY: &str = "ca-key.pem";
/// The certificates from the signing certificate to a root; may be empty.
pub(super) const CERT_CHAIN: &str = "cert-chain.pem";
/// Every root that the mesh trusts.
pub(super) const ROOT_CERT: &str = "root-cert.pem";
/// Revocation lists; optional.
pub(super) const CA_CRL: &str = "ca-crl.pem";

/// The files that must be there.
pub(super) const REQUIRED: [&str; 4] = [CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT];

/// Nodes' clocks differ: a certificate is valid a little before it was made (as Istio does it).
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 60);

/// The largest file that is read: revocation lists of big installations reach a few MB.
const MAX_FILE: u64 = 16 << 20;

const FOUR_FILES: &str = "put ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem there, or give an empty \
                          directory to have them created";

/// What identifies the state of the files without reading them: changes whenever one of them is written or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp([Option<FileStamp>; 5]);

/// Device, inode, size, and the times of the last change of content and of the inode.
type FileStamp = (u64, u64, u64, i64, i64);

/// The stamp of the files in `directory` now.
pub(super) fn stamp(directory: &Path) -> Stamp {
    Stamp([CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT, CA_CRL].map(|name| {
        let meta = std::fs::metadata(directory.join(name)).ok()?;
        Some((meta.dev(), meta.ino(), meta.size(), meta.mtime() * 1_000_000_000 + meta.mtime_nsec(), meta.ctime_nsec()))
    }))
}

/// A loaded authority: what signs, and what is trusted.
pub(super) struct Loaded {
    signer: Signer,
    intermediates: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    path: PathBuf,
    pub(super) trust: Arc<TrustBundle>,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Reads the authority in `directory` and proves that it works: what it signs at `now` must lead to one of its roots.
///
/// # Errors
/// One line that names the file and the cure.
pub(super) fn load(directory: &Path, now: SystemTime) -> Result<Loaded, CaError> {
    let roots = certificates(directory, ROOT_CERT)?;
    if roots.is_empty() {
        return Err(bad(
            directory,
            ROOT_CERT,
            "holds no certificate",
            "put every root that the mesh trusts there, in PEM",
        ));
    }
    let lists = revocation_lists(directory)?;
    let trust = TrustBundle::new(roots, &lists).map_err(|(file, problem)| {
        bad(directory, file, problem, "replace it with certificates or lists in PEM, as openssl writes them")
    })?;

    let [ca_cert] = <[_; 1]>::try_from(certificates(directory, CA_CERT)?).map_err(|found| {
        bad(
            directory,
            CA_CERT,
            format!("holds {} certificates instead of one", found.len()),
            "leave only the signing certificate there; the way to the root belongs in cert-chain.pem",
        )
    })?;
    let key = key(directory)?;
    let (signer, not_after) = signer(directory, &ca_cert, key, now)?;
    let mut intermediates = Vec::new();
    for certificate in std::iter::once(ca_cert).chain(certificates(directory, CERT_CHAIN)?) {
        // Everyone has the roots already: sending them in every handshake is waste.
        if !trust.roots().contains(&certificate) && !intermediates.contains(&certificate) {
            intermediates.push(certificate);
        }
    }
    let loaded = Loaded { signer, intermediates, not_after, path: directory.to_owned(), trust: Arc::new(trust) };
    loaded.prove(now)?;
    Ok(loaded)
}

impl Loaded {
    /// Signs `request` with a validity that begins at `now`.
    pub(super) fn sign(&self, request: &SigningRequest, now: SystemTime) -> Result<SignedCertificate, CaError> {
        let refused = |problem: String| CaError::Refused { identity: request.identity.clone(), problem };
        let csr = CertificateSigningRequestParams::from_pem(&request.csr)
            .map_err(|e| refused(format!("the CSR cannot be used: {e}")))?;
        if self.not_after <= now {
            return Err(bad(
                &self.path,
                CA_CERT,
                "has expired",
                "replace ca-cert.pem and cert-chain.pem by newer ones",
            ));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // The CSR is believed in nothing but the key: who it is for, and for how long, is the caller's word.
        let name = request.identity.to_string().try_into().map_err(|e| refused(format!("its name: {e}")))?;
        params.subject_alt_names = vec![SanType::URI(name)];
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + request.ttl).min(self.not_after).into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let mut chain = vec![self.signer.sign(&params, &csr.public_key).map_err(refused)?];
        chain.extend(self.intermediates.iter().cloned());
        Ok(SignedCertificate { chain })
    }

    /// Signs a certificate for nobody and verifies it as a peer would.
    fn prove(&self, now: SystemTime) -> Result<(), CaError> {
        let unusable = |problem: String| {
            bad(
                &self.path,
                ROOT_CERT,
                problem,
                "root-cert.pem must hold the root of ca-cert.pem, and cert-chain.pem every certificate between them",
            )
        };
        let key = KeyPair::generate().map_err(|e| unusable(e.to_string()))?;
        let identity = culvert_core::identity::Identity::new("probe.invalid", "none", "none");
        let csr = CertificateParams::default().serialize_request(&key).and_then(|csr| csr.pem());
        let csr = csr.map_err(|e| unusable(e.to_string()))?;
        let signed = self.sign(&SigningRequest { csr, identity, ttl: Duration::from_secs(60) }, now)?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        let (leaf, intermediates) = signed.chain.split_first().ok_or_else(|| unusable("signs nothing".to_owned()))?;
        self.trust
            .verify(leaf, intermediates, Usage::Server, unix_time(now), &algorithms)
            .map_err(|e| unusable(format!("what ca-key.pem signs does not lead to a root here ({e})")))
    }
}

/// What signs as `certificate`, once it is sure that it may, at `now`, and that `key` is its key; and when that ends.
fn signer(
    directory: &Path,
    certificate: &CertificateDer<'_>,
    key: KeyPair,
    now: SystemTime,
) -> Result<(Signer, SystemTime), CaError> {
    let cure = "replace it with a CA certificate (basicConstraints CA:TRUE, keyUsage keyCertSign)";
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| bad(directory, CA_CERT, format!("cannot be parsed: {e}"), cure))?;
    if !parsed.is_ca() {
        return Err(bad(directory, CA_CERT, "is not a CA certificate", cure));
    }
    if parsed.key_usage().is_ok_and(|usage| usage.is_some_and(|usage| !usage.value.key_cert_sign())) {
        return Err(bad(directory, CA_CERT, "may not sign certificates", cure));
    }
    if *parsed.public_key().subject_public_key.data != *key.der_bytes() {
        return Err(bad(
            directory,
            CA_KEY,
            "is not the key of ca-cert.pem",
            "put the private key there that ca-cert.pem was made for",
        ));
    }
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    if not_after <= now {
        let problem = format!("expired on {}", parsed.validity().not_after);
        return Err(bad(directory, CA_CERT, problem, "replace ca-cert.pem and cert-chain.pem by newer ones"));
    }
    Ok((Signer::new(&parsed, key), not_after))
}

fn key(directory: &Path) -> Result<KeyPair, CaError> {
    let cure = "put an RSA or EC private key there, in PEM and without a pass phrase";
    let text = read(directory, CA_KEY)?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| bad(directory, CA_KEY, "holds no private key in PEM", cure))?;
    // What exactly is wrong with a key is not for the log.
    KeyPair::try_from(&key).map_err(|_| bad(directory, CA_KEY, "cannot be used as a private key", cure))
}

fn certificates(directory: &Path, file: &'static str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    CertificateDer::pem_slice_iter(&read(directory, file)?)
        .collect::<Result<_, _>>()
        .map_err(|e| bad(directory, file, format!("is not PEM: {e:?}"), "replace it with certificates in PEM"))
}

fn revocation_lists(directory: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, CaError> {
    match read(directory, CA_CRL) {
        Err(CaError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(text) => CertificateRevocationListDer::pem_slice_iter(&text)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| format!("is not PEM: {e:?}"))
            // A list that vanished would un-revoke in silence: an empty file is not an empty list.
            .and_then(|lists| if lists.is_empty() { Err("holds no revocation list".to_owned()) } else { Ok(lists) })
            .map_err(|e| bad(directory, CA_CRL, e, "replace it with X509 CRLs in PEM, or delete it")),
    }
}

fn read(directory: &Path, file: &'static str) -> Result<Vec<u8>, CaError> {
    let path = directory.join(file);
    let io = |source| CaError::Io { path: path.display().to_string(), source, cure: FOUR_FILES };
    let mut text = Vec::new();
    File::open(&path).and_then(|f| f.take(MAX_FILE + 1).read_to_end(&mut text)).map_err(io)?;
    if text.len() as u64 > MAX_FILE {
        return Err(bad(directory, file, "is larger than 16 MiB", "check that it is the file you mean"));
    }
    Ok(text)
}

/// An error about `file`.
pub(super) fn bad(directory: &Path, file: &str, problem: impl std::fmt::Display, cure: &'static str) -> CaError {
    CaError::File { path: directory.join(file).display().to_string(), problem: problem.to_string(), cure }
}
