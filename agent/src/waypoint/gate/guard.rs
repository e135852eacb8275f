//! What applies to a target: found once for each snapshot, and looked up for each request.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use culvert_core::authentication::verify::reserved_headers;
use culvert_core::authentication::{KeySource, RequestAuthentication};
use culvert_core::mesh::Snapshot;
use culvert_core::policy::{RequestPolicies, RequestTarget};
use culvert_core::service::ServiceKey;
use culvert_core::workload::NamespacedName;
use http::HeaderName;
use smallvec::SmallVec;

/// What applies to a target.
pub(super) struct Guard {
    pub(super) policies: RequestPolicies,
    pub(super) authentications: SmallVec<[Arc<RequestAuthentication>; 4]>,
    /// Whether keys of any of them are elsewhere.
    pub(super) has_remote_keys: bool,
    /// The headers that only this proxy may set.
    pub(super) reserved: Box<[HeaderName]>,
    /// Whether applications are told who their client is.
    pub(super) tells_client: bool,
}

thread_local! {
    /// Each worker has its own, so that none waits for another.
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// The guards of one snapshot, as far as they were asked for.
#[derive(Default)]
struct Known {
    /// Not kept alive by this.
    snapshot: Weak<Snapshot>,
    gateway: Option<NamespacedName>,
    services: HashMap<ServiceKey, Arc<Guard>>,
    /// Of what is asked for by a workload's own address.
    workloads: Option<Arc<Guard>>,
}

impl Guard {
    /// The guard of `target`.
    pub(super) fn of(snapshot: &Arc<Snapshot>, target: RequestTarget<'_>) -> Arc<Self> {
        KNOWN.with_borrow_mut(|known| {
            // Another snapshot cannot be in the same place as long as the old one is pointed to, alive or not.
            if known.snapshot.as_ptr() != Arc::as_ptr(snapshot) || known.gateway.as_ref() != Some(target.gateway) {
                *known = Known {
                    snapshot: Arc::downgrade(snapshot),
                    gateway: Some(target.gateway.clone()),
                    ..Known::default()
                };
            }
            let found = match target.service {
                Some(service) => known.services.get(&service.key),
                None => known.workloads.as_ref(),
            };
            if let Some(guard) = found {
                return guard.clone();
            }
            let guard = Arc::new(Self::find(snapshot, target));
            match target.service {
                Some(service) => drop(known.services.insert(service.key.clone(), guard.clone())),
                None => known.workloads = Some(guard.clone()),
            }
            guard
        })
    }

    /// Whether every request goes on as it is.
    pub(super) fn is_open(&self) -> bool {
        self.policies.is_open() && self.authentications.is_empty()
    }

    fn find(snapshot: &Snapshot, target: RequestTarget<'_>) -> Self {
        let authentications = snapshot.request_authentications_at(target);
        let mut reserved: Vec<HeaderName> = reserved_headers(&authentications).cloned().collect();
        reserved.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        reserved.dedup();
        let mut rules = authentications.iter().flat_map(|object| &object.rules);
        Self {
            policies: RequestPolicies::of(snapshot, target),
            has_remote_keys: rules.any(|rule| !matches!(rule.keys, KeySource::Inline(_))),
            authentications,
            reserved: reserved.into(),
            tells_client: snapshot.waypoint(target.gateway).is_some_and(|waypoint| waypoint.tells_client),
        }
    }
}
