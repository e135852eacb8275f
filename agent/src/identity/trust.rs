//! Whom the mesh trusts, and whether it would still let in a peer that it let in before.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::peer::not_after;
use super::tls::verify_chain;
use super::{TlsProblem, TrustDomains};
use crate::ca::{TrustBundle, Usage, unix_time};
use crate::telemetry::ResponseFlags;

/// Whom the mesh trusts at one moment.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The roots and revocations.
    pub bundle: Arc<TrustBundle>,
    /// Whose identities are the mesh's own.
    pub domains: Arc<TrustDomains>,
}

impl Trust {
    /// Whether nothing has been published between `self` and `other`.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.bundle, &other.bundle) && Arc::ptr_eq(&self.domains, &other.domains)
    }
}

/// Whom the mesh trusts, as it changes.
#[derive(Clone, Debug)]
pub struct TrustWatch {
    pub(super) bundle: watch::Receiver<Arc<TrustBundle>>,
    pub(super) domains: watch::Receiver<Arc<TrustDomains>>,
}

impl TrustWatch {
    /// What holds now.
    pub fn now(&self) -> Trust {
        Trust { bundle: self.bundle.borrow().clone(), domains: self.domains.borrow().clone() }
    }

    /// What holds after the next change; `None` once nobody is left to change it.
    pub async fn changed(&mut self) -> Option<Trust> {
        let changed = tokio::select! {
            changed = self.bundle.changed() => changed,
            changed = self.domains.changed() => changed,
        };
        changed.ok()?;
        Some(Trust {
            bundle: self.bundle.borrow_and_update().clone(),
            domains: self.domains.borrow_and_update().clone(),
        })
    }
}

/// What a peer was let in on, to ask again when the mesh trusts others.
///
/// Not whether its certificate is still valid by the clock: what a tunnel carries may outlive the certificate that it
/// began with, as in Istio. What comes later goes through another one, see [`life`](Self::life).
#[derive(Debug)]
pub struct Evidence {
    chain: Box<[CertificateDer<'static>]>,
    usage: Usage,
    /// When it was let in.
    at: SystemTime,
    /// The trust domain of the identity it was let in as, where that was the mesh's own: a server may be expected to be
    /// of another one.
    domain: Option<Arc<str>>,
}

/// Why a peer that was let in would not be any more.
#[derive(Clone, Debug)]
pub enum Distrust {
    /// Its chain leads to no root in force, or something in it is revoked.
    Chain(rustls::Error),
    /// Its trust domain is not the mesh's own any more.
    Domain(Arc<str>),
}

impl Evidence {
    /// Of a peer that presented `chain`, leaf first, for `usage`, and was let in as `identity` at `at`, when `domains`
    /// were the mesh's own.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        usage: Usage,
        at: SystemTime,
        identity: &Identity,
        domains: &TrustDomains,
    ) -> Self {
        let domain = domains.contains(&identity.trust_domain).then(|| identity.trust_domain.clone());
        Self { chain: chain.into(), usage, at, domain }
    }

    /// How long, from when it was let in, the certificate of the peer lasts.
    pub fn life(&self) -> Duration {
        let end = not_after(&self.chain).unwrap_or(self.at);
        end.duration_since(self.at).unwrap_or_default()
    }

    /// Whether the peer would be let in under `trust`.
    ///
    /// # Errors
    /// What speaks against it.
    pub fn check(&self, trust: &Trust) -> Result<(), Distrust> {
        verify_chain(&trust.bundle, &self.chain, self.usage, unix_time(self.at)).map_err(Distrust::Chain)?;
        match &self.domain {
            Some(domain) if !trust.domains.contains(domain) => Err(Distrust::Domain(domain.clone())),
            _ => Ok(()),
        }
    }
}

impl Distrust {
    /// How a connection that ends with this is counted.
    pub fn response_flags(&self) -> ResponseFlags {
        match self {
            Self::Chain(error) => TlsProblem(error).response_flags(),
            Self::Domain(_) => ResponseFlags::IdentityError,
        }
    }
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(error) => TlsProblem(error).fmt(f),
            Self::Domain(domain) => {
                write!(f, "the peer's trust domain {domain} is not the mesh's any more; see trustDomainAliases")
            }
        }
    }
}
