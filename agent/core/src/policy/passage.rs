//! Whether a call comes through a waypoint of the workload that it reaches, and whether it had to.

use std::fmt;

use super::Call;
use crate::mesh::Snapshot;
use crate::route::outbound::Bound;
use crate::service::ServiceKey;
use crate::waypoint::{WaypointBinding, WaypointFor};
use crate::workload::{NamespacedName, Workload};

/// What a call has to do with the waypoints of its destination.
#[derive(Debug, Default)]
pub(super) struct Passage {
    /// Whether the caller is one of them.
    pub(super) by_waypoint: bool,
    /// The one through which it had to come, and did not.
    pub(super) missed: Option<Missed>,
}

/// A waypoint through which a call had to come, and did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// What asks for it.
    pub bound: Bound,
    /// The waypoint.
    pub gateway: NamespacedName,
}

impl Passage {
    /// Looks at the waypoints of `workload` itself and of the services that lead to the port that is called. Any of them
    /// will do: which service was meant cannot be seen here.
    pub(super) fn of(snapshot: &Snapshot, workload: &Workload, call: &Call<'_>) -> Self {
        let of_services = snapshot
            .bound_services(&workload.uid)
            .filter(|(_, endpoint)| endpoint.is_reached_at(call.destination.port()))
            .filter_map(|(service, _)| Some((service.waypoint.as_ref()?, Bound::Service(service.key.clone()))));
        let own = workload.waypoint.iter().filter(|binding| serves_workloads(snapshot, binding));
        let own = own.map(|binding| (binding, Bound::Workload(workload.namespaced_name())));
        let mut passage = Self::default();
        for (binding, bound) in of_services.chain(own) {
            if is_waypoint(snapshot, binding, &bound, call) {
                return Self { by_waypoint: true, missed: None };
            }
            if binding.required && passage.missed.is_none() {
                passage.missed = Some(Missed { bound, gateway: binding.gateway.clone() });
            }
        }
        passage
    }
}

/// Whether what is addressed to a workload goes to its waypoint. One that is not there may have been meant to.
fn serves_workloads(snapshot: &Snapshot, binding: &WaypointBinding) -> bool {
    let waypoint = snapshot.waypoint(&binding.gateway);
    waypoint.is_none_or(|waypoint| matches!(waypoint.serves, WaypointFor::Workload | WaypointFor::All))
}

/// Whether the caller is the waypoint of `binding`: a pod behind its service, by its address and by its certificate. Of
/// these neither is enough: other pods may run under the waypoint's account.
fn is_waypoint(snapshot: &Snapshot, binding: &WaypointBinding, bound: &Bound, call: &Call<'_>) -> bool {
    let Some(principal) = call.principal else { return false };
    let Some(caller) = snapshot.workload_by_address(call.source_ip) else { return false };
    *caller.identity == *principal
        && binding.gateways().filter_map(|gateway| snapshot.waypoint(gateway)).any(|waypoint| {
            let namespace = waypoint.gateway.namespace.clone();
            let service = ServiceKey { namespace, hostname: waypoint.service.clone() };
            snapshot.endpoint(&service, &caller.uid).is_some() && snapshot.may_bind(waypoint, bound.namespace())
        })
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bound, gateway } = self;
        write!(
            f,
            "{bound} takes connections from waypoint {gateway} alone, and this one is not from a pod of it: call the \
             service from a pod of the mesh, or remove the annotation culvert.dev/require-waypoint"
        )
    }
}

#[cfg(test)]
mod tests;
