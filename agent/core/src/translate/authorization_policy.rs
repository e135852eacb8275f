//! AuthorizationPolicy into what nodes enforce at L4, and waypoints at L7.
//!
//! Nothing that cannot be read, or cannot be seen where it is enforced, may open a door: in a DENY policy it matches
//! more, in an ALLOW policy it never matches ([`crate::policy`] says how and why). Every such place is reported.

mod field;
pub(super) mod targets;

use std::sync::Arc;

use culvert_api::meta::WorkloadSelector;
use culvert_api::names::annotation;
use culvert_api::security::{self, AuthorizationPolicySpec};
use culvert_api::{Kind, ObjectRef};

use self::field::{FieldKind, read};
use super::{Finding, Findings};
use crate::policy::{
    Action, Alternative, AuthorizationPolicy, Clause, ClauseKind, Condition, PolicyTarget, Rule, Scope,
};
use crate::workload::{Labels, NamespacedName};

/// The most `rules` of a policy, and the most `from` of a rule, by Istio's CRD.
const MAX_ENTRIES: usize = 512;

/// Reads `object`, and adds to `findings` what is to be said about it.
///
/// With `targetRefs` it is for waypoints, with every field; else for nodes, with those that L4 can see. `None` if
/// nothing enforces it: the actions CUSTOM and AUDIT at nodes, and targets that cannot be.
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
    let mut report = Findings { object: reference, list: findings };
    let place = place(&object.spec, &name.namespace, root_namespace, &mut report)?;
    let action = enforced_action(&object.spec, &place, &mut report)?;
    let selector = object.spec.selector.as_ref();
    let labels = selector.map(|selector| readable_labels(selector, |field, message| report.error(field, message)));
    let selector_is_sound = labels.as_ref().map(Labels::len) == selector.map(|selector| selector.match_labels.len());
    let dry_run = dry_run(object, action, &mut report);
    let at_waypoints = matches!(place, Place::Waypoints(_));
    let mut rules =
        Reader { namespace: &name.namespace, action, at_waypoints, report: &mut report }.rules(&object.spec.rules);
    if action == Action::Allow && !selector_is_sound {
        // More pods than were meant are selected; none of them may be opened by it.
        let why: Box<str> = "spec.selector cannot match any pod, so that the policy allows nothing".into();
        rules = vec![Rule::Never(why); rules.len()];
    }
    if action == Action::Allow {
        close_misspelt(&mut rules, &object.spec.unknown_fields);
    }
    let scope = match place {
        Place::Waypoints(targets) => Scope::Targets(targets),
        Place::Nodes => scope(labels.unwrap_or_default(), *name.namespace == *root_namespace),
    };
    let provider = provider(&object.spec, action, &mut report);
    Some(AuthorizationPolicy { name, action, scope, rules, dry_run, provider })
}

/// Where a policy is enforced.
enum Place {
    Nodes,
    Waypoints(Box<[PolicyTarget]>),
}

/// `None` if nothing can enforce it.
fn place(
    spec: &AuthorizationPolicySpec,
    namespace: &str,
    root_namespace: &str,
    report: &mut Findings<'_>,
) -> Option<Place> {
    let refs: Vec<_> = targets::written(spec.target_ref.as_ref(), &spec.target_refs).collect();
    let Some((field, _)) = refs.first() else { return Some(Place::Nodes) };
    if spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty()) {
        let field = field.split('[').next().unwrap_or(field);
        report.error(field, "only one of targetRefs and selector may be set: nodes enforce it on the selected pods");
        return Some(Place::Nodes);
    }
    let targets = targets::read(refs, namespace, root_namespace, |field, message| report.error(field, message));
    (!targets.is_empty()).then_some(Place::Waypoints(targets))
}

/// Who is asked, for CUSTOM.
fn provider(spec: &AuthorizationPolicySpec, action: Action, report: &mut Findings<'_>) -> Arc<str> {
    let name = spec.provider.as_ref().and_then(|provider| provider.name.as_deref()).unwrap_or_default();
    match (action, name) {
        (Action::Custom, "") => report.error("spec.provider.name", "is missing: what matches is denied"),
        (Action::Custom, _) => {}
        _ if spec.provider.is_some() => report.warning("spec.provider", "has no effect unless the action is CUSTOM"),
        _ => {}
    }
    if action == Action::Custom { name.into() } else { "".into() }
}

