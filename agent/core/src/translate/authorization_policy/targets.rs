//! `targetRef` and `targetRefs`: the objects that a policy is attached to (Istio `pilot/pkg/model/policyattachment.go`).

use culvert_api::meta::PolicyTargetReference;
use culvert_api::names::WAYPOINT_GATEWAY_CLASS;

use crate::policy::PolicyTarget;

/// The most `targetRefs`, by Istio's CRD.
const MAX_TARGETS: usize = 16;

/// Every reference, with the name of its field.
pub(in crate::translate) fn written<'t>(
    one: Option<&'t PolicyTargetReference>,
    several: &'t [PolicyTargetReference],
) -> impl Iterator<Item = (String, &'t PolicyTargetReference)> {
    let several = several.iter().enumerate().map(|(i, target)| (format!("spec.targetRefs[{i}]"), target));
    one.into_iter().map(|target| ("spec.targetRef".to_owned(), target)).chain(several)
}

/// The targets that a policy of `namespace` can have; `error` is told of the others.
pub(in crate::translate) fn read<'t>(
    refs: impl IntoIterator<Item = (String, &'t PolicyTargetReference)>,
    namespace: &str,
    root_namespace: &str,
    mut error: impl FnMut(String, String),
) -> Box<[PolicyTarget]> {
    let mut targets = Vec::new();
    for (i, (field, target)) in refs.into_iter().enumerate() {
        if i >= MAX_TARGETS {
            error(field, format!("is one too many: at most {MAX_TARGETS} are allowed, and the rest is not enforced"));
            break;
        }
        match one(target, namespace, root_namespace) {
            Ok(target) if targets.contains(&target) => {}
            Ok(target) => targets.push(target),
            Err((part, message)) => {
                error(format!("{field}.{part}"), format!("{message}: the policy is not enforced there"))
            }
        }
    }
    targets.into()
}

fn one(
    target: &PolicyTargetReference,
    namespace: &str,
    root_namespace: &str,
) -> Result<PolicyTarget, (&'static str, String)> {
    if target.namespace.as_deref().is_some_and(|other| !other.is_empty() && other != namespace) {
        return Err(("namespace", "a policy can only be attached to objects of its own namespace".to_owned()));
    }
    let name = || target.name.as_str().into();
    match (target.group.as_str(), target.kind.as_str()) {
        _ if target.name.is_empty() => Err(("name", "is missing".to_owned())),
        ("" | "core", "Service") => Ok(PolicyTarget::Service(name())),
        ("networking.istio.io", "ServiceEntry") => Ok(PolicyTarget::ServiceEntry(name())),
        ("gateway.networking.k8s.io", "Gateway") => Ok(PolicyTarget::Gateway(name())),
        ("gateway.networking.k8s.io", "GatewayClass") if target.name != WAYPOINT_GATEWAY_CLASS => {
            Err(("name", format!("the class of waypoints is {WAYPOINT_GATEWAY_CLASS}")))
        }
        ("gateway.networking.k8s.io", "GatewayClass") if namespace == root_namespace => Ok(PolicyTarget::Waypoints),
        ("gateway.networking.k8s.io", "GatewayClass") => {
            Err(("kind", format!("a policy for a GatewayClass has to be in the root namespace, {root_namespace}")))
        }
        (group, kind) => {
            let shown = |text: &str| text.chars().take(100).collect::<String>();
            let message = format!(
                "{:?} of group {:?} cannot be a target; Service, ServiceEntry, Gateway and GatewayClass can",
                shown(kind),
                shown(group)
            );
            Err(("kind", message))
        }
    }
}
