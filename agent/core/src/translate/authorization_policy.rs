//! AuthorizationPolicy into what L4 enforces.
//!
//! Nothing that cannot be read, or cannot be seen at L4, may open a door: in a DENY policy it matches more, in an
//! ALLOW policy it never matches ([`crate::policy`] says how and why). Every such place is reported.

mod field;

use std::sync::Arc;

use culvert_api::meta::WorkloadSelector;
use culvert_api::names::annotation;
use culvert_api::security::{self, AuthorizationPolicySpec};
use culvert_api::{Kind, ObjectRef};

use self::field::{FieldKind, read};
use super::Finding;
use crate::policy::{Action, Alternative, AuthorizationPolicy, Clause, ClauseKind, Condition, Rule, Scope};
use crate::workload::{Labels, NamespacedName};

/// The most `rules` of a policy, and the most `from` of a rule, by Istio's CRD.
const MAX_ENTRIES: usize = 512;

/// Reads `object`, and adds to `findings` what is to be said about it.
///
/// `None` if nodes do not enforce it: the actions CUSTOM and AUDIT, and policies for waypoints (`targetRefs`).
pub fn authorization_policy(
    object: &security::AuthorizationPolicy,
    root_namespace: &str,
    findings: &mut Vec<Finding>,
) -> Option<AuthorizationPolicy> {
    let name = NamespacedName::new(
        object.metadata.namespace.as_deref().unwrap_or_default(),
        object.metadata.name.as_deref().unwrap_or_default(),
    );
    let reference = ObjectRef::new(Kind::AuthorizationPolicy, name.namespace.clone(), name.name.clone());
    let mut report = Report { object: reference, findings };
    let action = enforced_action(&object.spec, &mut report)?;
    let selector = object.spec.selector.as_ref();
    let labels = selector.map(|selector| readable_labels(selector, |field, message| report.error(field, message)));
    let selector_is_sound = labels.as_ref().map(Labels::len) == selector.map(|selector| selector.match_labels.len());
    let dry_run = dry_run(object, &mut report);
    let mut rules = Reader { namespace: &name.namespace, action, report: &mut report }.rules(&object.spec.rules);
    if action == Action::Allow && !selector_is_sound {
        // More pods than were meant are selected; none of them may be opened by it.
        let why: Box<str> = "spec.selector cannot match any pod, so that the policy allows nothing".into();
        rules = vec![Rule::Never(why); rules.len()];
    }
    if action == Action::Allow {
        close_misspelt(&mut rules, &object.spec.unknown_fields);
    }
    let scope = scope(labels.unwrap_or_default(), *name.namespace == *root_namespace);
    Some(AuthorizationPolicy { name, action, scope, rules, dry_run })
}

/// Where findings go.
struct Report<'a> {
    object: ObjectRef,
    findings: &'a mut Vec<Finding>,
}

impl Report<'_> {
    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::error(self.object.clone(), field, message));
    }

    fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::warning(self.object.clone(), field, message));
    }
}

fn enforced_action(spec: &AuthorizationPolicySpec, report: &mut Report<'_>) -> Option<Action> {
    let has_selector = spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    if spec.target_ref.is_some() || !spec.target_refs.is_empty() {
        let field = if spec.target_ref.is_some() { "spec.targetRef" } else { "spec.targetRefs" };
        if !has_selector {
            report.warning(field, "accepted for the waypoint of its targets; nodes do not enforce it");
            return None;
        }
        report.error(field, "only one of targetRefs and selector may be set: nodes enforce it on the selected pods");
    }
    match spec.action {
        security::Action::Allow => Some(Action::Allow),
        security::Action::Deny => {
            if spec.rules.is_empty() {
                report
                    .error("spec.rules", "a DENY policy without rules denies nothing: to deny everything, write [{}]");
            }
            Some(Action::Deny)
        }
        security::Action::Audit | security::Action::Custom => {
            let action = if spec.action == security::Action::Audit { "AUDIT" } else { "CUSTOM" };
            report
                .error("spec.action", format!("nodes do not support {action}, and ignore the policy: use a waypoint"));
            None
        }
    }
}

/// Keeps rules from matching where a field that nothing reads may have been meant to narrow them: one of a rule closes
/// that rule, one beside `rules` all of them. The fields are reported by whoever parsed the object.
fn close_misspelt(rules: &mut [Rule], unknown_fields: &[String]) {
    for (i, rule) in rules.iter_mut().enumerate() {
        let own = format!("spec.rules[{i}].");
        let concerns = |field: &&String| {
            field.starts_with(&own) || (field.starts_with("spec.") && !field.starts_with("spec.rules["))
        };
        if let Some(field) = unknown_fields.iter().find(concerns) {
            *rule = Rule::Never(format!("nothing reads {field}, so that the rule never matches: correct it").into());
        }
    }
}

