//! The status of AuthorizationPolicy, RequestAuthentication and PeerAuthentication.

use culvert_api::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use culvert_api::{ObjectError, UnknownField};
use culvert_core::policy::{NotBound, PolicyTarget, Scope};
use culvert_core::service::{Service, ServiceKey};
use culvert_core::translate::{self, Finding, Severity};
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::View;
use super::condition::{Condition, rendered};

/// Whether nodes enforce it.
const NODES: &str = "ZtunnelAccepted";
/// Whether waypoints do.
const WAYPOINTS: &str = "WaypointAccepted";
/// Both: what this module writes, and replaces.
const OURS: [&str; 2] = [NODES, WAYPOINTS];

const ACCEPTED: &str = "Accepted";
const UNSUPPORTED: &str = "UnsupportedValue";
const INVALID: &str = "Invalid";
const NOT_FOUND: &str = "TargetNotFound";
const NOT_BOUND: &str = "AncestorNotBound";
const PARTLY: &str = "PartiallyInvalid";

/// How many findings are told.
const MAX_FINDINGS: usize = 20;

/// The status of a policy that nobody can read.
pub(super) fn broken(object: &DynamicObject, error: &ObjectError, now: Timestamp) -> Value {
    let message = format!("cannot be read, so that nodes do not enforce it as it is written: {error}");
    let condition = Condition { kind: NODES, holds: false, reason: INVALID, message: message.clone() };
    let messages = vec![validation_message(Severity::Error, error.path(), &error.to_string())];
    status(object, vec![condition], messages, now)
}

/// The status of an AuthorizationPolicy.
pub(super) fn authorization(
    object: &DynamicObject,
    policy: &AuthorizationPolicy,
    unknown: &[UnknownField],
    view: &View<'_>,
    now: Timestamp,
) -> Value {
    let mut findings = Vec::new();
    let translated = translate::authorization_policy(policy, &view.options.root_namespace, &mut findings);
    let targets = match translated.as_ref().map(|policy| &policy.scope) {
        Some(Scope::Targets(targets)) => &**targets,
        _ => &[],
    };
    let enforced = translated.as_ref().is_some_and(|policy| policy.is_for_nodes());
    let is_targeted = policy.spec.target_ref.is_some() || !policy.spec.target_refs.is_empty();
    let mut conditions = Vec::new();
    if !is_targeted || enforced {
        conditions.push(of_nodes(enforced, &findings, unknown));
    }
    if is_targeted {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        conditions.push(of_waypoints(targets, &findings, namespace, view));
    }
    status(object, conditions, validation_messages(&findings, unknown), now)
}

/// The status of a RequestAuthentication, which only waypoints enforce.
pub(super) fn request_authentication(
    object: &DynamicObject,
    policy: &RequestAuthentication,
    unknown: &[UnknownField],
    view: &View<'_>,
    now: Timestamp,
) -> Value {
    let mut findings = Vec::new();
    let translated = translate::request_authentication(policy, &view.options.root_namespace, &mut findings);
    let condition = if policy.spec.target_ref.is_none() && policy.spec.target_refs.is_empty() {
        of_nodes(false, &findings, unknown)
    } else {
        let targets = translated.as_ref().map(|translated| &*translated.targets).unwrap_or_default();
        of_waypoints(targets, &findings, policy.metadata.namespace.as_deref().unwrap_or_default(), view)
    };
    status(object, vec![condition], validation_messages(&findings, unknown), now)
}

/// The status of a PeerAuthentication.
pub(super) fn peer_authentication(
    object: &DynamicObject,
    policy: &PeerAuthentication,
    unknown: &[UnknownField],
    view: &View<'_>,
    now: Timestamp,
) -> Value {
    let mut findings = Vec::new();
    let enforced = translate::peer_authentication(policy, &view.options.root_namespace, &mut findings).is_some();
    let conditions = vec![of_nodes(enforced, &findings, unknown)];
    status(object, conditions, validation_messages(&findings, unknown), now)
}

