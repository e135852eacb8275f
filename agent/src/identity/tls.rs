//! The TLS configurations of a workload: TLS 1.3, mutual, as ztunnel and Envoy waypoints speak it.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, Tls12Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme, version,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::sync::watch;

use super::peer::{PeerError, TrustDomains, peer_identities};
use super::sessions::ClientSessions;
use super::{Clock, verify_peer};
use crate::ca::{TrustBundle, Usage, unix_time};

/// The protocol that tunnels speak (RFC 9113 §3.1).
const ALPN_H2: &[u8] = b"h2";

/// The cipher suites and groups of the mesh, the preferred ones first.
///
/// AES only, as in ztunnel: every machine that matters does it in hardware. The hybrid group protects what is recorded
/// today from the quantum computers of tomorrow; the classical ones are for peers that do not know it.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The crypto of the mesh.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    &PROVIDER
}

/// What the configurations of all identities have in common. Whom they trust is looked up at each handshake: a root or
/// a revocation counts from the moment that it is known, whenever the configurations are made anew.
#[derive(Debug)]
pub(super) struct Template {
    time: Arc<WallTime>,
    verifier: Arc<MeshVerifier>,
}

impl Template {
    pub(super) fn new(
        trust: watch::Receiver<Arc<TrustBundle>>,
        domains: watch::Receiver<Arc<TrustDomains>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { time: Arc::new(WallTime(clock)), verifier: Arc::new(MeshVerifier { trust, domains }) }
    }

    /// The roots and revocations in force now.
    pub(super) fn trust(&self) -> Arc<TrustBundle> {
        self.verifier.trust.borrow().clone()
    }

    /// For accepting tunnels with `key`. Its tickets are sealed with a secret of its own: no other configuration, not
    /// even the next one of the same identity, resumes them.
    pub(super) fn server(&self, key: &Arc<CertifiedKey>) -> Result<Arc<ServerConfig>, rustls::Error> {
        let mut config = ServerConfig::builder_with_details(provider().clone(), self.time.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(self.verifier.clone())
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // Tickets carry the state, so that nothing is kept for clients that never come back.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.send_tls13_tickets = 1;
        // The tunnel protects records itself; see `hbone::record`.
        config.enable_secret_extraction = true;
        Ok(Arc::new(config))
    }

    /// For opening tunnels with `key`.
    pub(super) fn client(&self, key: &Arc<CertifiedKey>) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut config = ClientConfig::builder_with_details(provider().clone(), self.time.clone())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier.clone())
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.enable_sni = false;
        // The tunnel protects records itself; see `hbone::record`.
        config.enable_secret_extraction = true;
        config.resumption =
            Resumption::store(Arc::new(ClientSessions::default())).tls12_resumption(Tls12Resumption::Disabled);
        Ok(Arc::new(config))
    }
}

/// Verifies peers by their chain and identity. Whether a server is the *expected* one is for the caller to say, since
/// configurations are shared by connections to everywhere.
struct MeshVerifier {
    trust: watch::Receiver<Arc<TrustBundle>>,
    domains: watch::Receiver<Arc<TrustDomains>>,
}

impl MeshVerifier {
    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        // Out of the channel first: signatures take long enough for a writer to mind.
        let trust = self.trust.borrow().clone();
        verify_parts(&trust, leaf, intermediates, usage, now)
    }

    fn domains(&self) -> Arc<TrustDomains> {
        self.domains.borrow().clone()
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for MeshVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Every client of the mesh has one certificate: there is nothing to choose by hints.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify_chain(leaf, intermediates, Usage::Client, now)?;
        let at = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        verify_peer(std::slice::from_ref(leaf), &self.domains(), at).map_err(refused)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is never spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ServerCertVerifier for MeshVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify_chain(leaf, intermediates, Usage::Server, now)?;
        match peer_identities(std::slice::from_ref(leaf)) {
            Ok(identities) if !identities.is_empty() => Ok(ServerCertVerified::assertion()),
            Ok(_) => Err(refused(PeerError::NoIdentity)),
            Err(error) => Err(refused(error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is never spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl fmt::Debug for MeshVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshVerifier").finish_non_exhaustive()
    }
}

/// Checks `chain`, leaf first, as every handshake does.
pub(super) fn verify_chain(
    trust: &TrustBundle,
    chain: &[CertificateDer<'_>],
    usage: Usage,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    verify_parts(trust, leaf, intermediates, usage, now)
}

fn verify_parts(
    trust: &TrustBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    usage: Usage,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    trust
        .verify(leaf, intermediates, usage, now, &provider().signature_verification_algorithms)
        .map_err(|error| rustls::Error::InvalidCertificate(certificate_error(error)))
}

fn refused(error: PeerError) -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// The errors that have an alert of their own, and the rest with their words.
fn certificate_error(error: webpki::Error) -> CertificateError {
    match error {
        webpki::Error::BadDer | webpki::Error::BadDerTime => CertificateError::BadEncoding,
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}

/// `clock` as rustls takes it.
pub(crate) fn wall_time(clock: Arc<dyn Clock>) -> Arc<dyn TimeProvider> {
    Arc::new(WallTime(clock))
}

/// Hands a [`Clock`] to rustls.
#[derive(Debug)]
struct WallTime(Arc<dyn Clock>);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now()))
    }
}
