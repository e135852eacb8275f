//! From which namespaces a waypoint may be bound.

use std::sync::Arc;

use serde::Serialize;

use crate::workload::Labels;

/// The label by which Kubernetes names a namespace (since 1.21; here in every version, and in files).
const NAME: &str = "kubernetes.io/metadata.name";

/// From which namespaces a waypoint may be bound (`allowedRoutes.namespaces`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub enum AllowedRoutes {
    /// Its own.
    #[default]
    Same,
    /// Every one.
    All,
    /// Those whose labels meet every requirement.
    Selector(Arc<[Requirement]>),
}

/// What a namespace's labels must be (Kubernetes' `LabelSelector`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Requirement {
    /// The label has one of these values.
    In(Arc<str>, Box<[Arc<str>]>),
    /// It has none of them, or is not there.
    NotIn(Arc<str>, Box<[Arc<str>]>),
    /// It is there.
    Exists(Arc<str>),
    /// It is not.
    DoesNotExist(Arc<str>),
}

impl AllowedRoutes {
    /// Whether objects of the namespace `name`, which has `labels` where it is known, may bind a waypoint of `own`.
    pub fn allow(&self, own: &str, name: &str, labels: Option<&Labels>) -> bool {
        match self {
            _ if own == name => true,
            Self::Same => false,
            Self::All => true,
            Self::Selector(requirements) => {
                labels.is_some_and(|labels| requirements.iter().all(|requirement| requirement.holds(name, labels)))
            }
        }
    }
}

impl Requirement {
    fn holds(&self, name: &str, labels: &Labels) -> bool {
        let value = |key: &str| match labels.get(key) {
            None if key == NAME => Some(name),
            value => value.map(|value| &**value),
        };
        let is_one_of =
            |key: &str, values: &[Arc<str>]| value(key).is_some_and(|v| values.iter().any(|one| **one == *v));
        match self {
            Self::In(key, values) => is_one_of(key, values),
            Self::NotIn(key, values) => !is_one_of(key, values),
            Self::Exists(key) => value(key).is_some(),
            Self::DoesNotExist(key) => value(key).is_none(),
        }
    }
}
