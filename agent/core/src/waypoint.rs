//! Which waypoint serves a workload or service, and what it takes from whom.

mod canary;
mod namespaces;
mod own;
mod target;

use std::sync::Arc;

use serde::Serialize;

use crate::workload::NamespacedName;

pub use canary::{Canary, CanaryProblem};
pub use namespaces::{AllowedRoutes, Requirement};
pub use own::{Unplaced, own_workload};
pub use target::{Addressed, NotServed, SessionTarget};

/// The waypoint that labels bind a workload or service to. A binding says what was asked for; whether the waypoint
/// exists is decided per connection, so that a missing one is refused rather than bypassed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct WaypointBinding {
    /// The Gateway.
    pub gateway: NamespacedName,
    /// Whether a missing waypoint may be bypassed (annotation `culvert.dev/missing-waypoint: bypass` on the namespace
    /// of the bound object), as Istio does.
    pub bypass_if_missing: bool,
    /// Whether what does not come through it is refused at the destination (annotation
    /// `culvert.dev/require-waypoint: "true"` on the bound object or its namespace).
    pub required: bool,
    /// The waypoint that takes a share of the connections to a service.
    pub canary: Option<Arc<Canary>>,
}

impl WaypointBinding {
    /// The waypoints that connections may come through: the one that is meant, and the one that takes a share.
    pub fn gateways(&self) -> impl Iterator<Item = &NamespacedName> {
        let canary = self.canary.iter().filter(|canary| canary.share.is_ok()).map(|canary| &canary.gateway);
        std::iter::once(&self.gateway).chain(canary)
    }
}

/// What a waypoint serves (`istio.io/waypoint-for`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WaypointFor {
    /// Traffic addressed to services.
    #[default]
    Service,
    /// Traffic addressed to workloads.
    Workload,
    /// Both.
    All,
    /// Nothing.
    None,
}

/// A waypoint: a Gateway of class `istio-waypoint`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waypoint {
    /// The Gateway.
    pub gateway: NamespacedName,
    /// What it serves.
    pub serves: WaypointFor,
    /// The service that its pods are behind: `<gateway name>.<namespace>.svc.<cluster domain>`.
    pub service: Arc<str>,
    /// The port of its HBONE listener.
    pub port: u16,
    /// From which namespaces it may be bound.
    pub allowed_routes: AllowedRoutes,
    /// Whether it tells applications who their client is, in `x-forwarded-client-cert` (annotation
    /// `ambient.istio.io/xfcc-include-client-identity: "true"` on the Gateway).
    pub tells_client: bool,
}