fn scope(labels: Labels, in_root_namespace: bool) -> Scope {
    match (labels.is_empty(), in_root_namespace) {
        (true, true) => Scope::Mesh,
        (true, false) => Scope::Namespace,
        (false, true) => Scope::MeshSelector(labels),
        (false, false) => Scope::Selector(labels),
    }
}

/// The pairs of a selector that a pod can carry; `report` is told of the others.
pub(super) fn readable_labels(selector: &WorkloadSelector, mut report: impl FnMut(String, String)) -> Labels {
    let mut labels = Labels::new();
    for (key, value) in &selector.match_labels {
        if key.is_empty() || key.contains('*') || value.contains('*') || value.len() > 63 {
            let field = format!("spec.selector.matchLabels.{key}");
            report(field, format!("{value:?} is no label value that a pod can carry: wildcards are not supported"));
        } else {
            labels.insert(Arc::from(key.as_str()), Arc::from(value.as_str()));
        }
    }
    labels
}

fn dry_run(object: &security::AuthorizationPolicy, report: &mut Report<'_>) -> bool {
    let value = object.metadata.annotations.as_ref().and_then(|all| all.get(annotation::DRY_RUN));
    match value.map(String::as_str) {
        Some("true" | "True" | "TRUE" | "t" | "T" | "1") => true,
        None | Some("false" | "False" | "FALSE" | "f" | "F" | "0") => false,
        Some(other) => {
            let field = format!("metadata.annotations[{}]", annotation::DRY_RUN);
            report.warning(field, format!("{other:?} is neither true nor false: the policy is enforced"));
            false
        }
    }
}

/// Reads rules of one action.
struct Reader<'a, 'r> {
    namespace: &'a str,
    action: Action,
    report: &'a mut Report<'r>,
}

impl Reader<'_, '_> {
    fn rules(&mut self, rules: &[security::Rule]) -> Vec<Rule> {
        let kept = self.bounded("spec.rules", rules);
        kept.iter().enumerate().map(|(i, rule)| self.rule(&format!("spec.rules[{i}]"), rule)).collect()
    }

