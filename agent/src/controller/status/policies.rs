//! The status of AuthorizationPolicy and PeerAuthentication.

use culvert_api::meta::PolicyTargetReference;
use culvert_api::names::WAYPOINT_GATEWAY_CLASS;
use culvert_api::security::{AuthorizationPolicy, PeerAuthentication};
use culvert_api::{ObjectError, UnknownField};
use culvert_core::service::{Service, ServiceKey};
use culvert_core::translate::{self, Finding, Severity};
use culvert_core::workload::NamespacedName;
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::View;
use super::condition::{Condition, is_same};

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
    let enforced = translated.is_some_and(|policy| policy.is_for_nodes());
    let targets: Vec<_> = policy.spec.target_ref.iter().chain(&policy.spec.target_refs).collect();
    let mut conditions = Vec::new();
    if targets.is_empty() || enforced {
        conditions.push(of_nodes(enforced, &findings, unknown));
    }
    if !targets.is_empty() {
        let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
        conditions.push(of_waypoints(&targets, namespace, view));
        // It is said by the condition of the waypoints.
        findings.retain(|finding| finding.severity == Severity::Error);
    }
    status(object, conditions, validation_messages(&findings, unknown), now)
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

/// What becomes of the targets: all must be bound for the policy to be in force as a whole.
fn of_waypoints(targets: &[&PolicyTargetReference], namespace: &str, view: &View<'_>) -> Condition {
    let verdicts: Vec<_> = targets.iter().map(|target| bind(target, namespace, view)).collect();
    let bound: Vec<&str> = verdicts.iter().filter_map(|verdict| verdict.as_deref().ok()).collect();
    let unbound: Vec<&(&'static str, String)> = verdicts.iter().filter_map(|verdict| verdict.as_ref().err()).collect();
    let told = || unbound.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>().join("; ");
    let (holds, reason, message) = match unbound.first() {
        None => (true, ACCEPTED, format!("for {} to enforce; nodes do not", bound.join(", "))),
        Some((reason, _)) if bound.is_empty() => (false, *reason, told()),
        Some(_) => (true, PARTLY, told()),
    };
    Condition { kind: WAYPOINTS, holds, reason, message }
}

/// The waypoint that enforces a policy on `target`, as people are told; or why there is none.
fn bind(target: &PolicyTargetReference, namespace: &str, view: &View<'_>) -> Result<String, (&'static str, String)> {
    let PolicyTargetReference { group, kind, name, .. } = target;
    let missing = || (NOT_FOUND, format!("{kind} {namespace}/{name}, a target, is not there"));
    match (group.as_str(), kind.as_str()) {
        ("" | "core", "Service") => waypoint(view, service(view, namespace, name).ok_or_else(missing)?),
        ("networking.istio.io", "ServiceEntry") => {
            // It may be of several hosts; they have their waypoint by the same label.
            let of_entry = |service: &&std::sync::Arc<Service>| {
                !service.canonical && *service.key.namespace == *namespace && *service.name == *name
            };
            waypoint(view, view.snapshot.services().find(of_entry).ok_or_else(missing)?)
        }
        ("gateway.networking.k8s.io", "Gateway") => {
            let gateway = NamespacedName::new(namespace, name.as_str());
            view.snapshot.waypoint(&gateway).map(|waypoint| tell(&waypoint.gateway)).ok_or_else(missing)
        }
        ("gateway.networking.k8s.io", "GatewayClass") if name == WAYPOINT_GATEWAY_CLASS => {
            if *namespace == *view.options.root_namespace {
                return Ok("every waypoint".to_owned());
            }
            let root = &view.options.root_namespace;
            Err((INVALID, format!("a policy for GatewayClass {name} has to be in the root namespace, {root}")))
        }
        _ => Err((INVALID, format!("{kind} {name:?} of group {group:?} cannot be a target"))),
    }
}

/// The Service `namespace/name`.
pub(super) fn service<'a>(view: &'a View<'_>, namespace: &str, name: &str) -> Option<&'a Service> {
    let hostname = format!("{name}.{namespace}.svc.{}", view.options.cluster_domain);
    let key = ServiceKey { namespace: namespace.into(), hostname: hostname.into() };
    view.snapshot.service(&key).map(|service| &**service)
}

/// The waypoint of `service`, as people are told; or why there is none.
pub(super) fn waypoint(view: &View<'_>, service: &Service) -> Result<String, (&'static str, String)> {
    let key = &service.key;
    let unbound = |message: String| Err((NOT_BOUND, message));
    let Some(binding) = &service.waypoint else {
        return unbound(format!(
            "{} in {} has no waypoint: label it, or its namespace, with istio.io/use-waypoint",
            key.hostname, key.namespace
        ));
    };
    let gateway = &binding.gateway;
    match view.snapshot.waypoint(gateway) {
        None => unbound(format!(
            "the waypoint {} of {} in {} is not there: create it, for instance by istioctl waypoint apply",
            tell(gateway),
            key.hostname,
            key.namespace
        )),
        Some(waypoint) if !view.snapshot.may_bind(waypoint, &key.namespace) => unbound(format!(
            "the waypoint {} does not allow namespace {} to use it: see its allowedRoutes",
            tell(gateway),
            key.namespace
        )),
        Some(_) => Ok(tell(gateway)),
    }
}

fn tell(gateway: &NamespacedName) -> String {
    format!("waypoint {}/{}", gateway.namespace, gateway.name)
}

/// The whole status: these conditions in the place of those before, and those of others as they are.
fn status(object: &DynamicObject, conditions: Vec<Condition>, messages: Vec<Value>, now: Timestamp) -> Value {
    let known = object.data["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let others = known.iter().filter(|known| !OURS.iter().any(|kind| known["type"] == *kind)).cloned();
    let rendered = conditions.iter().map(|condition| {
        let before = known.iter().find(|known| known["type"] == condition.kind);
        let new = condition.render(object, before, now);
        // As it stands, when it says the same: nothing is written then.
        before.filter(|before| is_same(before, &new)).cloned().unwrap_or(new)
    });
    let conditions: Vec<Value> = others.chain(rendered).collect();
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
