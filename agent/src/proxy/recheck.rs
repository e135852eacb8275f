//! Asking again whether live connections are allowed, whenever something changed.

use std::net::SocketAddr;

use culvert_core::mesh::Snapshot;
use culvert_core::policy::{Call, authorize};
use culvert_core::route::outbound::outbound;
use culvert_core::workload::{Workload, WorkloadUid};

use super::live::{Admission, Connections, EndReason};

/// Ends every connection of `workload` that the snapshot does not allow any more; returns how many.
///
/// A pod that the snapshot does not know keeps its connections: it drains on its own.
pub fn recheck(snapshot: &Snapshot, workload: &WorkloadUid, connections: &Connections) -> usize {
    let Some(workload) = snapshot.workload(workload) else { return 0 };
    end_unless(connections, |admission| is_allowed(snapshot, workload, admission))
}

/// Ends every connection that was admitted on grounds which do not hold any more; returns how many.
pub fn end_unless(connections: &Connections, holds: impl Fn(&Admission) -> bool) -> usize {
    let ends = connections.list().into_iter().filter(|live| !holds(live.admission()));
    ends.map(|live| live.end(EndReason::PolicyChanged)).count()
}

/// Whether `snapshot` allows `workload` a connection that was admitted on these grounds.
pub fn is_allowed(snapshot: &Snapshot, workload: &Workload, admission: &Admission) -> bool {
    match admission {
        Admission::Inbound { principal, client, source_ip, destination } => {
            let destination: SocketAddr = *destination;
            let call = Call { principal: principal.as_deref(), source_ip: *source_ip, destination };
            authorize(snapshot, workload, &call, client.as_deref()).allowed
        }
        Admission::Outbound { destination } => match outbound(snapshot, workload, *destination, &mut rand::rng()) {
            Ok(_) => true,
            // Running out of ready endpoints does not make a connection to one of them wrong.
            Err(refusal) => !refusal.is_forbidden(),
        },
        Admission::Waypoint(through) => through.is_allowed(snapshot),
    }
}
