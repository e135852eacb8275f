//! Signing with an authority in Istio's `cacerts` form.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::csr::CertificateRequest;
use super::issue::Signer;
use super::material::{CA_CERT, CA_CRL, CA_KEY, CERT_CHAIN, Material, Origin, ROOT_CERT};
use super::trust::unix_time;
use super::{CaError, SignedCertificate, SigningRequest, TrustBundle, Usage};

/// Nodes' clocks differ: a certificate is valid a little before it was made (as Istio does it).
const CLOCK_SKEW: Duration = Duration::from_secs(2 * 60);

/// What signs, and what is trusted.
pub struct Authority {
    signer: Signer,
    intermediates: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    origin: Origin,
    trust: Arc<TrustBundle>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority made of `material`, once it is proven that it works: what it signs at `now` must lead to one of
    /// its roots.
    ///
    /// # Errors
    /// One line that names the file and the cure.
    pub fn new(material: &Material, now: SystemTime) -> Result<Self, CaError> {
        let origin = &material.origin;
        let roots = certificates(origin, ROOT_CERT, &material.root_cert)?;
        if roots.is_empty() {
            let cure = "put every root that the mesh trusts there, in PEM";
            return Err(origin.bad(ROOT_CERT, "holds no certificate", cure));
        }
        let lists = revocation_lists(&material.ca_crl)
            .map_err(|problem| origin.bad(CA_CRL, problem, "replace it with X509 CRLs in PEM, or delete it"))?;
        let trust = TrustBundle::new(roots, &lists).map_err(|(file, problem)| {
            origin.bad(file, problem, "replace it with certificates or lists in PEM, as openssl writes them")
        })?;

        let [ca_cert] = <[_; 1]>::try_from(certificates(origin, CA_CERT, &material.ca_cert)?).map_err(|found| {
            origin.bad(
                CA_CERT,
                format!("holds {} certificates instead of one", found.len()),
                "leave only the signing certificate there; the way to the root belongs in cert-chain.pem",
            )
        })?;
        let key = key(origin, &material.ca_key)?;
        let (signer, not_after) = signer(origin, &ca_cert, key, now)?;
        let chain = certificates(origin, CERT_CHAIN, &material.cert_chain)?;
        let mut intermediates = Vec::new();
        for certificate in std::iter::once(ca_cert).chain(chain) {
            // Everyone has the roots already: sending them in every handshake is waste.
            if !trust.roots().contains(&certificate) && !intermediates.contains(&certificate) {
                intermediates.push(certificate);
            }
        }
        let authority = Self { signer, intermediates, not_after, origin: origin.clone(), trust: Arc::new(trust) };
        authority.prove(now)?;
        Ok(authority)
    }

    /// The roots and revocations that come with it.
    pub fn trust(&self) -> &Arc<TrustBundle> {
        &self.trust
    }

    /// When its signing certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Signs `request` with a validity that begins at `now`.
    ///
    /// # Errors
    /// When the CSR cannot be used, or the authority has expired.
    pub fn sign(&self, request: &SigningRequest, now: SystemTime) -> Result<SignedCertificate, CaError> {
        let refused = |problem: String| CaError::Refused { identity: request.identity.clone(), problem };
        let csr = CertificateRequest::parse(&request.csr).map_err(|e| refused(e.to_string()))?;
        // The CSR is believed in nothing but the key: who it is for, and for how long, is the caller's word.
        let name = request.identity.to_string().try_into().map_err(|e| refused(format!("its name: {e}")))?;
        let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(vec![SanType::URI(name)], &both, &csr.key, request.ttl, now)?.map_err(refused)
    }

