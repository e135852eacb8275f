//! Which waypoint serves a workload or service, and what it takes from whom.

mod own;
mod target;

use std::sync::Arc;

use serde::Serialize;

use crate::workload::NamespacedName;

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

/// From which namespaces a waypoint may be bound (`allowedRoutes.namespaces`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub enum AllowedRoutes {
    /// Its own.
    #[default]
    Same,
    /// Every one.
    All,
    /// Those whose labels match every pair.
    Selector(crate::workload::Labels),
}
