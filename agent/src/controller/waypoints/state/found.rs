//! An object as the API server has it: whose it is, and whether it is what was applied last.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use culvert_core::workload::NamespacedName;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use crate::controller::waypoints::merge::merge;
use crate::controller::waypoints::part::Part;

/// The annotation that says what was applied: a hash of it. The next leader need not write it again.
pub(in crate::controller::waypoints) const APPLIED: &str = "culvert.dev/applied";

/// An object that is there.
#[derive(Clone, Debug)]
pub(in crate::controller::waypoints) struct Found {
    pub(in crate::controller::waypoints) uid: String,
    /// The UID of the Gateway that it belongs to.
    pub(in crate::controller::waypoints) owner: Option<String>,
    /// What was applied last.
    pub(in crate::controller::waypoints) applied: Option<String>,
    version: Option<u64>,
    /// What it says, beside its status; and what it said when it was applied, or first seen.
    seen: u64,
    known: u64,
    /// Whether it says now what it did not when it was seen before.
    pub(super) is_changed: bool,
    /// What else of it counts: a Deployment's status, a Service's addresses.
    pub(in crate::controller::waypoints) object: Value,
}

impl Found {
    /// As a watch shows it; `before` is how it was.
    pub(super) fn new(part: Part, object: &DynamicObject, before: Option<&Self>) -> Self {
        let mut found = Self::as_applied(part, object);
        if let Some(before) = before.filter(|before| before.uid == found.uid && before.applied == found.applied) {
            found.known = before.known;
            found.is_changed = found.seen != before.seen;
        }
        found
    }

    /// As the API server answers.
    pub(super) fn as_applied(part: Part, object: &DynamicObject) -> Self {
        let seen = fingerprint(part, object);
        Self {
            uid: object.uid().unwrap_or_default(),
            version: version(object),
            owner: owner(object),
            applied: object.annotations().get(APPLIED).cloned(),
            seen,
            known: seen,
            is_changed: false,
            object: json!({"spec": object.data["spec"], "status": object.data["status"]}),
        }
    }

    /// Whether `object` is how it was before this: what is applied is known before the watch has caught up.
    pub(super) fn is_newer_than(&self, object: &DynamicObject) -> bool {
        let is_same = object.uid().as_deref() == Some(&*self.uid);
        is_same && self.version.zip(version(object)).is_some_and(|(own, other)| own > other)
    }

    /// Whether `wanted` has been applied to it, and nobody has changed it since.
    pub(super) fn is_as(&self, wanted: &Value) -> bool {
        self.applied.as_deref() == Some(&mark(wanted)) && self.seen == self.known
    }
}

fn version(object: &DynamicObject) -> Option<u64> {
    object.resource_version()?.parse().ok()
}

/// The UID of the Gateway that an object belongs to.
pub(in crate::controller::waypoints) fn owner(object: &DynamicObject) -> Option<String> {
    let mut owners = object.owner_references().iter();
    owners.find(|owner| owner.kind == "Gateway").map(|owner| owner.uid.clone())
}

/// `wanted` with the annotation that says so.
pub(super) fn marked(mut wanted: Value) -> Value {
    let mark = mark(&wanted);
    merge(&mut wanted, &json!({"metadata": {"annotations": {(APPLIED): mark}}}));
    wanted
}

fn mark(wanted: &Value) -> String {
    format!("{:016x}", hash(wanted))
}

/// What others may have changed: all that is applied, but not what scaling changes.
fn fingerprint(part: Part, object: &DynamicObject) -> u64 {
    let mut spec = object.data["spec"].clone();
    if let (Part::Deployment, Some(fields)) = (part, spec.as_object_mut()) {
        fields.remove("replicas");
    }
    let owners = json!(object.owner_references());
    hash(&json!([spec, object.labels(), owners]))
}

/// The same for one version of Culvert only; after an upgrade everything is applied once.
fn hash(value: &Value) -> u64 {
    let mut hash = DefaultHasher::new();
    value.to_string().hash(&mut hash);
    hash.finish()
}

/// What tells people which object is meant.
pub(in crate::controller::waypoints) fn tell(part: Part, name: &NamespacedName) -> String {
    format!("{} {name}", part.resource().kind)
}
