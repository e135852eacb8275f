//! The mesh's authority, used behind the agent's back: certificates for peers of another make, and for impostors.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};

const HOUR: Duration = Duration::from_secs(3600);

/// What signs.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    directory: Option<PathBuf>,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) serial: SerialNumber,
}

/// A certificate and its key in files, beside the root.
pub(crate) struct LeafFiles {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) root: PathBuf,
}

impl Authority {
    /// The one an agent keeps in `--ca-dir`.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let read = |file: &str| fs::read_to_string(directory.join(file)).with_context(|| format!("no {file}"));
        let key = KeyPair::from_pem(&read("ca-key.pem")?)?;
        let issuer = Issuer::from_ca_cert_pem(&read("ca-cert.pem")?, key)?;
        Ok(Self { issuer, root: read("root-cert.pem")?, directory: Some(directory.to_owned()) })
    }

    /// One for `--ca-dir` that ends soon.
    pub(crate) fn create(directory: &Path, lifetime: Duration) -> Result<()> {
        fs::create_dir_all(directory)?;
        let key = KeyPair::generate()?;
        let now = SystemTime::now();
        let mut params = root_params();
        (params.not_before, params.not_after) = ((now - HOUR).into(), (now + lifetime).into());
        let root = params.self_signed(&key)?.pem();
        let files = [
            ("ca-key.pem", key.serialize_pem()),
            ("ca-cert.pem", root.clone()),
            ("cert-chain.pem", root.clone()),
            ("root-cert.pem", root),
        ];
        files.into_iter().try_for_each(|(name, text)| Ok(fs::write(directory.join(name), text)?))
    }

    /// One that nobody trusts.
    pub(crate) fn unknown() -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = root_params();
        let root = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), root, directory: None })
    }

    /// The root, in PEM.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// A certificate for `identity`, valid for an hour.
    pub(crate) fn issue(&self, identity: &str) -> Result<Leaf> {
        let now = SystemTime::now();
        self.issue_between(identity, now - HOUR, now + HOUR)
    }

    /// One whose hour is over.
    pub(crate) fn issue_expired(&self, identity: &str) -> Result<Leaf> {
        let now = SystemTime::now();
        self.issue_between(identity, now - 2 * HOUR, now - HOUR)
    }

    fn issue_between(&self, identity: &str, from: SystemTime, until: SystemTime) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        let (params, serial) = params(identity, from, until)?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Leaf { certificate, key: key.serialize_pem(), serial })
    }

    /// Puts certificates with these serials on the revocation list beside the CA.
    pub(crate) fn revoke(&self, leaf: &Leaf) -> Result<()> {
        let now = SystemTime::now();
        let revoked = RevokedCertParams {
            serial_number: leaf.serial.clone(),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + HOUR).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer)?.pem()?;
        let directory = self.directory.as_ref().context("an authority without a directory revokes nothing")?;
        let part = directory.join(".ca-crl.pem.part");
        fs::write(&part, list)?;
        Ok(fs::rename(part, directory.join("ca-crl.pem"))?)
    }
}

impl Leaf {
    /// Signed by itself.
    pub(crate) fn self_signed(identity: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let now = SystemTime::now();
        let (params, serial) = params(identity, now - HOUR, now + HOUR)?;
        Ok(Self { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem(), serial })
    }

    /// Writes it to files called after `name`.
    pub(crate) fn write(&self, directory: &Path, name: &str, root: &str) -> Result<LeafFiles> {
        let write = |suffix: &str, text: &str| -> Result<PathBuf> {
            let path = directory.join(format!("{name}-{suffix}.pem"));
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        Ok(LeafFiles {
            certificate: write("cert", &self.certificate)?,
            key: write("key", &self.key)?,
            root: write("root", root)?,
        })
    }
}

fn root_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params(identity: &str, from: SystemTime, until: SystemTime) -> Result<(CertificateParams, SerialNumber)> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
    (params.not_before, params.not_after) = (from.into(), until.into());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let serial = SerialNumber::from(rand_serial());
    params.serial_number = Some(serial.clone());
    Ok((params, serial))
}

/// Unique in this process, which is all that a short-lived authority needs.
fn rand_serial() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0x0100_0000_0001);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
