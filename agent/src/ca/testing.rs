//! Authorities for tests.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use tokio::sync::{Semaphore, watch};

use super::{BoxFuture, CaError, CertificateAuthority, SignedCertificate, SigningRequest, TrustBundle};
pub(crate) use crate::files::testing::TempDir;

/// A CA certificate with its key.
pub(crate) struct Root {
    pub(crate) pem: String,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Root {
    pub(crate) fn new(name: &str) -> Self {
        Self::with_algorithm(name, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    pub(crate) fn with_algorithm(name: &str, algorithm: &'static SignatureAlgorithm) -> Self {
        let params = ca_params(name);
        let key = KeyPair::generate_for(algorithm).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// A CA below this one.
    pub(crate) fn intermediate(&self, name: &str) -> Self {
        let params = ca_params(name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    pub(crate) fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A workload certificate and its key, in PEM, valid from an hour before `now` until `until`.
    pub(crate) fn leaf(
        &self,
        uris: &[&str],
        usages: &[ExtendedKeyUsagePurpose],
        until: SystemTime,
    ) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
        params.not_after = until.into();
        params.extended_key_usages = usages.to_vec();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// A revocation list of this CA with one serial number.
    pub(crate) fn revoke(&self, serial: &[u8]) -> String {
        let now = SystemTime::now();
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// Writes this CA in Istio's form. `chain` and `roots` are PEM.
    pub(crate) fn install(&self, directory: &TempDir, chain: &str, roots: &str) {
        directory.write("ca-cert.pem", &self.pem);
        directory.write("ca-key.pem", &self.key_pem());
        directory.write("cert-chain.pem", chain);
        directory.write("root-cert.pem", roots);
    }
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (SystemTime::now() - Duration::from_secs(86400)).into();
    params.not_after = (SystemTime::now() + Duration::from_secs(100 * 86400)).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// An authority that does as it is told: fails on demand, answers when let, counts what it was asked.
pub(crate) struct ScriptedCa {
    inner: Mutex<Arc<super::authority::Authority>>,
    pub(crate) trust: watch::Sender<Arc<TrustBundle>>,
    pub(crate) failures: Mutex<VecDeque<CaError>>,
    pub(crate) gate: Semaphore,
    pub(crate) asked: AtomicUsize,
    pub(crate) clock: Arc<dyn crate::identity::Clock>,
}

impl ScriptedCa {
    /// An authority that answers at once.
    pub(crate) fn new(root: &Root, clock: Arc<dyn crate::identity::Clock>) -> Arc<Self> {
        Self::gated(root, clock, Semaphore::MAX_PERMITS)
    }

    /// An authority that answers as often as the gate has permits.
    pub(crate) fn gated(root: &Root, clock: Arc<dyn crate::identity::Clock>, permits: usize) -> Arc<Self> {
        let loaded = load(root, &root.pem, &*clock);
        Arc::new(Self {
            trust: watch::Sender::new(loaded.trust().clone()),
            inner: Mutex::new(Arc::new(loaded)),
            failures: Mutex::default(),
            gate: Semaphore::new(permits),
            asked: AtomicUsize::new(0),
            clock,
        })
    }

    /// Signs with `root` and trusts `roots` from now on.
    pub(crate) fn replace(&self, root: &Root, roots: &str) {
        let loaded = load(root, roots, &*self.clock);
        let trust = loaded.trust().clone();
        *self.inner.lock().unwrap() = Arc::new(loaded);
        self.trust.send_replace(trust);
    }

    pub(crate) fn fail_next(&self, times: usize) {
        let failures = (0..times).map(|n| CaError::Unavailable(format!("failure {n}")));
        self.failures.lock().unwrap().extend(failures);
    }
}

fn load(root: &Root, roots: &str, clock: &dyn crate::identity::Clock) -> super::authority::Authority {
    let directory = TempDir::new();
    root.install(&directory, &root.pem, roots);
    super::files::load(directory.path(), clock.now()).unwrap()
}

impl CertificateAuthority for ScriptedCa {
    fn sign(&self, request: SigningRequest) -> BoxFuture<'_, Result<SignedCertificate, CaError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let _permit = self.gate.acquire().await.unwrap();
            if let Some(failure) = self.failures.lock().unwrap().pop_front() {
                return Err(failure);
            }
            let loaded = self.inner.lock().unwrap().clone();
            loaded.sign(&request, self.clock.now())
        })
    }

    fn trust(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.trust.subscribe()
    }
}
