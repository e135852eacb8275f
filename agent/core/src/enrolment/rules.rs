//! The rules of a mesh: which namespaces are left out, and which labels of pods and namespaces ask for it (the values
//! `excludeNamespaces` and `enablementSelectors` of Istio's chart `istio-cni`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::eligibility::{DATAPLANE_MODE_LABEL, Lookup};

/// The namespaces that are left out unless someone says otherwise: what a node needs to heal itself must start without
/// the mesh.
pub const DEFAULT_EXCLUDED_NAMESPACES: [&str; 3] = ["culvert-system", "istio-system", "kube-system"];

/// As many as this, so that deciding over a pod costs little.
const MAX_ITEMS: usize = 64;

/// Which pods may be in the mesh, and which labels ask for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnrolmentRules {
    /// The namespaces whose pods are never enrolled, whatever their labels say.
    pub exclude_namespaces: BTreeSet<Arc<str>>,
    /// A pod that any of these selects is in the mesh.
    pub enablement_selectors: Vec<EnablementSelector>,
}

/// Selects pods by their own labels and their namespace's; a selector that is left out selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnablementSelector {
    /// What the pod's labels must be.
    #[serde(default)]
    pub pod_selector: LabelSelector,
    /// What the namespace's labels must be.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
}

/// A Kubernetes label selector: all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what; empty for [`Operator::Exists`] and [`Operator::DoesNotExist`].
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is compared; a label that is not there is [`Operator::NotIn`] any values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the operators of Kubernetes")]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// Why rules cannot be used; names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RulesError(String);

impl Default for EnrolmentRules {
    /// Istio's: the label `istio.io/dataplane-mode: ambient` on the pod, or on the namespace of a pod that does not say
    /// `none`.
    fn default() -> Self {
        let ambient = || LabelSelector {
            match_labels: BTreeMap::from([(DATAPLANE_MODE_LABEL.to_owned(), "ambient".to_owned())]),
            ..Default::default()
        };
        let not_none = Requirement {
            key: DATAPLANE_MODE_LABEL.to_owned(),
            operator: Operator::NotIn,
            values: vec!["none".to_owned()],
        };
        let by_pod = EnablementSelector { pod_selector: ambient(), ..Default::default() };
        let by_namespace = EnablementSelector {
            pod_selector: LabelSelector { match_expressions: vec![not_none], ..Default::default() },
            namespace_selector: ambient(),
        };
        Self {
            exclude_namespaces: DEFAULT_EXCLUDED_NAMESPACES.map(Arc::from).into(),
            enablement_selectors: vec![by_pod, by_namespace],
        }
    }
}

impl EnrolmentRules {
    /// Whether pods of `namespace` are never enrolled.
    pub fn excludes(&self, namespace: &str) -> bool {
        self.exclude_namespaces.contains(namespace)
    }

    /// Whether the labels ask for the mesh.
    pub fn select(&self, namespace_labels: &impl Lookup, pod_labels: &impl Lookup) -> bool {
        self.enablement_selectors.iter().any(|selector| {
            selector.pod_selector.matches(pod_labels) && selector.namespace_selector.matches(namespace_labels)
        })
    }

    /// Reads enablement selectors from YAML: a list of `podSelector` and `namespaceSelector`.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse_selectors(yaml: &str) -> Result<Vec<EnablementSelector>, RulesError> {
        let wrong = |error: &dyn std::fmt::Display| {
            RulesError(format!("{error}; give a YAML list of podSelector and namespaceSelector, each a label selector"))
        };
        let value = culvert_api::yaml::value(yaml).map_err(|error| wrong(&error))?;
        let selectors: Vec<EnablementSelector> = serde_json::from_value(value).map_err(|error| wrong(&error))?;
        if selectors.len() > MAX_ITEMS {
            return Err(RulesError(format!("{} selectors; {MAX_ITEMS} at the most", selectors.len())));
        }
        for (at, selector) in selectors.iter().enumerate() {
            selector.pod_selector.check(&format!("[{at}].podSelector"))?;
            selector.namespace_selector.check(&format!("[{at}].namespaceSelector"))?;
        }
        Ok(selectors)
    }
}

