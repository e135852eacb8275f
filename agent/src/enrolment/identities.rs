//! How many pods need each identity's certificate: the last to go takes it along.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use culvert_core::identity::Identity;

use crate::identity::CertificateStore;

/// Counts the pods of each identity. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Identities(Arc<Mutex<HashMap<Arc<Identity>, usize>>>);

/// A pod that needs a certificate, from before it is asked for until the pod is gone.
pub(super) struct Needed {
    identities: Identities,
    certificates: CertificateStore,
    identity: Arc<Identity>,
}

impl Identities {
    /// Counts one more pod of `identity`, until the guard goes.
    pub(super) fn need(&self, identity: &Arc<Identity>, certificates: &CertificateStore) -> Needed {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(identity.clone()).or_default() += 1;
        Needed { identities: self.clone(), certificates: certificates.clone(), identity: identity.clone() }
    }
}

impl Needed {
    /// Whose certificate.
    pub(super) fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }
}

impl Drop for Needed {
    fn drop(&mut self) {
        // Held to the end: a pod that came between the count and the forgetting would be left without.
        let mut counts = self.identities.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = counts.get_mut(&self.identity) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(&self.identity);
            self.certificates.forget(&self.identity);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::testing::{Root, ScriptedCa};
    use crate::identity::{StoreOptions, SystemClock};

    #[tokio::test]
    async fn a_certificate_stays_as_long_as_any_pod_needs_it_taken_in_or_not() {
        let ca = ScriptedCa::new(&Root::new("root"), Arc::new(SystemClock));
        let certificates = CertificateStore::new(ca, StoreOptions::default());
        let (identities, identity) = (Identities::default(), Arc::new(Identity::new("cluster.local", "shop", "cart")));
        let first = identities.need(&identity, &certificates);
        certificates.fetch(&identity).await.unwrap();
        // The second is on its way in when the first leaves.
        let second = identities.need(&identity, &certificates);
        certificates.fetch(&identity).await.unwrap();
        drop(first);
        assert!(certificates.current(&identity).is_some());
        // It never gets in, and is deleted.
        drop(second);
        assert!(certificates.current(&identity).is_none() && certificates.report().is_empty());
    }
}
