//! Asking again whether live connections are allowed, whenever something changed.

use std::net::SocketAddr;

use culvert_core::mesh::Snapshot;
use culvert_core::policy::{Call, authorize};
use culvert_core::route::outbound::outbound;
use culvert_core::workload::{Workload, WorkloadUid};

use crate::ca::TrustBundle;

use super::live::{Admission, Connections, EndReason, Live};

/// Ends every connection of `workload` that the snapshot does not allow any more; returns how many.
///
/// A pod that the snapshot does not know keeps its connections: it drains on its own.
pub fn recheck(snapshot: &Snapshot, workload: &WorkloadUid, connections: &Connections) -> usize {
    let Some(workload) = snapshot.workload(workload) else { return 0 };
    let mut ended = 0;
    for live in connections.list() {
        if !still_allowed(snapshot, workload, &live) {
            live.end(EndReason::PolicyChanged);
            ended += 1;
        }
    }
    ended
}

/// Ends every connection whose peer's certificate is revoked; returns how many.
pub fn revoke(trust: &TrustBundle, connections: &Connections) -> usize {
    let mut ended = 0;
    for live in connections.list() {
        if let Admission::Inbound { certificate, .. } = live.admission()
            && trust.is_revoked(certificate)
        {
            live.end(EndReason::Revoked);
            ended += 1;
        }
    }
    ended
}

fn still_allowed(snapshot: &Snapshot, workload: &Workload, live: &Live) -> bool {
    match live.admission() {
        Admission::Inbound { principal, source_ip, destination, .. } => {
            let destination: SocketAddr = *destination;
            let call = Call { principal: principal.as_deref(), source_ip: *source_ip, destination };
            authorize(snapshot, workload, &call).allowed
        }
        Admission::Outbound { destination } => match outbound(snapshot, workload, *destination, &mut rand::rng()) {
            Ok(_) => true,
            // Running out of ready endpoints does not make a connection to one of them wrong.
            Err(refusal) => !refusal.is_forbidden(),
        },
    }
}
