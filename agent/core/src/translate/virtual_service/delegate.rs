//! Rules that are filled in from another VirtualService (Istio `pilot/pkg/model/virtualservice.go`).
//!
//! A rule of the delegate takes what both its own matches and the root's ask for. Where they cannot both hold, that
//! pair of matches is left out, and the rule with its last.

use std::collections::BTreeMap;
use std::sync::Arc;

use culvert_api::networking::VirtualService as Written;
use culvert_api::networking::virtual_service::{
    Delegate, HttpMatchRequest, HttpRoute, StringMatch, VirtualServiceSpec,
};

use super::super::values::ExportTo;
use super::{MAX_MATCHES, MAX_RULES, Reader, reference};
use crate::route::http::HttpRule;
use crate::workload::NamespacedName;

/// The VirtualServices that the rules of `spec` are filled in from.
pub(super) fn named(spec: &VirtualServiceSpec, namespace: &Arc<str>) -> Vec<NamespacedName> {
    let mut names: Vec<_> =
        spec.http.iter().filter_map(|route| route.delegate.as_ref()).map(|to| name(to, namespace)).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn name(to: &Delegate, namespace: &Arc<str>) -> NamespacedName {
    let namespace = if to.namespace.is_empty() { namespace.clone() } else { to.namespace.as_str().into() };
    NamespacedName::new(namespace, to.name.as_str())
}

impl Reader<'_, '_> {
    pub(super) fn delegated<'d>(
        &mut self,
        at: usize,
        field: &str,
        root: &HttpRoute,
        to: &Delegate,
        delegate: &dyn Fn(&NamespacedName) -> Option<&'d Written>,
    ) -> Vec<HttpRule> {
        let to = name(to, &self.namespace);
        let field = format!("{field}.delegate");
        if !root.route.is_empty() || root.redirect.is_some() {
            self.error(&field, "goes with neither route nor redirect: those have no effect");
        }
        let Some(object) = delegate(&to) else {
            self.error(&field, format!("there is no VirtualService {to}: the rule has no effect"));
            return Vec::new();
        };
        if !object.spec.hosts.is_empty() {
            self.error(&field, format!("VirtualService {to} has hosts, and so is no delegate: the rule has no effect"));
            return Vec::new();
        }
        if !ExportTo::new(&object.spec.export_to, &to.namespace).includes(&self.namespace) {
            let message = format!("VirtualService {to} is not exported to {}: the rule has no effect", self.namespace);
            self.error(&field, message);
            return Vec::new();
        }
        let mut rules = Vec::new();
        for (position, leaf) in object.spec.http.iter().take(MAX_RULES).enumerate() {
            if leaf.delegate.is_some() {
                continue;
            }
            let Some(matches) = merged_matches(&root.matches, &leaf.matches) else {
                let message = format!("spec.http[{position}] of {to} takes nothing that this rule takes: left out");
                self.warning(&field, message);
                continue;
            };
            let merged = HttpRoute { matches, ..merged(root, leaf) };
            // What is wrong is wrong in the delegate, where short names are names of its own namespace.
            let namespace = std::mem::replace(&mut self.namespace, to.namespace.clone());
            let rule = self.http_rule(at, &format!("{field}({to} spec.http[{position}])"), &merged);
            self.namespace = namespace;
            rules.extend(rule.map(|rule| HttpRule { delegate: Some((reference(&to), position)), ..rule }));
        }
        rules
    }
}

/// `leaf`, with what it leaves out taken from `root`.
fn merged(root: &HttpRoute, leaf: &HttpRoute) -> HttpRoute {
    let name = match (root.name.as_str(), leaf.name.as_str()) {
        ("", name) | (name, "") => name.to_owned(),
        (root, leaf) => format!("{root}-{leaf}"),
    };
    let or = |own: &Vec<_>, other: &Vec<_>| if own.is_empty() { other.clone() } else { own.clone() };
    // `mirror` and its percentage are one thing, as are the two spellings of it.
    let copies = if leaf.mirror.is_some() || !leaf.mirrors.is_empty() { leaf } else { root };
    HttpRoute {
        name,
        matches: Vec::new(),
        route: leaf.route.clone(),
        redirect: leaf.redirect.clone(),
        direct_response: leaf.direct_response.clone().or_else(|| {
            let has_own = !leaf.route.is_empty() || leaf.redirect.is_some();
            root.direct_response.clone().filter(|_| !has_own)
        }),
        delegate: None,
        rewrite: leaf.rewrite.clone().or_else(|| root.rewrite.clone()),
        timeout: leaf.timeout.clone().or_else(|| root.timeout.clone()),
        retries: leaf.retries.clone().or_else(|| root.retries.clone()),
        fault: leaf.fault.clone().or_else(|| root.fault.clone()),
        mirror: copies.mirror.clone(),
        mirror_percentage: copies.mirror_percentage,
        mirror_percent: copies.mirror_percent,
        mirrors: or(&copies.mirrors, &Vec::new()),
        cors_policy: leaf.cors_policy.clone().or_else(|| root.cors_policy.clone()),
        headers: leaf.headers.clone().or_else(|| root.headers.clone()),
    }
}

