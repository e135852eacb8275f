//! SPIFFE identities, exactly as Istio writes them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The trust domain a mesh has when its options name none.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// The identity of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Only this shape is accepted (spec: ztunnel `src/identity/manager.rs`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain, without a scheme.
    pub trust_domain: Arc<str>,
    /// The Kubernetes namespace of the service account.
    pub namespace: Arc<str>,
    /// The service account's name.
    pub service_account: Arc<str>,
}

/// Why a string is not a workload identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT")]
pub struct NotAnIdentity(pub String);

impl Identity {
    /// The identity of `service_account` in `namespace` under `trust_domain`.
    pub fn new(
        trust_domain: impl Into<Arc<str>>,
        namespace: impl Into<Arc<str>>,
        service_account: impl Into<Arc<str>>,
    ) -> Self {
        Self { trust_domain: trust_domain.into(), namespace: namespace.into(), service_account: service_account.into() }
    }

    /// The identity without its scheme, the form in which policies name principals.
    pub fn principal(&self) -> String {
        format!("{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(s: &str) -> Result<Self, NotAnIdentity> {
        let parts = || {
            let mut parts = s.strip_prefix("spiffe://")?.split('/');
            let identity = match (parts.next()?, parts.next()?, parts.next()?, parts.next()?, parts.next()?) {
                (td, "ns", ns, "sa", sa) if ![td, ns, sa].contains(&"") => Identity::new(td, ns, sa),
                _ => return None,
            };
            parts.next().is_none().then_some(identity)
        };
        // An identity names a Kubernetes namespace (63), account (253) and a DNS name (255): anything longer is hostile.
        (s.len() <= 1024).then(parts).flatten().ok_or_else(|| NotAnIdentity(s.chars().take(256).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_printing_and_parsing() {
        let id = Identity::new("cluster.local", "shop", "cart");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn other_shapes_are_refused() {
        for bad in [
            "",
            "spiffe://td",
            "cluster.local/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/sa/b/ns/a",
            "spiffe:///ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "SPIFFE://td/ns/a/sa/b",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
