//! DestinationRules by namespace and host.
//!
//! A client finds those of its own namespace first, then those of the service's, then those of the root namespace; in
//! each the most specific host counts. Several of one namespace for one host are one (Istio
//! `pilot/pkg/model/destination_rule.go`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use culvert_api::networking::DestinationRule as Written;
use culvert_api::{Kind, ObjectRef};
use imbl::{HashMap, OrdMap};

use super::{Mesh, Snapshot, name_of};
use crate::route::l4::HostPattern;
use crate::service::Service;
use crate::traffic::policy::{DestinationRule, Subset};
use crate::translate::destination_rule::{self, DestinationRuleFacts};
use crate::translate::values::ExportTo;
use crate::translate::{Finding, Findings};
use crate::workload::{Labels, NamespacedName};

/// What the writer keeps of them.
#[derive(Debug, Default)]
pub(super) struct DestinationRuleStore {
    objects: BTreeMap<NamespacedName, (Box<Written>, Option<Arc<DestinationRuleFacts>>)>,
    by_host: BTreeMap<Key, BTreeSet<NamespacedName>>,
}

/// What several objects are one for: a namespace, a host and the clients.
type Key = (Arc<str>, HostPattern, Option<Arc<Labels>>);

/// The rules of a namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct NamespaceRules {
    exact: OrdMap<Box<str>, Arc<Published>>,
    /// Sorted by how narrow they are, the narrowest last.
    below: OrdMap<((bool, usize), HostPattern), Arc<Published>>,
    /// Those for some clients only.
    selected: OrdMap<(HostPattern, Arc<Labels>), Arc<Published>>,
}

#[derive(Clone, Debug)]
struct Published {
    rule: Arc<DestinationRule>,
    export_to: ExportTo,
}

impl NamespaceRules {
    fn find(&self, host: &str, visible: impl Fn(&Published) -> bool) -> Option<&Arc<DestinationRule>> {
        let exact = self.exact.get(host).filter(|published| visible(published));
        let below = || {
            let narrowest = self.below.iter().rev().filter(|((_, pattern), _)| pattern.matches(host));
            narrowest.map(|(_, published)| published).find(|published| visible(published))
        };
        exact.or_else(below).map(|published| &published.rule)
    }

    fn selected(&self, host: &str, labels: &Labels) -> Option<&Arc<DestinationRule>> {
        let chosen = |selector: &Labels| selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        let of_host = self.selected.iter().filter(|((pattern, selector), _)| pattern.matches(host) && chosen(selector));
        of_host.max_by_key(|((pattern, _), _)| pattern.specificity()).map(|(_, published)| &published.rule)
    }

    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty() && self.selected.is_empty()
    }
}

impl Snapshot {
    /// What DestinationRules say of `service` to a client of `namespace` with these labels.
    pub fn destination_rule(
        &self,
        namespace: &str,
        labels: &Labels,
        service: &Service,
    ) -> Option<&Arc<DestinationRule>> {
        let host = &*service.key.hostname;
        let root = &*self.options.root_namespace;
        let of = |namespace: &str| self.destination_rules.get(namespace);
        let own = of(namespace);
        if let Some(rule) = own.and_then(|own| own.selected(host, labels)) {
            return Some(rule);
        }
        // A client of the root namespace would otherwise find there what is meant for everybody, before what the
        // service's namespace says.
        let private = |published: &Published| namespace != root || published.export_to.is_own_only();
        let exported = |published: &Published| published.export_to.includes(namespace);
        own.and_then(|own| own.find(host, private))
            .or_else(|| of(&service.key.namespace)?.find(host, exported))
            .or_else(|| of(root)?.find(host, exported))
    }

    /// What DestinationRules say of `service`, and of the part of it that is named, to the waypoint of `namespace`;
    /// `None` in place of the part if there is none of that name.
    pub fn traffic_rule<'s>(
        &'s self,
        namespace: &str,
        service: &Service,
        subset: Option<&str>,
    ) -> (Option<&'s Arc<DestinationRule>>, Option<&'s Subset>) {
        let rule = self.destination_rule(namespace, &Labels::new(), service);
        (rule, subset.and_then(|name| rule?.subset(name)))
    }
}