    /// A certificate for `key`, with which a TLS server answers to the DNS names `names`.
    ///
    /// # Errors
    /// When a name is none, or the authority has expired.
    pub fn sign_server(
        &self,
        names: &[String],
        key: &KeyPair,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<SignedCertificate, CaError> {
        let problem = |e: String| self.origin.bad(CA_KEY, e, "give the server DNS names that a certificate can have");
        let names = names.iter().map(|name| Ok(SanType::DnsName(name.as_str().try_into()?)));
        let names = names.collect::<Result<_, rcgen::Error>>().map_err(|e| problem(e.to_string()))?;
        self.issue(names, &[ExtendedKeyUsagePurpose::ServerAuth], key, ttl, now)?.map_err(problem)
    }

    fn issue(
        &self,
        names: Vec<SanType>,
        usages: &[ExtendedKeyUsagePurpose],
        key: &impl PublicKeyData,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Result<SignedCertificate, String>, CaError> {
        if self.not_after <= now {
            let cure = "replace ca-cert.pem and cert-chain.pem by newer ones";
            return Err(self.origin.bad(CA_CERT, "has expired", cure));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.not_before = (now - CLOCK_SKEW).into();
        params.not_after = (now + ttl).min(self.not_after).into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        Ok(self.signer.sign(&params, key).map(|leaf| {
            let mut chain = vec![leaf];
            chain.extend(self.intermediates.iter().cloned());
            SignedCertificate { chain }
        }))
    }

    /// Signs a certificate for nobody and verifies it as a peer would.
    fn prove(&self, now: SystemTime) -> Result<(), CaError> {
        let unusable = |problem: String| {
            self.origin.bad(
                ROOT_CERT,
                problem,
                "root-cert.pem must hold the root of ca-cert.pem, and cert-chain.pem every certificate between them",
            )
        };
        let key = KeyPair::generate().map_err(|e| unusable(e.to_string()))?;
        let signed = self.sign_server(&["probe.invalid".to_owned()], &key, Duration::from_secs(60), now)?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        let (leaf, intermediates) = signed.chain.split_first().ok_or_else(|| unusable("signs nothing".to_owned()))?;
        self.trust
            .verify(leaf, intermediates, Usage::Server, unix_time(now), &algorithms)
            .map_err(|e| unusable(format!("what ca-key.pem signs does not lead to a root here ({e})")))
    }
}

/// What signs as `certificate`, once it is sure that it may, at `now`, and that `key` is its key; and when that ends.
fn signer(
    origin: &Origin,
    certificate: &CertificateDer<'_>,
    key: KeyPair,
    now: SystemTime,
) -> Result<(Signer, SystemTime), CaError> {
    let cure = "replace it with a CA certificate (basicConstraints CA:TRUE, keyUsage keyCertSign)";
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|e| origin.bad(CA_CERT, format!("cannot be parsed: {e}"), cure))?;
    if !parsed.is_ca() {
        return Err(origin.bad(CA_CERT, "is not a CA certificate", cure));
    }
    if parsed.key_usage().is_ok_and(|usage| usage.is_some_and(|usage| !usage.value.key_cert_sign())) {
        return Err(origin.bad(CA_CERT, "may not sign certificates", cure));
    }
    if *parsed.public_key().subject_public_key.data != *key.der_bytes() {
        let cure = "put the private key there that ca-cert.pem was made for";
        return Err(origin.bad(CA_KEY, "is not the key of ca-cert.pem", cure));
    }
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    if not_after <= now {
        let problem = format!("expired on {}", parsed.validity().not_after);
        return Err(origin.bad(CA_CERT, problem, "replace ca-cert.pem and cert-chain.pem by newer ones"));
    }
    Ok((Signer::new(&parsed, key), not_after))
}

fn key(origin: &Origin, text: &[u8]) -> Result<KeyPair, CaError> {
    let cure = "put an RSA or EC private key there, in PEM and without a pass phrase";
    let key =
        PrivateKeyDer::from_pem_slice(text).map_err(|_| origin.bad(CA_KEY, "holds no private key in PEM", cure))?;
    // What exactly is wrong with a key is not for the log.
    KeyPair::try_from(&key).map_err(|_| origin.bad(CA_KEY, "cannot be used as a private key", cure))
}

fn certificates(origin: &Origin, file: &'static str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CaError> {
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|e| origin.bad(file, format!("is not PEM: {e:?}"), "replace it with certificates in PEM"))
}

/// The revocation lists in `text`, the contents of a `ca-crl.pem`.
///
/// # Errors
/// When it is there and holds none: a list that vanished would un-revoke in silence, so an empty file is no empty list.
pub(super) fn revocation_lists(text: &Option<Vec<u8>>) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let Some(text) = text else { return Ok(Vec::new()) };
    let lists = CertificateRevocationListDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let lists = lists.map_err(|e| format!("is not PEM: {e:?}"))?;
    if lists.is_empty() { Err("holds no revocation list".to_owned()) } else { Ok(lists) }
}
