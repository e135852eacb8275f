//! The rule by which labels and annotations put a pod into the mesh (Istio `cni/pkg/util/podutil.go`).

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use serde::Serialize;

/// The label, on a namespace or a pod, that asks for the mesh (`ambient`) or refuses it (`none`).
pub const DATAPLANE_MODE_LABEL: &str = "istio.io/dataplane-mode";
/// The annotation that a sidecar injector leaves on a pod that carries its own proxy.
pub const SIDECAR_STATUS_ANNOTATION: &str = "sidecar.istio.io/status";
/// The annotation by which a pod (an ingress gateway, say) receives its traffic uncaptured.
pub const BYPASS_INBOUND_ANNOTATION: &str = "ambient.istio.io/bypass-inbound-capture";
/// The label of the agent's own pods, which cannot be their own proxy.
const COMPONENT_LABEL: (&str, &str) = ("culvert.dev/component", "node");

/// A pod belongs to the mesh, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Enrol {
    /// Only what the pod sends is captured: nothing it receives is decrypted or decided by its node.
    pub bypass_inbound: bool,
}

/// Why a pod does not belong to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Its sockets are the node's: nothing tells them apart.
    #[error("hostNetwork pods share the node's network namespace and cannot be enrolled")]
    HostNetwork,
    /// It carries a sidecar.
    #[error("the pod has a sidecar (annotation {SIDECAR_STATUS_ANNOTATION})")]
    Sidecar,
    /// The pod says no.
    #[error("the pod's label {DATAPLANE_MODE_LABEL} is `none`")]
    OptedOut,
    /// Nobody asked for it.
    #[error("neither the pod nor its namespace has the label {DATAPLANE_MODE_LABEL}: ambient")]
    NotLabelled,
    /// It is the agent.
    #[error("the pod is the node agent itself")]
    Agent,
}

/// A map of labels or annotations, whatever its string types.
pub trait Lookup {
    /// The value of `key`.
    fn value(&self, key: &str) -> Option<&str>;
}

impl<K: Borrow<str> + Ord, V: AsRef<str>> Lookup for BTreeMap<K, V> {
    fn value(&self, key: &str) -> Option<&str> {
        self.get(key).map(AsRef::as_ref)
    }
}

impl<K: Borrow<str> + Hash + Eq, V: AsRef<str>> Lookup for HashMap<K, V> {
    fn value(&self, key: &str) -> Option<&str> {
        self.get(key).map(AsRef::as_ref)
    }
}

impl<T: Lookup> Lookup for Option<T> {
    fn value(&self, key: &str) -> Option<&str> {
        self.as_ref()?.value(key)
    }
}

impl<T: Lookup + ?Sized> Lookup for &T {
    fn value(&self, key: &str) -> Option<&str> {
        (**self).value(key)
    }
}

/// Whether a pod belongs to the mesh.
///
/// # Errors
///
/// The reason why it does not; the first that applies, in the order in which Istio checks.
pub fn eligibility(
    namespace_labels: &impl Lookup,
    pod_labels: &impl Lookup,
    pod_annotations: &impl Lookup,
    host_network: bool,
) -> Result<Enrol, Why> {
    if host_network {
        return Err(Why::HostNetwork);
    }
    if pod_labels.value(COMPONENT_LABEL.0) == Some(COMPONENT_LABEL.1) {
        return Err(Why::Agent);
    }
    let asked = match (pod_labels.value(DATAPLANE_MODE_LABEL), namespace_labels.value(DATAPLANE_MODE_LABEL)) {
        (Some("none"), _) => return Err(Why::OptedOut),
        // Any other value on the pod is no opinion: Istio falls back to the namespace.
        (Some("ambient"), _) | (_, Some("ambient")) => true,
        _ => false,
    };
    if !asked {
        return Err(Why::NotLabelled);
    }
    if pod_annotations.value(SIDECAR_STATUS_ANNOTATION).is_some() {
        return Err(Why::Sidecar);
    }
    Ok(Enrol { bypass_inbound: pod_annotations.value(BYPASS_INBOUND_ANNOTATION) == Some("true") })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    const MODE: &str = DATAPLANE_MODE_LABEL;
    const IN: Result<Enrol, Why> = Ok(Enrol { bypass_inbound: false });

    fn decide(namespace: Pairs, labels: Pairs, annotations: Pairs, host_network: bool) -> Result<Enrol, Why> {
        let map = |pairs: Pairs| pairs.iter().copied().collect::<BTreeMap<&str, &str>>();
        eligibility(&map(namespace), &map(labels), &map(annotations), host_network)
    }

    #[test]
    fn labels_decide_and_the_pod_has_the_last_word() {
        type Row = (&'static str, Pairs, Pairs, Pairs, Result<Enrol, Why>);
        let table: &[Row] = &[
            ("nothing", &[], &[], &[], Err(Why::NotLabelled)),
            ("namespace", &[(MODE, "ambient")], &[], &[], IN),
            ("pod alone", &[], &[(MODE, "ambient")], &[], IN),
            ("both", &[(MODE, "ambient")], &[(MODE, "ambient")], &[], IN),
            ("pod opts out", &[(MODE, "ambient")], &[(MODE, "none")], &[], Err(Why::OptedOut)),
            ("pod opts in", &[(MODE, "none")], &[(MODE, "ambient")], &[], IN),
            ("namespace none", &[(MODE, "none")], &[], &[], Err(Why::NotLabelled)),
            ("empty value on the pod", &[(MODE, "ambient")], &[(MODE, "")], &[], IN),
            ("other value on the pod", &[(MODE, "ambient")], &[(MODE, "sidecar")], &[], IN),
            ("case matters", &[(MODE, "Ambient")], &[], &[], Err(Why::NotLabelled)),
            ("sidecar", &[(MODE, "ambient")], &[], &[(SIDECAR_STATUS_ANNOTATION, "{}")], Err(Why::Sidecar)),
            ("empty sidecar status", &[(MODE, "ambient")], &[], &[(SIDECAR_STATUS_ANNOTATION, "")], Err(Why::Sidecar)),
            (
                "sidecar, and the pod asks",
                &[],
                &[(MODE, "ambient")],
                &[(SIDECAR_STATUS_ANNOTATION, "{}")],
                Err(Why::Sidecar),
            ),
            ("the agent", &[(MODE, "ambient")], &[("culvert.dev/component", "node")], &[], Err(Why::Agent)),
            (
                "inbound bypass",
                &[(MODE, "ambient")],
                &[],
                &[(BYPASS_INBOUND_ANNOTATION, "true")],
                Ok(Enrol { bypass_inbound: true }),
            ),
            ("inbound bypass: false", &[(MODE, "ambient")], &[], &[(BYPASS_INBOUND_ANNOTATION, "false")], IN),
        ];
        for (name, namespace, labels, annotations, expected) in table {
            assert_eq!(&decide(namespace, labels, annotations, false), expected, "{name}");
        }
    }

    #[test]
    fn the_host_network_is_never_enrolled_whatever_the_labels_say() {
        assert_eq!(decide(&[(MODE, "ambient")], &[(MODE, "ambient")], &[], true), Err(Why::HostNetwork));
    }
}