fn of_nodes(enforced: bool, findings: &[Finding], unknown: &[UnknownField]) -> Condition {
    let told = findings.iter().map(|finding| format!("{}: {}", finding.field, finding.message));
    let told: Vec<String> = told.chain(unknown.iter().map(tell_unknown)).take(MAX_FINDINGS).collect();
    if told.is_empty() && enforced {
        let message = "enforced by the nodes".to_owned();
        return Condition { kind: NODES, holds: true, reason: ACCEPTED, message };
    }
    let verdict = if enforced { "enforced by the nodes, but not all of it as written" } else { "not enforced" };
    Condition { kind: NODES, holds: enforced, reason: UNSUPPORTED, message: format!("{verdict}: {}", told.join("; ")) }
}

fn tell_unknown(field: &UnknownField) -> String {
    format!("{}: nothing reads this field: check its spelling", field.path)
}

/// What becomes of the targets: all must be bound for the policy to be in force as a whole. `findings` say which could
/// not be read.
fn of_waypoints(targets: &[PolicyTarget], findings: &[Finding], namespace: &str, view: &View<'_>) -> Condition {
    let namespace = namespace.into();
    let (mut bound, mut unbound) = (Vec::new(), Vec::new());
    for target in targets {
        match view.snapshot.binding(&namespace, target) {
            Ok(Some(waypoint)) => bound.push(format!("waypoint {waypoint}")),
            Ok(None) => bound.push("every waypoint".to_owned()),
            Err(problem @ NotBound::NoTarget(_)) => unbound.push((NOT_FOUND, problem.to_string())),
            Err(problem) => unbound.push((NOT_BOUND, problem.to_string())),
        }
    }
    let unread = findings.iter().filter(|finding| finding.field.starts_with("spec.targetRef"));
    unbound.extend(unread.map(|finding| (INVALID, format!("{}: {}", finding.field, finding.message))));
    let told = || unbound.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>().join("; ");
    match unbound.first() {
        None => Condition::holds(WAYPOINTS, ACCEPTED, format!("for {} to enforce; nodes do not", bound.join(", "))),
        Some((reason, _)) if bound.is_empty() => Condition::fails(WAYPOINTS, reason, told()),
        Some(_) => Condition::holds(WAYPOINTS, PARTLY, told()),
    }
}

/// The Service `namespace/name`.
pub(super) fn service<'a>(view: &'a View<'_>, namespace: &str, name: &str) -> Option<&'a Service> {
    let hostname = format!("{name}.{namespace}.svc.{}", view.options.cluster_domain);
    let key = ServiceKey { namespace: namespace.into(), hostname: hostname.into() };
    view.snapshot.service(&key).map(|service| &**service)
}

/// The whole status: these conditions in the place of those before, and those of others as they are.
fn status(object: &DynamicObject, conditions: Vec<Condition>, messages: Vec<Value>, now: Timestamp) -> Value {
    let known = &object.data["status"];
    let others = known["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_stale = |known: &&Value| {
        OURS.iter().any(|kind| known["type"] == *kind && !conditions.iter().any(|condition| condition.kind == *kind))
    };
    let stale: Vec<_> = others.iter().filter(is_stale).cloned().collect();
    let mut conditions = rendered(object, known, conditions, now);
    // Said when the policy was another: it is not said any more.
    conditions.retain(|condition| !stale.contains(condition));
    let generation = object.metadata.generation.unwrap_or_default();
    let known = &object.data["status"]["observedGeneration"];
    // Istio writes a string.
    let generation = if known.as_str() == Some(&generation.to_string()) { known.clone() } else { json!(generation) };
    json!({"conditions": conditions, "validationMessages": messages, "observedGeneration": generation})
}

fn validation_messages(findings: &[Finding], unknown: &[UnknownField]) -> Vec<Value> {
    let found = findings.iter().map(|found| validation_message(found.severity, &found.field, &found.message));
    let unknown =
        unknown.iter().map(|field| validation_message(Severity::Error, &field.path, "nothing reads this field"));
    found.chain(unknown).take(MAX_FINDINGS).collect()
}

/// In the form of Istio's `AnalysisMessageBase`, with the field and the words beside it.
fn validation_message(severity: Severity, field: &str, message: &str) -> Value {
    let (level, code) = match severity {
        Severity::Error => ("ERROR", "CLV0001"),
        Severity::Warning => ("WARNING", "CLV0002"),
    };
    json!({
        "type": {"name": if level == "ERROR" { "NoEffect" } else { "OtherEffect" }, "code": code},
        "level": level,
        "field": field,
        "message": message,
    })
}
