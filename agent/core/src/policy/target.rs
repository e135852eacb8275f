//! What policies with `targetRefs` are attached to.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::workload::NamespacedName;

/// An object that a policy is attached to; always of the policy's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum PolicyTarget {
    /// A Service: what is asked of it.
    Service(Arc<str>),
    /// A ServiceEntry: what is asked of its hosts.
    ServiceEntry(Arc<str>),
    /// A waypoint: everything that it is asked for.
    Gateway(Arc<str>),
    /// The class of waypoints, from the root namespace: everything that any of them is asked for.
    Waypoints,
}

/// Why nothing enforces a policy for one of its targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub enum NotBound {
    /// The target is not there.
    #[error("{0} is not there: create it, or correct targetRefs")]
    NoTarget(Box<str>),
    /// The target has no waypoint.
    #[error("{0} has no waypoint: label it, or its namespace, with istio.io/use-waypoint")]
    NoWaypoint(Box<str>),
    /// The target's waypoint is not there.
    #[error("the waypoint {gateway} of {target} is not there: create it, for instance by istioctl waypoint apply")]
    WaypointMissing {
        /// The target.
        target: Box<str>,
        /// The waypoint.
        gateway: NamespacedName,
    },
    /// The target's waypoint does not take it.
    #[error("the waypoint {gateway} does not allow the namespace of {target} to use it: see its allowedRoutes")]
    NotAllowed {
        /// The target.
        target: Box<str>,
        /// The waypoint.
        gateway: NamespacedName,
    },
    /// The target's waypoint does not serve services.
    #[error("the waypoint {gateway} of {target} does not serve services: see its label istio.io/waypoint-for")]
    NotServed {
        /// The target.
        target: Box<str>,
        /// The waypoint.
        gateway: NamespacedName,
    },
}

impl fmt::Display for PolicyTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::ServiceEntry(name) => write!(f, "ServiceEntry {name}"),
            Self::Gateway(name) => write!(f, "Gateway {name}"),
            Self::Waypoints => f.write_str("every waypoint"),
        }
    }
}