    /// What Istio's limit leaves: in ALLOW the first, in DENY all, since dropping one would open a door.
    fn bounded<'v, T>(&mut self, path: &str, entries: &'v [T]) -> &'v [T] {
        if entries.len() <= MAX_ENTRIES {
            return entries;
        }
        let message = format!("has {} entries, and at most {MAX_ENTRIES} are allowed", entries.len());
        self.report.error(path, message);
        if self.action == Action::Allow { &entries[..MAX_ENTRIES] } else { entries }
    }

    fn rule(&mut self, path: &str, rule: &security::Rule) -> Rule {
        let mut clauses = Vec::new();
        if !rule.from.is_empty() {
            let entries = self.bounded(&format!("{path}.from"), &rule.from).iter().enumerate();
            let read = entries.map(|(i, entry)| self.source(&format!("{path}.from[{i}]"), entry.source.as_ref()));
            clauses.push(Clause { kind: ClauseKind::From, alternatives: read.collect() });
        }
        if !rule.to.is_empty() {
            let entries = rule.to.iter().enumerate();
            let read = entries.map(|(i, entry)| self.operation(&format!("{path}.to[{i}]"), entry.operation.as_ref()));
            clauses.push(Clause { kind: ClauseKind::To, alternatives: read.collect() });
        }
        for (i, when) in rule.when.iter().enumerate() {
            let alternatives = [self.when(&format!("{path}.when[{i}]"), when)].into();
            clauses.push(Clause { kind: ClauseKind::When(i), alternatives });
        }
        let unseen = clauses.iter().flat_map(|clause| &clause.alternatives).flat_map(|entry| &entry.unsupported).next();
        match (self.action, unseen) {
            (Action::Allow, Some(field)) => {
                Rule::Never(format!("L4 cannot see {field}, so that the rule never matches").into())
            }
            _ => Rule::Clauses(clauses.into()),
        }
    }

    fn source(&mut self, path: &str, source: Option<&security::Source>) -> Alternative {
        let Some(source) = source else { return self.finish(path, "source", Vec::new(), Vec::new()) };
        let others = source.principals.len() + source.namespaces.len();
        if !source.service_accounts.is_empty() && others > 0 {
            let message = "must not be set beside principals or namespaces; a caller must match them all";
            self.report.error(format!("{path}.source.serviceAccounts"), message);
        }
        let fields: [(&str, FieldKind, bool, &[String]); 10] = [
            ("principals", FieldKind::Principal, false, &source.principals),
            ("notPrincipals", FieldKind::Principal, true, &source.not_principals),
            ("namespaces", FieldKind::Namespace, false, &source.namespaces),
            ("notNamespaces", FieldKind::Namespace, true, &source.not_namespaces),
            ("serviceAccounts", FieldKind::ServiceAccount, false, &source.service_accounts),
            ("notServiceAccounts", FieldKind::ServiceAccount, true, &source.not_service_accounts),
            ("trustDomains", FieldKind::TrustDomain, false, &source.trust_domains),
            ("notTrustDomains", FieldKind::TrustDomain, true, &source.not_trust_domains),
            ("ipBlocks", FieldKind::SourceIp, false, &source.ip_blocks),
            ("notIpBlocks", FieldKind::SourceIp, true, &source.not_ip_blocks),
        ];
        let path = format!("{path}.source");
        let conditions = self.conditions(&path, &fields);
        let unseen = [
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ];
        let unseen = self.unseen(&path, &unseen);
        self.finish(&path, "source", conditions, unseen)
    }

    fn operation(&mut self, path: &str, operation: Option<&security::Operation>) -> Alternative {
        let Some(operation) = operation else { return self.finish(path, "operation", Vec::new(), Vec::new()) };
        let fields: [(&str, FieldKind, bool, &[String]); 2] = [
            ("ports", FieldKind::DestinationPort, false, &operation.ports),
            ("notPorts", FieldKind::DestinationPort, true, &operation.not_ports),
        ];
        let path = format!("{path}.operation");
        let conditions = self.conditions(&path, &fields);
        let unseen = [
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
        ];
        let unseen = self.unseen(&path, &unseen);
        self.finish(&path, "operation", conditions, unseen)
    }

    fn when(&mut self, path: &str, when: &security::Condition) -> Alternative {
        let Some(kind) = FieldKind::of_key(&when.key) else {
            let field = format!("{path}.key");
            let outcome = self.outcome();
            if is_l7_key(&when.key) {
                self.report.warning(&field, format!("L4 cannot see {:?}: {outcome}", when.key));
            } else {
                self.report.error(&field, format!("{:?} is not an attribute: {outcome}", when.key));
            }
            return self.finish(path, "condition", Vec::new(), vec![field.into()]);
        };
        let fields: [(&str, FieldKind, bool, &[String]); 2] =
            [("values", kind, false, &when.values), ("notValues", kind, true, &when.not_values)];
        let conditions = self.conditions(path, &fields);
        self.finish(path, "condition", conditions, Vec::new())
    }

    fn conditions(&mut self, path: &str, fields: &[(&str, FieldKind, bool, &[String])]) -> Vec<Condition> {
        let present = fields.iter().filter(|(_, _, _, values)| !values.is_empty());
        present
            .map(|(name, kind, negated, values)| {
                let path = format!("{path}.{name}");
                read(&path, *kind, *negated, values, self.namespace, self.action, self.report)
            })
            .collect()
    }

    fn unseen(&mut self, path: &str, fields: &[(&str, &Vec<String>)]) -> Vec<Box<str>> {
        let mut unseen = Vec::new();
        for (name, _) in fields.iter().filter(|(_, values)| !values.is_empty()) {
            let field = format!("{path}.{name}");
            self.report.warning(&field, format!("L4 cannot see {name}: {}", self.outcome()));
            unseen.push(field.into());
        }
        unseen
    }

    fn finish(
        &mut self,
        path: &str,
        what: &str,
        conditions: Vec<Condition>,
        unsupported: Vec<Box<str>>,
    ) -> Alternative {
        if conditions.is_empty() && unsupported.is_empty() {
            self.report.error(path, format!("this {what} is empty, and never matches: remove it to match everything"));
        }
        Alternative { conditions: conditions.into(), unsupported: unsupported.into() }
    }

    fn outcome(&self) -> &'static str {
        match self.action {
            Action::Allow => "the rule never matches; attach the policy to a waypoint by targetRefs",
            Action::Deny => "taken to match, so that more is denied; attach the policy to a waypoint by targetRefs",
        }
    }
}

/// Whether `key` is an attribute that waypoints know.
fn is_l7_key(key: &str) -> bool {
    const EXACT: [&str; 5] =
        ["remote.ip", "request.auth.principal", "request.auth.audiences", "request.auth.presenter", "connection.sni"];
    const PREFIXES: [&str; 3] = ["request.headers[", "request.auth.claims[", "experimental.envoy.filters."];
    EXACT.contains(&key) || PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests;
