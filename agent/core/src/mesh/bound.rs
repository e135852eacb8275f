//! Which services with a waypoint a workload is behind: what comes to it may have to come through one of theirs.

use std::sync::Arc;

use super::snapshot::ServiceState;
use super::{Endpoint, Mesh, Snapshot};
use crate::service::{Service, ServiceKey};
use crate::workload::WorkloadUid;

impl Mesh {
    /// Notes which services with a waypoint `uid` is behind. To be told whenever it is behind others, or when one of
    /// those gets or loses its waypoint.
    pub(super) fn note_bound(&mut self, uid: &WorkloadUid) {
        let services = self.workloads.get(uid).map(|state| state.services.as_slice()).unwrap_or_default();
        let is_bound = |key: &&ServiceKey| {
            self.current.services.get(*key).is_some_and(|state: &ServiceState| state.service.waypoint.is_some())
        };
        let mut bound: Vec<ServiceKey> = services.iter().filter(is_bound).cloned().collect();
        // Whatever order they came in, the same objects give the same snapshot.
        bound.sort();
        if bound.is_empty() {
            self.current.bound.remove(uid);
        } else if self.current.bound.get(uid).is_none_or(|known| **known != *bound) {
            self.current.bound.insert(uid.clone(), bound.into());
        }
    }
}

impl Snapshot {
    /// The services with a waypoint that a workload is behind, and what it is there.
    pub fn bound_services(&self, uid: &WorkloadUid) -> impl Iterator<Item = (&Arc<Service>, &Endpoint)> {
        let keys = self.bound.get(uid).map(|keys| &**keys).unwrap_or_default();
        keys.iter().filter_map(|key| {
            let state = self.services.get(key)?;
            Some((&state.service, state.endpoints.get(uid)?))
        })
    }

    /// Who is behind a service, by its own name.
    pub fn endpoint(&self, key: &ServiceKey, uid: &WorkloadUid) -> Option<&Endpoint> {
        self.services.get(key)?.endpoints.get(uid)
    }
}

impl Endpoint {
    /// Whether a port of the service leads to `port` of the workload.
    pub fn is_reached_at(&self, port: u16) -> bool {
        self.ports.iter().any(|(_, target)| *target == port)
    }
}
