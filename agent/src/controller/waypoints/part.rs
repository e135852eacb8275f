//! The objects that a waypoint is made of.

use super::super::follow::Resource;

/// A kind of object of which a waypoint has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    ServiceAccount,
    Service,
    Deployment,
    HorizontalPodAutoscaler,
    PodDisruptionBudget,
}

impl Part {
    /// In the order in which they are made: a pod needs its account first.
    pub(super) const ALL: [Self; 5] = [
        Self::ServiceAccount,
        Self::Service,
        Self::Deployment,
        Self::HorizontalPodAutoscaler,
        Self::PodDisruptionBudget,
    ];

    /// The key under which parameters say what is wanted otherwise of it, as Istio has them.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::ServiceAccount => "serviceAccount",
            Self::Service => "service",
            Self::Deployment => "deployment",
            Self::HorizontalPodAutoscaler => "horizontalPodAutoscaler",
            Self::PodDisruptionBudget => "podDisruptionBudget",
        }
    }

    pub(super) fn resource(self) -> Resource {
        let (group, versions, kind, plural): (_, &[&str], _, _) = match self {
            Self::ServiceAccount => ("", &["v1"], "ServiceAccount", "serviceaccounts"),
            Self::Service => ("", &["v1"], "Service", "services"),
            Self::Deployment => ("apps", &["v1"], "Deployment", "deployments"),
            // Before Kubernetes 1.23 the same was called v2beta2.
            Self::HorizontalPodAutoscaler => {
                ("autoscaling", &["v2", "v2beta2"], "HorizontalPodAutoscaler", "horizontalpodautoscalers")
            }
            // And this v1beta1, before 1.21.
            Self::PodDisruptionBudget => ("policy", &["v1", "v1beta1"], "PodDisruptionBudget", "poddisruptionbudgets"),
        };
        Resource { group, versions, kind, plural }
    }
}
