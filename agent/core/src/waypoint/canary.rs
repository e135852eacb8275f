//! The waypoint on trial: it takes a share of the connections to a service (`istio.io/use-waypoint-canary`).

use serde::Serialize;

use crate::workload::NamespacedName;

/// A second waypoint of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Canary {
    /// The Gateway.
    pub gateway: NamespacedName,
    /// Its share of the new connections, in per cent: 0 to 100 (`istio.io/use-waypoint-canary-weight`).
    ///
    /// # Errors
    /// Why it takes none.
    pub share: Result<u8, CanaryProblem>,
}

/// Why a canary takes no connection: all go to the waypoint beside which it was put.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
pub enum CanaryProblem {
    /// Its share is none.
    #[error("the canary {0} takes nothing: annotate istio.io/use-waypoint-canary-weight with an integer from 0 to 100")]
    InvalidWeight(NamespacedName),
    /// It is the waypoint itself.
    #[error("the canary {0} is the waypoint itself: name another with istio.io/use-waypoint-canary")]
    SameAsPrimary(NamespacedName),
    /// It is not there.
    #[error("the canary {0} is not there: create that Gateway, or remove istio.io/use-waypoint-canary")]
    Missing(NamespacedName),
    /// It does not take the service's namespace.
    #[error("the canary {0} does not allow the namespace to use it: see its allowedRoutes")]
    NotAllowed(NamespacedName),
    /// It does not serve services.
    #[error("the canary {0} does not serve services: see its label istio.io/waypoint-for")]
    NotServed(NamespacedName),
}

impl CanaryProblem {
    /// As Istio calls it in the condition `istio.io/WaypointBound`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidWeight(_) => "CanaryInvalidWeight",
            Self::SameAsPrimary(_) => "CanarySameAsPrimary",
            Self::Missing(_) => "WaypointIsNotReady",
            Self::NotAllowed(_) => "AttachmentDenied",
            Self::NotServed(_) => "UnsupportedTrafficType",
        }
    }
}
