//! Which pods belong to the mesh, and the steps by which one is taken in or let go.
//!
//! [`eligibility`] decides by [`EnrolmentRules`]; [`Enrolment`] is the life of one pod on its node: which step comes next and,
//! when one fails, what has to be undone. What a step does to the kernel is the agent's affair.

mod cgroup;
mod eligibility;
mod machine;
mod rules;

pub use cgroup::{is_in_container, is_in_pod};
pub use eligibility::{
    BYPASS_INBOUND_ANNOTATION, DATAPLANE_MODE_LABEL, DNS_CAPTURE_ANNOTATION, Enrol, Lookup, PodTraits,
    SIDECAR_STATUS_ANNOTATION, Why, eligibility,
};
pub use machine::{Action, Enrolment, Step};
pub use rules::{
    DEFAULT_EXCLUDED_NAMESPACES, EnablementSelector, EnrolmentRules, LabelSelector, Operator, Requirement, RulesError,
};
