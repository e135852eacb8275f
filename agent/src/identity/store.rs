//! The certificates of every identity on the node.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::renewal::{self, Shared, Slot};
use super::tls::Template;
use super::{CertificateReport, Clock, SystemClock, TrustDomains, TrustWatch, WorkloadCertificate};
use crate::ca::{CaError, CertificateAuthority};

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

/// The certificates of every identity on the node. Cloning is cheap; all clones are one store, which ends with the last.
#[derive(Clone)]
pub struct CertificateStore(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    /// Where renewal runs, whichever thread asks for a certificate first.
    runtime: Handle,
    /// Bounded by the pods of the node.
    kept: RwLock<HashMap<Arc<Identity>, Kept>>,
}

/// One identity's certificate and the task that keeps it fresh, which ends with it.
struct Kept {
    slot: watch::Receiver<Slot>,
    task: AbortHandle,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Always the current certificate of one identity, without a lookup.
#[derive(Clone, Debug)]
pub struct CertificateHandle(watch::Receiver<Slot>);

impl CertificateHandle {
    /// The certificate in use; `None` before the first. Keeps the last one after the identity was forgotten.
    pub fn current(&self) -> Option<Arc<WorkloadCertificate>> {
        self.0.borrow().certificate.clone()
    }
}

impl CertificateStore {
    /// A store that has its certificates signed by `authority`. Renews them on the tokio runtime that this is called in.
    pub fn new(authority: Arc<dyn CertificateAuthority>, options: StoreOptions) -> Self {
        let domains = watch::Sender::new(Arc::new(options.trust_domains));
        let template = Template::new(authority.trust(), domains.subscribe(), options.clock.clone());
        let shared = Shared { authority, ttl: options.ttl, clock: options.clock, domains, template };
        Self(Arc::new(Inner { shared: Arc::new(shared), runtime: Handle::current(), kept: RwLock::default() }))
    }

    /// The certificate of `identity`, waiting for the first attempt to get one. However many callers wait, the
    /// authority is asked once. From here on it is renewed in the background until [`forget`](Self::forget).
    ///
    /// # Errors
    /// When the attempt failed; it is repeated in the background, so a later call may succeed.
    pub async fn fetch(&self, identity: &Identity) -> Result<Arc<WorkloadCertificate>, FetchError> {
        let mut slot = self.slot(identity);
        let settled = slot
            .wait_for(|slot| slot.certificate.is_some() || slot.error.is_some())
            .await
            .map_err(|_| FetchError::Forgotten(identity.clone()))?;
        match (&settled.certificate, &settled.error) {
            (Some(certificate), _) => Ok(certificate.clone()),
            (None, Some(error)) => Err(FetchError::Authority { identity: identity.clone(), error: error.clone() }),
            (None, None) => Err(FetchError::Forgotten(identity.clone())),
        }
    }

    /// The certificate of `identity`, if there is one.
    pub fn current(&self, identity: &Identity) -> Option<Arc<WorkloadCertificate>> {
        self.0.kept.read().unwrap_or_else(PoisonError::into_inner).get(identity)?.slot.borrow().certificate.clone()
    }

    /// Always the current certificate of `identity`; begins to fetch it if that has not been done.
    pub fn handle(&self, identity: &Identity) -> CertificateHandle {
        CertificateHandle(self.slot(identity))
    }

    /// Drops the certificate of `identity` and stops renewing it: its last pod has left the node.
    pub fn forget(&self, identity: &Identity) {
        let forgotten = self.0.kept.write().unwrap_or_else(PoisonError::into_inner).remove(identity);
        if forgotten.is_some() {
            tracing::debug!(%identity, "forgot the certificate");
        }
    }

    /// Whom the mesh trusts. When it changes, what is live is to be judged again.
    pub fn trust(&self) -> TrustWatch {
        TrustWatch { bundle: self.0.shared.authority.trust(), domains: self.0.shared.domains.subscribe() }
    }

    /// Whose identities are the mesh's own, as the mesh options say now.
    pub fn trust_domains(&self) -> Arc<TrustDomains> {
        self.0.shared.domains.borrow().clone()
    }

    /// Follows a change of the mesh options, from the next handshake on.
    pub fn set_trust_domains(&self, domains: TrustDomains) {
        self.0.shared.domains.send_replace(Arc::new(domains));
    }

    /// The clock that certificates are judged by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.shared.clock
    }

    /// What can be told of every certificate, ordered by identity.
    pub fn report(&self) -> Vec<CertificateReport> {
        let now = self.0.shared.clock.now();
        let kept = self.0.kept.read().unwrap_or_else(PoisonError::into_inner);
        let mut report: Vec<_> =
            kept.iter().map(|(identity, kept)| report(identity, &kept.slot.borrow(), now)).collect();
        drop(kept);
        report.sort_by(|a, b| a.identity.cmp(&b.identity));
        report
    }

    fn slot(&self, identity: &Identity) -> watch::Receiver<Slot> {
        if let Some(kept) = self.0.kept.read().unwrap_or_else(PoisonError::into_inner).get(identity) {
            return kept.slot.clone();
        }
        let identity = Arc::new(identity.clone());
        match self.0.kept.write().unwrap_or_else(PoisonError::into_inner).entry(identity.clone()) {
            Entry::Occupied(kept) => kept.get().slot.clone(),
            Entry::Vacant(vacant) => {
                let (sender, slot) = watch::channel(Slot::default());
                let keep = renewal::keep(self.0.shared.clone(), identity, sender);
                let task = self.0.runtime.spawn(keep).abort_handle();
                vacant.insert(Kept { slot: slot.clone(), task });
                slot
            }
        }
    }
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateStore").finish_non_exhaustive()
    }
}

fn report(identity: &Identity, slot: &Slot, now: SystemTime) -> CertificateReport {
    let certificate = slot.certificate.as_deref();
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    CertificateReport {
        identity: identity.to_string(),
        state: match (certificate, &slot.error) {
            (_, Some(_)) => "failing",
            (Some(_), None) => "ready",
            (None, None) => "pending",
        },
        serial: certificate.map(|c| c.serial.clone()),
        not_before: certificate.map(|c| seconds(c.not_before)),
        not_after: certificate.map(|c| seconds(c.not_after)),
        expires_in: certificate.map(|c| c.remaining(now).as_secs()),
        error: slot.error.as_ref().map(ToString::to_string),
    }
}
