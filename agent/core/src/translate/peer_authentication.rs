//! PeerAuthentication into modes (Istio `pilot/pkg/serviceregistry/ambient/policies.go`).

use culvert_api::security::{self, MtlsMode as Written};
use culvert_api::{Kind, ObjectRef};

use super::Finding;
use super::authorization_policy::readable_labels;
use crate::policy::{MtlsMode, PeerAuthentication, PeerAuthenticationScope};
use crate::workload::NamespacedName;

/// Reads `object`, and adds to `findings` what is to be said about it.
///
/// `None` if it says nothing about any workload: one with a selector in the root namespace, as in Istio's ambient mode.
pub fn peer_authentication(
    object: &security::PeerAuthentication,
    root_namespace: &str,
    findings: &mut Vec<Finding>,
) -> Option<PeerAuthentication> {
    let name = NamespacedName::new(
        object.metadata.namespace.as_deref().unwrap_or_default(),
        object.metadata.name.as_deref().unwrap_or_default(),
    );
    let reference = ObjectRef::new(Kind::PeerAuthentication, name.namespace.clone(), name.name.clone());
    let mut error = |field: String, message: String| {
        findings.push(Finding::error(reference.clone(), field, message));
    };
    let spec = &object.spec;
    let in_root = *name.namespace == *root_namespace;
    let scope = match spec.selector.as_ref().filter(|selector| !selector.match_labels.is_empty()) {
        None if in_root => PeerAuthenticationScope::Mesh,
        None => PeerAuthenticationScope::Namespace,
        Some(_) if in_root => {
            let message = "a selector in the root namespace is ignored: put the object in the namespace of the pods";
            error("spec.selector".to_owned(), message.to_owned());
            return None;
        }
        Some(selector) => {
            let labels = readable_labels(selector, &mut error);
            let strict = spec.mtls.is_some_and(|mtls| mtls.mode == Written::Strict) && spec.port_level_mtls.is_empty();
            // Selecting by what is left selects more pods: fit to ask more of them, not less.
            if labels.len() != selector.match_labels.len() && !strict {
                return None;
            }
            PeerAuthenticationScope::Selector(labels)
        }
    };
    let selective = matches!(scope, PeerAuthenticationScope::Selector(_));
    if !selective && !spec.port_level_mtls.is_empty() {
        error("spec.portLevelMtls".to_owned(), "is ignored without a selector: select the pods".to_owned());
    }

    let mut ports = Vec::new();
    let mut disabled = Vec::new();
    for (port, mtls) in spec.port_level_mtls.iter().filter(|_| selective) {
        let field = format!("spec.portLevelMtls[{port}]");
        match port.parse::<u16>() {
            Ok(number @ 1..) => ports.push((number, mode(mtls.mode))),
            _ => error(field.clone(), format!("{port:?} is not a port from 1 to 65535, and is ignored")),
        }
        disabled.extend((mtls.mode == Written::Disable).then_some(field));
    }
    let mtls = spec.mtls.map_or(Written::Unset, |mtls| mtls.mode);
    disabled.extend((mtls == Written::Disable).then(|| "spec.mtls.mode".to_owned()));
    for field in disabled {
        let message = "DISABLE is treated as PERMISSIVE: between pods of the mesh, mTLS is always used";
        findings.push(Finding::warning(reference.clone(), field, message));
    }
    let created = object.metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
    Some(PeerAuthentication { name, created, scope, mode: mode(mtls), ports: ports.into() })
}

fn mode(written: Written) -> Option<MtlsMode> {
    match written {
        Written::Unset => None,
        Written::Disable | Written::Permissive => Some(MtlsMode::Permissive),
        Written::Strict => Some(MtlsMode::Strict),
    }
}

#[cfg(test)]
mod tests;