impl LabelSelector {
    /// Whether `labels` are selected.
    pub fn matches(&self, labels: &impl Lookup) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.value(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.holds(labels))
    }

    fn check(&self, path: &str) -> Result<(), RulesError> {
        if self.match_labels.len().max(self.match_expressions.len()) > MAX_ITEMS {
            return Err(RulesError(format!("{path}: more than {MAX_ITEMS} labels or expressions")));
        }
        for (at, requirement) in self.match_expressions.iter().enumerate() {
            let takes_values = matches!(requirement.operator, Operator::In | Operator::NotIn);
            let wrong = match requirement.values.len() {
                0 if takes_values => "has no values: In and NotIn need some",
                1.. if !takes_values => "has values: Exists and DoesNotExist take none",
                n if n > MAX_ITEMS => "has too many values",
                _ => continue,
            };
            return Err(RulesError(format!("{path}.matchExpressions[{at}] {wrong}")));
        }
        Ok(())
    }
}

impl Requirement {
    fn holds(&self, labels: &impl Lookup) -> bool {
        let value = labels.value(&self.key);
        let listed = value.is_some_and(|value| self.values.iter().any(|known| known == value));
        match self.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn rules(yaml: &str) -> EnrolmentRules {
        let enablement_selectors = EnrolmentRules::parse_selectors(yaml).unwrap();
        EnrolmentRules { enablement_selectors, ..EnrolmentRules::default() }
    }

    #[test]
    fn the_default_rules_are_those_that_istio_writes_out() {
        let written = rules(
            "- podSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}\n\
             - podSelector: {matchExpressions: [{key: istio.io/dataplane-mode, operator: NotIn, values: [none]}]}\n  \
               namespaceSelector: {matchLabels: {istio.io/dataplane-mode: ambient}}\n",
        );
        assert_eq!(written, EnrolmentRules::default());
    }

    #[test]
    fn every_operator_is_kubernetes_own() {
        let selects = |expression: &str, pairs: &[(&str, &str)]| {
            let yaml = format!("[{{podSelector: {{matchExpressions: [{expression}]}}}}]");
            rules(&yaml).select(&labels(&[]), &labels(pairs))
        };
        for (expression, a1, a2, absent) in [
            ("{key: a, operator: In, values: ['1', '3']}", true, false, false),
            ("{key: a, operator: NotIn, values: ['1']}", false, true, true),
            ("{key: a, operator: Exists}", true, true, false),
            ("{key: a, operator: DoesNotExist}", false, false, true),
        ] {
            let found = [&[("a", "1")][..], &[("a", "2")], &[]].map(|pairs| selects(expression, pairs));
            assert_eq!(found, [a1, a2, absent], "{expression}");
        }
    }

    #[test]
    fn no_selector_selects_nobody_and_an_empty_one_everybody() {
        assert!(!rules("[]").select(&labels(&[]), &labels(&[("a", "1")])));
        assert!(rules("[{}]").select(&labels(&[]), &labels(&[])));
    }

    #[test]
    fn a_misspelt_selector_is_refused_rather_than_selecting_everybody() {
        for (yaml, says) in [
            ("[{podSelector: {matchLabel: {a: b}}}]", "matchLabel"),
            ("[{podselector: {}}]", "podselector"),
            ("{podSelector: {}}", "list"),
            ("[{podSelector: {matchExpressions: [{key: a, operator: Is, values: [b]}]}}]", "Is"),
            ("[{podSelector: {matchExpressions: [{key: a, operator: In}]}}]", "[0].podSelector.matchExpressions[0]"),
            ("[{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}]", "has values"),
            ("[", "list"),
        ] {
            let error = EnrolmentRules::parse_selectors(yaml).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains('\n'), "{yaml}: {error}");
        }
    }
}