/// Every pair of matches that can both hold; `None` if there are pairs, and none can.
fn merged_matches(root: &[HttpMatchRequest], leaf: &[HttpMatchRequest]) -> Option<Vec<HttpMatchRequest>> {
    if root.is_empty() || leaf.is_empty() {
        return Some(if root.is_empty() { leaf.to_vec() } else { root.to_vec() });
    }
    let pairs = root.iter().flat_map(|root| leaf.iter().map(move |leaf| (root, leaf)));
    let merged: Vec<_> = pairs.filter_map(|(root, leaf)| both(root, leaf)).take(MAX_MATCHES).collect();
    (!merged.is_empty()).then_some(merged)
}

/// What holds where both hold; `None` if they cannot, or it cannot be told.
fn both(root: &HttpMatchRequest, leaf: &HttpMatchRequest) -> Option<HttpMatchRequest> {
    // A root that says nothing of the path is indifferent to its case as well.
    if root.uri.is_some() && leaf.uri.is_some() && root.ignore_uri_case != leaf.ignore_uri_case {
        return None;
    }
    let maps = |root: &BTreeMap<String, StringMatch>, leaf: &BTreeMap<String, StringMatch>| {
        let mut all = root.clone();
        for (name, value) in leaf {
            let value = match root.get(name) {
                Some(of_root) => narrower(of_root, value)?,
                None => value.clone(),
            };
            all.insert(name.clone(), value);
        }
        Some(all)
    };
    let mut source_labels = root.source_labels.clone();
    for (key, value) in &leaf.source_labels {
        if root.source_labels.get(key).is_some_and(|of_root| of_root != value) {
            return None;
        }
        source_labels.insert(key.clone(), value.clone());
    }
    Some(HttpMatchRequest {
        name: match (root.name.as_str(), leaf.name.as_str()) {
            ("", name) | (name, "") => name.to_owned(),
            (root, leaf) => format!("{root}-{leaf}"),
        },
        uri: either(root.uri.as_ref(), leaf.uri.as_ref())?,
        scheme: either(root.scheme.as_ref(), leaf.scheme.as_ref())?,
        method: either(root.method.as_ref(), leaf.method.as_ref())?,
        authority: either(root.authority.as_ref(), leaf.authority.as_ref())?,
        headers: maps(&root.headers, &leaf.headers)?,
        without_headers: {
            // Neither may be there: of two for one header only equal ones can be written as one.
            let differ = |name: &String, value| root.without_headers.get(name).is_some_and(|other| other != value);
            if leaf.without_headers.iter().any(|(name, value)| differ(name, value)) {
                return None;
            }
            root.without_headers.clone().into_iter().chain(leaf.without_headers.clone()).collect()
        },
        query_params: maps(&root.query_params, &leaf.query_params)?,
        ignore_uri_case: if leaf.uri.is_some() { leaf.ignore_uri_case } else { root.ignore_uri_case },
        port: same(root.port.filter(|port| *port != 0), leaf.port.filter(|port| *port != 0))?,
        source_labels,
        source_namespace: same(text(&root.source_namespace), text(&leaf.source_namespace))?.unwrap_or_default(),
        gateways: match (root.gateways.is_empty(), leaf.gateways.is_empty()) {
            (true, _) => leaf.gateways.clone(),
            (_, true) => root.gateways.clone(),
            _ => {
                let common: Vec<_> = leaf.gateways.iter().filter(|g| root.gateways.contains(g)).cloned().collect();
                if common.is_empty() {
                    return None;
                }
                common
            }
        },
        stat_prefix: text(&leaf.stat_prefix).unwrap_or_else(|| root.stat_prefix.clone()),
    })
}

fn text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The one that is there, or what both are; `None` if they differ.
fn same<T: PartialEq>(root: Option<T>, leaf: Option<T>) -> Option<Option<T>> {
    match (root, leaf) {
        (Some(root), Some(leaf)) => (root == leaf).then_some(Some(leaf)),
        (root, leaf) => Some(leaf.or(root)),
    }
}

fn either(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> Option<Option<StringMatch>> {
    match (root, leaf) {
        (Some(root), Some(leaf)) => narrower(root, leaf).map(Some),
        (root, leaf) => Some(leaf.or(root).cloned()),
    }
}

/// What is both; `None` if nothing is, or if it cannot be told: of expressions it never can.
fn narrower(root: &StringMatch, leaf: &StringMatch) -> Option<StringMatch> {
    let anything = StringMatch::default();
    match (root, leaf) {
        (root, leaf) if *root == anything => Some(leaf.clone()),
        (root, leaf) if *leaf == anything => Some(root.clone()),
        (root, leaf) if root.regex.is_some() || leaf.regex.is_some() => None,
        (StringMatch { exact: Some(root), .. }, StringMatch { exact: Some(of_leaf), .. }) => {
            (root == of_leaf).then(|| leaf.clone())
        }
        (StringMatch { prefix: Some(root), .. }, StringMatch { exact: Some(text), .. })
        | (StringMatch { prefix: Some(root), .. }, StringMatch { prefix: Some(text), .. }) => {
            text.starts_with(root.as_str()).then(|| leaf.clone())
        }
        // The root names one text, and the delegate would take more: Istio takes that for a conflict as well.
        _ => None,
    }
}
