//! Who signs workload certificates, and which roots and revocations the mesh trusts.
//!
//! [`CertificateAuthority`] is the seam between the certificates in use ([`crate::identity`]) and where they come
//! from: a directory in Istio's `cacerts` form ([`DirectoryCa`]) or, on a cluster, the CA service ([`ServiceCa`]): the
//! controller's, which signs with an [`Authority`], or istiod's.

mod authority;
mod create;
mod csr;
mod directory;
mod files;
mod issue;
mod material;
mod proto;
mod service;
mod trust;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use culvert_core::identity::Identity;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

pub use authority::Authority;
pub(crate) use create::root as new_root;
pub use csr::{CertificateRequest, CsrProblem, MAX_CSR};
pub use directory::DirectoryCa;
pub use material::{CA_CERT, CA_CRL, CA_KEY, CERT_CHAIN, Material, Origin, ROOT_CERT};
pub(crate) use proto::CREATE_CERTIFICATE;
pub use proto::{IstioCertificateRequest, IstioCertificateResponse};
pub use service::{Asker, ServiceCa, ServiceOptions};
pub(crate) use trust::unix_time;
pub use trust::{TrustBundle, Usage};

/// A future that owns what it needs, as an object-safe trait returns it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a certificate authority is asked to sign.
#[derive(Clone, Debug)]
pub struct SigningRequest {
    /// The certificate signing request, PEM: an empty subject and one critical URI SAN, the identity.
    pub csr: String,
    /// Whom the certificate is for. The authority signs this, whatever the CSR says.
    pub identity: Identity,
    /// How long the certificate is to be valid; an authority may give less.
    pub ttl: Duration,
}

/// A signed certificate.
#[derive(Clone, Debug)]
pub struct SignedCertificate {
    /// The leaf, then the intermediates that lead to a root; the root itself is left out.
    pub chain: Vec<CertificateDer<'static>>,
}

/// Signs workload certificates and says whom the mesh trusts.
pub trait CertificateAuthority: Send + Sync {
    /// Signs `request`.
    ///
    /// # Errors
    /// When the authority is out of reach, refuses, or cannot use its own key.
    fn sign(&self, request: SigningRequest) -> BoxFuture<'_, Result<SignedCertificate, CaError>>;

    /// The roots and revocations in force; changes when they do.
    fn trust(&self) -> watch::Receiver<Arc<TrustBundle>>;
}

/// `certificate` in PEM (RFC 7468).
pub fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.as_ref()), config)
}

/// Why a certificate authority cannot be used. Each message is one line that names the file and the cure.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file could not be read or written.
    #[error("{place}: {source}; {cure}")]
    Io {
        /// The file or directory, and the flag that names it.
        place: String,
        /// What the system says.
        source: std::io::Error,
        /// What to do about it.
        cure: &'static str,
    },
    /// A file is there but says something unusable.
    #[error("{place}: {problem}; {cure}")]
    File {
        /// The file, and the flag or the object that it belongs to.
        place: String,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// The request cannot be signed.
    #[error("the certificate request for {identity} was refused: {problem}")]
    Refused {
        /// Whom it was for.
        identity: Identity,
        /// Why.
        problem: String,
    },
    /// The authority is out of reach; worth another attempt.
    #[error("the certificate authority does not answer: {0}")]
    Unavailable(String),
}
