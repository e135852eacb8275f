//! The rule by which labels and annotations put a pod into the mesh (Istio `cni/pkg/util/podutil.go`).

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use serde::Serialize;

use super::rules::EnrolmentRules;

/// The label, on a namespace or a pod, that asks for the mesh (`ambient`) or refuses it (`none`).
pub const DATAPLANE_MODE_LABEL: &str = "istio.io/dataplane-mode";
/// The annotation that a sidecar injector leaves on a pod that carries its own proxy.
pub const SIDECAR_STATUS_ANNOTATION: &str = "sidecar.istio.io/status";
/// The annotation by which a pod (an ingress gateway, say) receives its traffic uncaptured.
pub const BYPASS_INBOUND_ANNOTATION: &str = "ambient.istio.io/bypass-inbound-capture";
/// The annotation by which a pod has its DNS queries captured or not, whatever the mesh does.
pub const DNS_CAPTURE_ANNOTATION: &str = "ambient.istio.io/dns-capture";
/// The label of the agent's own pods, which cannot be their own proxy.
const COMPONENT_LABEL: (&str, &str) = ("culvert.dev/component", "node");

/// A pod belongs to the mesh, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Enrol {
    /// Only what the pod sends is captured: nothing it receives is decrypted or decided by its node.
    pub bypass_inbound: bool,
    /// Whether its DNS queries are captured; `None` for as the mesh options say.
    pub dns_capture: Option<bool>,
}

/// What a pod says beside its labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodTraits {
    /// It shares the node's network namespace.
    pub host_network: bool,
    /// It carries a sidecar.
    pub sidecar: bool,
    /// How it would be enrolled.
    pub enrol: Enrol,
}

impl PodTraits {
    /// The traits of a pod with these annotations.
    pub fn read(annotations: &impl Lookup, host_network: bool) -> Self {
        let dns_capture = match annotations.value(DNS_CAPTURE_ANNOTATION) {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        Self {
            host_network,
            sidecar: annotations.value(SIDECAR_STATUS_ANNOTATION).is_some(),
            enrol: Enrol { bypass_inbound: annotations.value(BYPASS_INBOUND_ANNOTATION) == Some("true"), dns_capture },
        }
    }
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
    /// Its namespace is left out.
    #[error("its namespace is left out of the mesh (--exclude-namespaces, Helm value cni.excludeNamespaces)")]
    ExcludedNamespace,
    /// The pod says no.
    #[error("the pod's label {DATAPLANE_MODE_LABEL} is `none`")]
    OptedOut,
    /// Nobody asked for it.
    #[error(
        "neither the pod nor its namespace has the label {DATAPLANE_MODE_LABEL}: ambient, or what \
             enablementSelectors name instead"
    )]
    NotLabelled,
    /// It is the agent.
    #[error("the pod is the node agent itself")]
    Agent,
}

impl Why {
    /// Whether another label, of the pod or its namespace, would put it into the mesh.
    pub fn is_of_labels(self) -> bool {
        matches!(self, Self::OptedOut | Self::NotLabelled)
    }
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

/// Whether a pod of `namespace` belongs to the mesh.
///
/// # Errors
///
/// The reason why it does not; the first that applies, in the order in which Istio checks.
pub fn eligibility(
    rules: &EnrolmentRules,
    namespace: &str,
    namespace_labels: &impl Lookup,
    pod_labels: &impl Lookup,
    traits: PodTraits,
) -> Result<Enrol, Why> {
    if traits.host_network {
        return Err(Why::HostNetwork);
    }
    if pod_labels.value(COMPONENT_LABEL.0) == Some(COMPONENT_LABEL.1) {
        return Err(Why::Agent);
    }
    if rules.excludes(namespace) {
        return Err(Why::ExcludedNamespace);
    }
    if !rules.select(namespace_labels, pod_labels) {
        let opted_out = pod_labels.value(DATAPLANE_MODE_LABEL) == Some("none");
        return Err(if opted_out { Why::OptedOut } else { Why::NotLabelled });
    }
    if traits.sidecar {
        return Err(Why::Sidecar);
    }
    Ok(traits.enrol)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = &'static [(&'static str, &'static str)];

    const MODE: &str = DATAPLANE_MODE_LABEL;
    const IN: Result<Enrol, Why> = Ok(Enrol { bypass_inbound: false, dns_capture: None });

    fn decide(namespace: Pairs, labels: Pairs, annotations: Pairs, host_network: bool) -> Result<Enrol, Why> {
        let map = |pairs: Pairs| pairs.iter().copied().collect::<BTreeMap<&str, &str>>();
        let traits = PodTraits::read(&map(annotations), host_network);
        eligibility(&EnrolmentRules::default(), "shop", &map(namespace), &map(labels), traits)
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
            ("the pod opts out of nothing", &[], &[(MODE, "none")], &[], Err(Why::OptedOut)),
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
                Ok(Enrol { bypass_inbound: true, dns_capture: None }),
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

    #[test]
    fn an_excluded_namespace_is_never_enrolled_whatever_the_labels_say() {
        let ambient = BTreeMap::from([(MODE, "ambient")]);
        for (namespace, expected) in [("kube-system", Err(Why::ExcludedNamespace)), ("shop", IN)] {
            let rules = EnrolmentRules::default();
            assert_eq!(eligibility(&rules, namespace, &ambient, &ambient, PodTraits::default()), expected);
        }
    }

    #[test]
    fn only_true_and_false_switch_the_capture_of_dns() {
        for (value, expected) in [("true", Some(true)), ("false", Some(false)), ("no", None), ("", None)] {
            let annotations = BTreeMap::from([(DNS_CAPTURE_ANNOTATION, value)]);
            assert_eq!(PodTraits::read(&annotations, false).enrol.dns_capture, expected, "{value}");
        }
    }
}
