//! Who the peer of a finished handshake is.

use std::sync::Arc;
use std::time::SystemTime;

use culvert_core::identity::{DEFAULT_TRUST_DOMAIN, Identity};
use rustls_pki_types::CertificateDer;
use smallvec::SmallVec;
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::certificate::system_time;

/// A certificate of the mesh has one; more than this many URI names are not looked at.
const MAX_URI_NAMES: usize = 16;

/// The trust domains whose identities count as the mesh's own: its own one and the aliases (Istio's
/// `trustDomainAliases`: names that the trust domain had before a migration).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomains {
    own: Arc<str>,
    aliases: Vec<Arc<str>>,
}

impl TrustDomains {
    /// The domain `own`, also known as `aliases`.
    pub fn new(own: impl Into<Arc<str>>, aliases: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self { own: own.into(), aliases: aliases.into_iter().collect() }
    }

    /// Whether `domain` is the mesh's own.
    pub fn contains(&self, domain: &str) -> bool {
        *self.own == *domain || self.aliases.iter().any(|alias| **alias == *domain)
    }
}

impl Default for TrustDomains {
    fn default() -> Self {
        Self::new(DEFAULT_TRUST_DOMAIN, [])
    }
}

/// Why the peer of a handshake is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The handshake ended without one.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// It cannot be parsed.
    #[error("the peer's certificate cannot be parsed")]
    Malformed,
    /// It is not in its period of validity. A resumed session can outlive the certificate it began with.
    #[error("the peer's certificate {0} is expired or not yet valid; check the clocks of both nodes")]
    NotValidNow(Box<str>),
    /// It names no workload.
    #[error("the peer's certificate has no URI name of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
    NoIdentity,
    /// It is from another mesh.
    #[error("the peer {0} is not in this mesh's trust domain; if it should be, add the domain to trustDomainAliases")]
    ForeignTrustDomain(Identity),
    /// It is someone else.
    #[error("expected the peer to be {expected}, but it is {actual}; the address may have moved to another pod")]
    Unexpected {
        /// Who was expected, separated by commas.
        expected: Box<str>,
        /// Who answered.
        actual: Identity,
    },
}

/// The identity of the peer that presented `chain`, leaf first: its first URI name that is one.
///
/// To be called after every handshake, resumed ones too: TLS does not look at the certificate again when a session is
/// resumed. The chain's signatures have been verified in the full handshake; here the period of validity, the shape of
/// the name and the trust domain are.
///
/// # Errors
/// When the certificate is not valid at `now`, or is not of a workload of `trusted`.
pub fn verify_peer(
    chain: &[CertificateDer<'_>],
    trusted: &TrustDomains,
    now: SystemTime,
) -> Result<Identity, PeerError> {
    let mut identities = valid_identities(chain, now)?.into_iter();
    let first = identities.next().ok_or(PeerError::NoIdentity)?;
    if trusted.contains(&first.trust_domain) {
        return Ok(first);
    }
    // One name in the trust domain is enough to be let in (ztunnel), and only such a name may then be acted upon.
    match identities.find(|identity| trusted.contains(&identity.trust_domain)) {
        Some(identity) => Ok(identity),
        None => Err(PeerError::ForeignTrustDomain(first)),
    }
}

/// The one of `expected` that the server which presented `chain` is.
///
/// To be called by the client after every handshake, resumed ones too. An expected identity may be of another trust
/// domain: a ServiceEntry's `subjectAltNames` say so on purpose.
///
/// # Errors
/// When the certificate is not valid at `now`, or none of its identities is expected.
pub fn verify_server(
    chain: &[CertificateDer<'_>],
    expected: &[Arc<Identity>],
    now: SystemTime,
) -> Result<Identity, PeerError> {
    let identities = valid_identities(chain, now)?;
    let is_expected = |identity: &&Identity| expected.iter().any(|e| **e == **identity);
    if let Some(identity) = identities.iter().find(is_expected) {
        return Ok(identity.clone());
    }
    let actual = identities.into_iter().next().ok_or(PeerError::NoIdentity)?;
    let expected = expected.iter().map(|e| e.to_string()).collect::<Vec<_>>().join(", ");
    Err(PeerError::Unexpected { expected: expected.into(), actual })
}

/// Every workload identity in the leaf of `chain`, in its order; at most 16 names are looked at.
///
/// # Errors
/// When there is no certificate or it cannot be parsed.
pub fn peer_identities(chain: &[CertificateDer<'_>]) -> Result<SmallVec<[Identity; 1]>, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| PeerError::Malformed)?;
    let names = leaf.valid_uri_names().take(MAX_URI_NAMES);
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// When the leaf of `chain` ends; `None` if it cannot be parsed.
pub(super) fn not_after(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
    Some(system_time(leaf.validity().not_after.timestamp()))
}

fn valid_identities(chain: &[CertificateDer<'_>], now: SystemTime) -> Result<SmallVec<[Identity; 1]>, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| PeerError::Malformed)?;
    let identities = peer_identities(chain)?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let validity = parsed.validity();
    let valid = i64::try_from(now)
        .is_ok_and(|now| (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now));
    if !valid {
        let name = identities.first().map_or_else(|| "(of no workload)".to_owned(), Identity::to_string);
        return Err(PeerError::NotValidNow(name.into()));
    }
    Ok(identities)
}