impl Mesh {
    /// Puts a DestinationRule in the place of the one of this name.
    pub(super) fn set_destination_rule(
        &mut self,
        reference: &ObjectRef,
        object: Option<Box<Written>>,
        findings: &mut Vec<Finding>,
    ) {
        let name = name_of(reference);
        let mut touched = BTreeSet::new();
        let store = &mut self.destination_rules;
        if let Some((_, Some(facts))) = store.objects.remove(&name) {
            let key = key(&facts);
            if let Some(names) = store.by_host.get_mut(&key) {
                names.remove(&name);
                if names.is_empty() {
                    store.by_host.remove(&key);
                }
            }
            touched.insert(key);
        }
        if let Some(object) = object {
            let mut findings = Findings { object: reference.clone(), list: findings };
            let domain = &self.current.options.cluster_domain;
            let facts = destination_rule::translate(&object, domain, &mut findings).map(Arc::new);
            if let Some(facts) = &facts {
                let key = key(facts);
                store.by_host.entry(key.clone()).or_default().insert(name.clone());
                touched.insert(key);
            }
            store.objects.insert(name, (object, facts));
        }
        for key in touched {
            self.publish_destination_rules(key);
        }
    }

    /// Makes one rule of those for `key`.
    fn publish_destination_rules(&mut self, key: Key) {
        let store = &self.destination_rules;
        let names = store.by_host.get(&key).into_iter().flatten();
        let mut all: Vec<_> = names.filter_map(|name| store.objects.get(name)?.1.as_ref()).collect();
        all.sort_by_key(|facts| (facts.created, &facts.name));
        let published = all.first().map(|oldest| Arc::new(merged(&all, oldest)));
        let (namespace, host, selector) = key;
        let rules = self.current.destination_rules.entry(namespace.clone()).or_default();
        macro_rules! put {
            ($map:expr, $key:expr) => {
                match published {
                    Some(published) => $map.insert($key, published),
                    None => $map.remove(&$key),
                }
            };
        }
        match (selector, host) {
            (Some(selector), host) => put!(rules.selected, (host, selector)),
            (None, HostPattern::Exact(host)) => put!(rules.exact, host),
            (None, pattern) => put!(rules.below, (pattern.specificity(), pattern)),
        };
        if rules.is_empty() {
            self.current.destination_rules.remove(&namespace);
        }
    }

    /// Reads everything again, under other options.
    pub(super) fn restore_destination_rules(&mut self, old: DestinationRuleStore) {
        for (name, (object, _)) in old.objects {
            let mut findings = Vec::new();
            let reference = ObjectRef::new(Kind::DestinationRule, name.namespace, name.name);
            self.set_destination_rule(&reference, Some(object), &mut findings);
            self.set_findings(reference, findings);
        }
    }
}

/// The subsets of all, the first of each name; and the policy of the oldest that has one.
fn merged(all: &[&Arc<DestinationRuleFacts>], oldest: &DestinationRuleFacts) -> Published {
    let mut subsets: Vec<Subset> = Vec::new();
    for subset in all.iter().flat_map(|facts| &facts.subsets) {
        if !subsets.iter().any(|known| known.name == subset.name) {
            subsets.push(subset.clone());
        }
    }
    let resources = all
        .iter()
        .map(|facts| ObjectRef::new(Kind::DestinationRule, facts.name.namespace.clone(), facts.name.name.clone()));
    let policy = all.iter().map(|facts| &facts.policy).find(|policy| !policy.is_empty());
    let rule = DestinationRule { resources: resources.collect(), policy: policy.cloned().unwrap_or_default(), subsets };
    Published { rule: Arc::new(rule), export_to: oldest.export_to.clone() }
}

fn key(facts: &DestinationRuleFacts) -> Key {
    (facts.name.namespace.clone(), facts.host.clone(), facts.selector.clone())
}

/// By namespace.
pub(super) type DestinationRules = HashMap<Arc<str>, NamespaceRules>;
