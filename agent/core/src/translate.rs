//! Kubernetes objects into the model, or a typed reason why not; one file per kind.

mod authorization_policy;
pub(crate) mod destination_rule;
pub(crate) mod endpoint_slice;
pub(crate) mod facts;
pub(crate) mod gateway;
pub(crate) mod gateway_route;
pub(crate) mod grpc_route;
pub(crate) mod http_route;
pub(crate) mod intern;
pub(crate) mod l4_route;
pub(crate) mod metadata;
pub(crate) mod namespace;
pub(crate) mod node;
mod peer_authentication;
pub(crate) mod pod;
mod request_authentication;
pub(crate) mod service;
pub(crate) mod service_entry;
pub(crate) mod values;
pub(crate) mod virtual_service;
pub(crate) mod workload_entry;

use std::fmt;

use culvert_api::ObjectRef;
use serde::Serialize;

pub use authorization_policy::authorization_policy;
pub use peer_authentication::peer_authentication;
pub use request_authentication::request_authentication;

pub(crate) use intern::Interner;

/// Something about an object that its author should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The object.
    pub object: ObjectRef,
    /// Where in it: `spec.rules[1].from[0].source.principals[0]`.
    pub field: String,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, what becomes of it, and the cure.
    pub message: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does something else than it seems to.
    Warning,
    /// It, or a part of it, has no effect.
    Error,
}

/// Where the findings of one object go.
pub(crate) struct Findings<'a> {
    pub(crate) object: ObjectRef,
    pub(crate) list: &'a mut Vec<Finding>,
}

impl Finding {
    /// A finding that says that `object`, or a part of it, has no effect.
    pub fn error(object: ObjectRef, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(object, Severity::Error, field.into(), message.into())
    }

    /// A finding that says that `object` does something else than it seems to.
    pub fn warning(object: ObjectRef, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(object, Severity::Warning, field.into(), message.into())
    }

    /// Names and values in it are what anyone wrote: none of them begins a line of its own.
    fn new(object: ObjectRef, severity: Severity, field: String, message: String) -> Self {
        Self { object, field: on_one_line(field), severity, message: on_one_line(message) }
    }
}

/// The text with control characters as they are escaped in Rust.
fn on_one_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{severity}: {}: {}: {}", self.object, self.field, self.message)
    }
}

#[cfg(test)]
mod tests {
    use culvert_api::{Kind, ObjectRef};

    use super::Finding;

    #[test]
    fn a_finding_is_one_line_whatever_an_object_is_called() {
        let object = ObjectRef::new(Kind::VirtualService, "shop", "cart");
        let finding = Finding::error(object, "spec.http[\n0]", "no VirtualService a\u{1b}[31m\nb");
        assert_eq!((&*finding.field, &*finding.message), ("spec.http[\\n0]", "no VirtualService a\\u{1b}[31m\\nb"));
    }
}
