//! Whether a server is who a DestinationRule expects.

use std::fmt;
use std::sync::Arc;

use culvert_core::traffic::policy::ClientTls;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::EndEntityCert;

use crate::ca::{TrustBundle, Usage};

/// Verifies a server's chain, and that one of its names is one of those that are accepted.
pub(super) struct Verifier {
    trust: Arc<TrustBundle>,
    settings: Arc<ClientTls>,
    host: Arc<str>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    pub(super) fn new(
        trust: Arc<TrustBundle>,
        settings: Arc<ClientTls>,
        host: Arc<str>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self { trust, settings, host, provider }
    }

    fn is_named(&self, leaf: &EndEntityCert<'_>, name: &ServerName<'_>) -> bool {
        let mut names = leaf.valid_dns_names().chain(leaf.valid_uri_names());
        let by_address = || self.settings.names.is_empty() && matches!(name, ServerName::IpAddress(_));
        names.any(|name| self.settings.accepts(name, &self.host))
            || (by_address() && leaf.verify_is_valid_for_subject_name(name).is_ok())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.settings.insecure {
            return Ok(ServerCertVerified::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        let verified = self.trust.verify(leaf, intermediates, Usage::Server, now, algorithms);
        verified.map_err(|error| match error {
            webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
            webpki::Error::CertExpired { .. } => CertificateError::Expired,
            webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
            webpki::Error::CertRevoked => CertificateError::Revoked,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })?;
        let parsed = EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        match self.is_named(&parsed, name) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("host", &self.host).finish_non_exhaustive()
    }
}
