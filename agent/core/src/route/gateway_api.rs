//! What the routes of Gateway API are told about themselves: whether a parent takes them, and whether what they name
//! is there (Gateway API, `RouteParentStatus`).

use serde::Serialize;

/// What a parent thinks of a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParentStatus {
    /// The parent, as the route names it.
    pub parent: ParentRef,
    /// The condition `Accepted`.
    pub accepted: Condition,
    /// The condition `ResolvedRefs`.
    pub resolved_refs: Condition,
}

/// A condition, without the times that a writer adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Whether it holds.
    pub status: bool,
    /// Why, as Gateway API calls it.
    pub reason: &'static str,
    /// Why, in one line.
    pub message: String,
}

/// A parent, as a route names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ParentRef {
    /// Its API group; empty for the core group.
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace; `None` for the route's own.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The part of it.
    pub section_name: Option<String>,
    /// The port of it.
    pub port: Option<i32>,
}

impl Condition {
    /// It holds.
    pub(crate) fn holds(reason: &'static str) -> Self {
        Self { status: true, reason, message: String::new() }
    }

    /// It does not.
    pub(crate) fn fails(reason: &'static str, message: impl Into<String>) -> Self {
        Self { status: false, reason, message: message.into() }
    }
}