fn enforced_action(spec: &AuthorizationPolicySpec, place: &Place, report: &mut Findings<'_>) -> Option<Action> {
    let action = match (spec.action, place) {
        (security::Action::Allow, _) => return Some(Action::Allow),
        (security::Action::Deny, _) => Action::Deny,
        (security::Action::Audit, Place::Waypoints(_)) => Action::Audit,
        (security::Action::Custom, Place::Waypoints(_)) => Action::Custom,
        (security::Action::Audit | security::Action::Custom, Place::Nodes) => {
            let action = if spec.action == security::Action::Audit { "AUDIT" } else { "CUSTOM" };
            report
                .error("spec.action", format!("nodes do not support {action}, and ignore the policy: use a waypoint"));
            return None;
        }
    };
    if spec.rules.is_empty() {
        let message = match action {
            Action::Custom => "a CUSTOM policy without rules asks nobody: to ask about everything, write [{}]",
            Action::Audit => "an AUDIT policy without rules marks nothing: to mark everything, write [{}]",
            _ => "a DENY policy without rules denies nothing: to deny everything, write [{}]",
        };
        report.error("spec.rules", message);
    }
    Some(action)
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

fn dry_run(object: &security::AuthorizationPolicy, action: Action, report: &mut Findings<'_>) -> bool {
    let value = object.metadata.annotations.as_ref().and_then(|all| all.get(annotation::DRY_RUN));
    match value.map(String::as_str) {
        Some("true" | "True" | "TRUE" | "t" | "T" | "1") if action == Action::Custom => {
            let field = format!("metadata.annotations[{}]", annotation::DRY_RUN);
            report.error(field, "a CUSTOM policy cannot be on trial: the policy is enforced");
            false
        }
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
    at_waypoints: bool,
    report: &'a mut Findings<'r>,
}

/// A field by its name: what its values stand for, whether it is a `not…` field, and the values.
type Field<'f> = (&'static str, FieldKind, bool, &'f [String]);

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
                let problem = if self.at_waypoints { "nothing can decide" } else { "L4 cannot see" };
                Rule::Never(format!("{problem} {field}, so that the rule never matches").into())
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
        let namespace = if self.at_waypoints { FieldKind::NamespaceGlob } else { FieldKind::Namespace };
        let fields: [Field<'_>; 10] = [
            ("principals", FieldKind::Principal, false, &source.principals),
            ("notPrincipals", FieldKind::Principal, true, &source.not_principals),
            ("namespaces", namespace.clone(), false, &source.namespaces),
            ("notNamespaces", namespace, true, &source.not_namespaces),
            ("serviceAccounts", FieldKind::ServiceAccount, false, &source.service_accounts),
            ("notServiceAccounts", FieldKind::ServiceAccount, true, &source.not_service_accounts),
            ("trustDomains", FieldKind::TrustDomain, false, &source.trust_domains),
            ("notTrustDomains", FieldKind::TrustDomain, true, &source.not_trust_domains),
            ("ipBlocks", FieldKind::SourceIp, false, &source.ip_blocks),
            ("notIpBlocks", FieldKind::SourceIp, true, &source.not_ip_blocks),
        ];
        let path = format!("{path}.source");
        let conditions = self.conditions(&path, &fields);
        let of_requests: [Field<'_>; 4] = [
            ("requestPrincipals", FieldKind::RequestPrincipal, false, &source.request_principals),
            ("notRequestPrincipals", FieldKind::RequestPrincipal, true, &source.not_request_principals),
            ("remoteIpBlocks", FieldKind::RemoteIp, false, &source.remote_ip_blocks),
            ("notRemoteIpBlocks", FieldKind::RemoteIp, true, &source.not_remote_ip_blocks),
        ];
        let (conditions, unseen) = self.of_requests(&path, conditions, &of_requests);
        self.finish(&path, "source", conditions, unseen)
    }

    fn operation(&mut self, path: &str, operation: Option<&security::Operation>) -> Alternative {
        let Some(operation) = operation else { return self.finish(path, "operation", Vec::new(), Vec::new()) };
        let fields: [Field<'_>; 2] = [
            ("ports", FieldKind::DestinationPort, false, &operation.ports),
            ("notPorts", FieldKind::DestinationPort, true, &operation.not_ports),
        ];
        let path = format!("{path}.operation");
        let conditions = self.conditions(&path, &fields);
        let of_requests: [Field<'_>; 6] = [
            ("hosts", FieldKind::Host, false, &operation.hosts),
            ("notHosts", FieldKind::Host, true, &operation.not_hosts),
            ("methods", FieldKind::Method, false, &operation.methods),
            ("notMethods", FieldKind::Method, true, &operation.not_methods),
            ("paths", FieldKind::Path, false, &operation.paths),
            ("notPaths", FieldKind::Path, true, &operation.not_paths),
        ];
        let (conditions, unseen) = self.of_requests(&path, conditions, &of_requests);
        self.finish(&path, "operation", conditions, unseen)
    }

    fn when(&mut self, path: &str, when: &security::Condition) -> Alternative {
        let kind = match self.at_waypoints {
            true => FieldKind::of_waypoint_key(&when.key).filter(|kind| self.comes_in_time(kind)),
            false => FieldKind::of_key(&when.key),
        };
        let Some(kind) = kind else {
            let field = format!("{path}.key");
            let outcome = self.outcome();
            let key: String = when.key.chars().take(100).collect();
            match (is_l7_key(&when.key), self.at_waypoints) {
                (true, false) => self.report.warning(&field, format!("L4 cannot see {key:?}: {outcome}")),
                (true, true) => self.report.error(&field, format!("nothing can decide {key:?}: {outcome}")),
                (false, _) => self.report.error(&field, format!("{key:?} is not an attribute: {outcome}")),
            }
            return self.finish(path, "condition", Vec::new(), vec![field.into()]);
        };
        let fields: [Field<'_>; 2] =
            [("values", kind.clone(), false, &when.values), ("notValues", kind, true, &when.not_values)];
        let conditions = self.conditions(path, &fields);
        self.finish(path, "condition", conditions, Vec::new())
    }

    fn conditions(&mut self, path: &str, fields: &[Field<'_>]) -> Vec<Condition> {
        let present = fields.iter().filter(|(_, _, _, values)| !values.is_empty());
        present
            .map(|(name, kind, negated, values)| {
                let path = format!("{path}.{name}");
                read(&path, kind, *negated, values, self.namespace, self.action, self.report)
            })
            .collect()
    }

    /// Adds to `conditions` those of requests, and says which cannot be decided where the policy is enforced.
    fn of_requests(
        &mut self,
        path: &str,
        mut conditions: Vec<Condition>,
        fields: &[Field<'_>],
    ) -> (Vec<Condition>, Vec<Box<str>>) {
        let mut unseen = Vec::new();
        for field in fields.iter().filter(|(_, _, _, values)| !values.is_empty()) {
            let (name, kind, ..) = field;
            if self.at_waypoints && self.comes_in_time(kind) {
                conditions.extend(self.conditions(path, std::slice::from_ref(field)));
                continue;
            }
            let (field, outcome) = (format!("{path}.{name}"), self.outcome());
            match self.at_waypoints {
                true => self.report.error(&field, format!("tokens are read after CUSTOM policies: {outcome}")),
                false => self.report.warning(&field, format!("L4 cannot see {name}: {outcome}")),
            }
            unseen.push(field.into());
        }
        (conditions, unseen)
    }

    /// Whether what a field compares is known when the policy is asked: tokens are read after CUSTOM policies.
    fn comes_in_time(&self, kind: &FieldKind) -> bool {
        self.action != Action::Custom || !kind.is_of_token()
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
        match (self.action, self.at_waypoints) {
            (Action::Allow, false) => "the rule never matches; attach the policy to a waypoint by targetRefs",
            (_, false) => "taken to match, so that more is denied; attach the policy to a waypoint by targetRefs",
            (Action::Allow, true) => "the rule never matches",
            (Action::Deny, true) => "taken to match, so that more is denied",
            (Action::Audit, true) => "taken to match, so that more is marked",
            (Action::Custom, true) => "taken to match, so that more is asked",
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
