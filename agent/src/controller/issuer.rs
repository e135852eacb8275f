//! `istio.v1.auth.IstioCertificateService`: who may have which certificate, and signing it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use culvert_core::identity::Identity;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::caller::{self, Caller};
use super::keys::Keys;
use super::listener::Peer;
use super::metrics::Metrics;
use super::options::Options;
use super::placement::Placement;
use super::refusal::Refusal;
use super::shares::Shares;
use crate::ca::{
    CertificateRequest, IstioCertificateRequest, IstioCertificateResponse, SigningRequest, certificate_pem,
};
use crate::identity::Clock;

/// What a certificate is given when its request does not say, and the most it is given (Istio
/// `DEFAULT_WORKLOAD_CERT_TTL`, `MAX_WORKLOAD_CERT_TTL`).
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const MAX_TTL: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// The least: below this a node's clock that is off by minutes makes every certificate useless.
const MIN_TTL: Duration = Duration::from_secs(60);
/// Requests that are worked on at once; the others wait for their turn, and for their deadline.
const MAX_AT_ONCE: usize = 64;
/// How long a request may wait and take. Agents give up after 20 s.
const DEADLINE: Duration = Duration::from_secs(15);

/// Signs certificates for those who may have them. Cloning is cheap; all clones are one.
#[derive(Clone)]
pub(super) struct Issuer(Arc<Inner>);

struct Inner {
    client: kube::Client,
    keys: Keys,
    options: Options,
    placement: Placement,
    trusted: BTreeSet<String>,
    metrics: Metrics,
    clock: Arc<dyn Clock>,
    shares: Shares,
    slots: Semaphore,
}

impl Issuer {
    /// An issuer that lets the accounts `trusted`, `namespace/name`, ask for the pods of their own node.
    pub(super) fn new(
        client: kube::Client,
        keys: Keys,
        options: Options,
        placement: Placement,
        trusted: BTreeSet<String>,
        metrics: Metrics,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let slots = Semaphore::new(MAX_AT_ONCE);
        let shares = Shares::default();
        Self(Arc::new(Inner { client, keys, options, placement, trusted, metrics, clock, shares, slots }))
    }

    /// Answers `CreateCertificate`.
    pub(super) async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.0.metrics.asked();
        let peer = request.extensions().get::<Peer>().copied();
        let answer = tokio::time::timeout(DEADLINE, self.answer(&request, peer)).await.unwrap_or(Err(Refusal::Busy));
        match answer {
            Ok((identity, response)) => {
                self.0.metrics.signed();
                tracing::debug!(%identity, ?peer, "signed a certificate");
                Ok(Response::new(response))
            }
            Err(refusal) => Err(self.refuse(&refusal, peer)),
        }
    }

    /// A request came that could not even be read.
    pub(super) fn unread(&self, peer: Option<Peer>, why: &str) {
        self.0.metrics.asked();
        self.refuse(&Refusal::Unread(why.to_owned()), peer);
    }

    fn refuse(&self, refusal: &Refusal, peer: Option<Peer>) -> Status {
        self.0.metrics.refused(refusal);
        tracing::warn!(reason = refusal.reason(), ?peer, "refused a certificate: {}", printable(refusal));
        refusal.status()
    }

    async fn answer(
        &self,
        request: &Request<IstioCertificateRequest>,
        peer: Option<Peer>,
    ) -> Result<(Identity, IstioCertificateResponse), Refusal> {
        let Inner { client, keys, options, clock, shares, slots, .. } = &*self.0;
        let token = caller::token(request.metadata())?;
        caller::glance(token)?;
        // First its own place, so that whoever asks much waits for itself, and then one of all.
        let _share = match peer {
            Some(peer) => Some(shares.enter(peer.0.ip()).await),
            None => None,
        };
        let _slot = slots.acquire().await.map_err(|_| Refusal::Busy)?;
        let caller = caller::review(client, token).await?;
        let trust_domain = options.trust_domain().ok_or(Refusal::NoOptions)?;
        let message = request.get_ref();
        let identity = self.authorize(&caller, message.impersonated(), &trust_domain).await?;
        let csr = CertificateRequest::parse(&message.csr)?;
        if let Some(named) = csr.uri.filter(|named| *named != identity.to_string()) {
            return Err(Refusal::CsrName { identity, named });
        }
        let current = keys.current().map_err(Refusal::NoAuthority)?;
        let ttl = ttl(message.validity_duration);
        let asked = SigningRequest { csr: message.csr.clone(), identity: identity.clone(), ttl };
        let signed = current.authority.sign(&asked, clock.now())?;
        let mut cert_chain: Vec<String> = signed.chain.iter().map(|certificate| certificate_pem(certificate)).collect();
        // The roots come last, as istiod sends them; ztunnel takes what it trusts from there.
        cert_chain.push(current.roots.clone());
        Ok((identity, IstioCertificateResponse { cert_chain }))
    }

    /// The identity that `caller` is given: its own, or the one it asks for and may have.
    async fn authorize(&self, caller: &Caller, asked: Option<&str>, trust_domain: &str) -> Result<Identity, Refusal> {
        let own = Identity::new(trust_domain, caller.namespace.as_str(), caller.account.as_str());
        let Some(asked) = asked else { return Ok(own) };
        let identity: Identity =
            asked.parse().map_err(|_| Refusal::NotAnIdentity(asked.chars().take(256).collect()))?;
        if *identity.trust_domain != *trust_domain {
            return Err(Refusal::TrustDomain { identity, own: trust_domain.to_owned() });
        }
        if identity == own {
            return Ok(own);
        }
        let account = caller.full_name();
        if !self.0.trusted.contains(&account) {
            return Err(Refusal::NotTrusted { account, identity: identity.to_string() });
        }
        let Some((pod, uid)) = &caller.pod else { return Err(Refusal::Unbound(account)) };
        let node = self.0.placement.node_of(&caller.namespace, pod, uid).await?;
        if self.0.placement.runs_on(&node, &identity.namespace, &identity.service_account).await? {
            return Ok(identity);
        }
        let caller = format!("{}/{pod} ({account})", caller.namespace);
        Err(Refusal::OtherNode { caller, node: node.to_string(), identity })
    }
}

/// How long a certificate is given for which `seconds` were asked.
fn ttl(seconds: i64) -> Duration {
    match u64::try_from(seconds) {
        Ok(0) | Err(_) => DEFAULT_TTL,
        Ok(seconds) => Duration::from_secs(seconds).clamp(MIN_TTL, MAX_TTL),
    }
}

/// `refusal` as one line, whatever strangers put into names.
fn printable(refusal: &Refusal) -> String {
    refusal.to_string().chars().take(1000).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_is_a_day_unless_asked_and_ninety_days_at_the_most() {
        for (asked, given) in [
            (0, DEFAULT_TTL),
            (-1, DEFAULT_TTL),
            (i64::MIN, DEFAULT_TTL),
            (1, MIN_TTL),
            (3600, Duration::from_secs(3600)),
            (91 * 86400, MAX_TTL),
            (i64::MAX, MAX_TTL),
        ] {
            assert_eq!(ttl(asked), given, "{asked}");
        }
    }
}
