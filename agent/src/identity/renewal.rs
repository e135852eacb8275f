//! Getting one identity's certificate, and keeping it fresh.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::certificate::Prepared;
use super::tls::Template;
use super::{Clock, TrustDomains, WorkloadCertificate};
use crate::ca::{CaError, CertificateAuthority, SigningRequest, TrustBundle};

/// The first wait after a failure; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_secs(1);
/// As ztunnel's.
const MAX_BACKOFF: Duration = Duration::from_secs(150);
/// However short-lived the certificates are, the authority is not asked more often.
const MIN_RENEWAL: Duration = Duration::from_secs(1);
/// The longest sleep without a look at the wall clock, which may have been set meanwhile, or the machine suspended.
const MAX_SLEEP: Duration = Duration::from_secs(5 * 60);
/// An authority that does not answer is taken for one that failed.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// What all identities share.
pub(super) struct Shared {
    pub(super) authority: Arc<dyn CertificateAuthority>,
    pub(super) ttl: Duration,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) domains: watch::Sender<Arc<TrustDomains>>,
    pub(super) template: Template,
}

/// What there is for one identity.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// The certificate in use.
    pub(super) certificate: Option<Arc<WorkloadCertificate>>,
    /// Why the last attempt to get a newer one failed.
    pub(super) error: Option<Arc<CaError>>,
}

/// Keeps the certificate of `identity` in `slot` fresh until aborted.
pub(super) async fn keep(shared: Arc<Shared>, identity: Arc<Identity>, slot: watch::Sender<Slot>) {
    let mut trust = shared.authority.trust();
    let mut backoff = MIN_BACKOFF;
    loop {
        trust.mark_unchanged();
        let next = match obtain(&shared, &identity).await {
            Ok(certificate) => {
                tracing::info!(%identity, serial = %certificate.serial, "certificate obtained");
                backoff = MIN_BACKOFF;
                let next = renewal_time(&certificate, shared.clock.now());
                slot.send_modify(|slot| {
                    slot.certificate = Some(Arc::new(certificate));
                    slot.error = None;
                });
                next
            }
            Err(error) => {
                tracing::warn!(%identity, %error, retry_in = ?backoff, "no new certificate");
                slot.send_modify(|slot| slot.error = Some(Arc::new(error)));
                let next = shared.clock.now() + backoff.mul_f64(rand::rng().random_range(0.75..=1.0));
                backoff = (backoff * 2).min(MAX_BACKOFF);
                next
            }
        };
        // Serving goes on with the certificate there is, but no session of an earlier trust is resumed.
        while !sleep_until_wall(&*shared.clock, next, &mut trust).await {
            trust.mark_unchanged();
            if !adopt(&slot, &shared.template, shared.clock.now()) {
                break;
            }
        }
    }
}

/// One attempt.
async fn obtain(shared: &Shared, identity: &Arc<Identity>) -> Result<WorkloadCertificate, CaError> {
    let refused = |problem: String| CaError::Refused { identity: Identity::clone(identity), problem };
    let prepared = Prepared::new(identity).map_err(|e| refused(format!("no key pair: {e}")))?;
    let request = SigningRequest { csr: prepared.csr.clone(), identity: Identity::clone(identity), ttl: shared.ttl };
    let signed = tokio::time::timeout(ANSWER_DEADLINE, shared.authority.sign(request))
        .await
        .map_err(|_| CaError::Unavailable(format!("no answer within {} s", ANSWER_DEADLINE.as_secs())))??;
    prepared.complete(identity.clone(), signed, &shared.template, shared.clock.now()).map_err(refused)
}

/// Half-way through the certificate's life, or a little earlier: the certificates of a node were all made at once, and
/// should not all be renewed at once.
fn renewal_time(certificate: &WorkloadCertificate, now: SystemTime) -> SystemTime {
    let life = certificate.not_after.duration_since(certificate.not_before).unwrap_or_default();
    let fraction = rand::rng().random_range(0.45..=0.5);
    (certificate.not_before + life.mul_f64(fraction)).max(now + MIN_RENEWAL)
}

/// Waits until the wall clock shows `time`; false when the trust changed before.
async fn sleep_until_wall(clock: &dyn Clock, time: SystemTime, trust: &mut watch::Receiver<Arc<TrustBundle>>) -> bool {
    loop {
        let Ok(left) = time.duration_since(clock.now()) else { return true };
        if left.is_zero() {
            return true;
        }
        tokio::select! {
            () = sleep_until(Instant::now() + left.min(MAX_SLEEP)) => {}
            changed = trust.changed() => match changed {
                Ok(()) => return false,
                // The authority is gone; what it said last stays.
                Err(_) => sleep_until(Instant::now() + left.min(MAX_SLEEP)).await,
            },
        }
    }
}

/// Goes on with the certificate in `slot` under the trust of `template`, whether or not another one can be had: peers
/// of an earlier trust must not resume their sessions. False when its own root is no longer trusted: peers would refuse
/// it, so another one is wanted at once.
fn adopt(slot: &watch::Sender<Slot>, template: &Template, now: SystemTime) -> bool {
    let Some(current) = slot.borrow().certificate.clone() else { return true };
    match current.with_fresh_sessions(template) {
        Ok(fresh) => slot.send_modify(|slot| slot.certificate = Some(Arc::new(fresh))),
        // What is resumed under the old configurations is vetted all the same: they say which trust they began with.
        Err(problem) => tracing::warn!(identity = %current.identity, problem, "sessions go on as they were"),
    }
    let acceptable = current.check(template, now);
    if let Err(problem) = &acceptable {
        tracing::warn!(identity = %current.identity, problem, "the roots changed: getting another certificate");
    }
    acceptable.is_ok()
}
