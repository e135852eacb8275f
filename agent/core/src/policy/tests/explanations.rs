//! What people are told.

use super::*;

const CART: &str = "cluster.local/ns/shop/sa/cart";

fn reason(caller: &str, specs: &[&str]) -> String {
    decide_for(&Caller::new(caller), specs).reason.to_string()
}

#[test]
fn a_match_names_policy_rule_clause_and_value() {
    let spec = "{rules: [{}, {from: [{source: {namespaces: [x]}}, {source: {principals: [a/ns/b/sa/c, '*/sa/cart']}}],
        to: [{operation: {ports: ['80', '8080'], notPorts: ['1']}}]}]}";
    let spec = spec.replacen("{}, ", "{from: [{source: {namespaces: [y]}}]}, ", 1);
    let decision = decide_for(&Caller::new(CART), &[&spec]);
    assert_eq!(
        decision.reason.to_string(),
        "allowed by AuthorizationPolicy shop/p0, rule 1: from[1].source.principals[1] = \"*/sa/cart\" (source.principal), \
         to[0].operation.ports[1] = \"8080\" (destination.port), to[0].operation.notPorts names none that match"
    );
    let explanation = decision.reason.explanation();
    assert_eq!(explanation.policy.as_deref(), Some("shop/p0"));
    assert_eq!(explanation.rule, Some(1));
    assert_eq!(explanation.clause.as_deref(), Some("from[1].source.principals[1]"));
    assert_eq!(explanation.value.as_deref(), Some("*/sa/cart"));
}

#[test]
fn a_denial_says_what_l4_could_not_see() {
    assert_eq!(
        reason(CART, &["{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}"]),
        "denied by AuthorizationPolicy shop/p0, rule 0: to[0] has only fields that L4 cannot see \
         (spec.rules[0].to[0].operation.methods), and matches"
    );
}

#[test]
fn a_denial_says_which_value_could_not_be_read() {
    assert_eq!(
        reason(CART, &["{action: DENY, rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]}"]),
        "denied by AuthorizationPolicy shop/p0, rule 0: from[0].source.ipBlocks[0] = \"nonsense\" cannot be read, and \
         is taken to match"
    );
}

#[test]
fn when_none_allows_the_nearest_is_named() {
    let port = "{rules: [{from: [{source: {namespaces: [other]}}]},
        {from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['80']}}]}]}";
    assert_eq!(
        reason(CART, &["{}", port, "{rules: [{to: [{operation: {methods: [GET]}}]}]}"]),
        "ALLOW policies apply, and none of them matches: shop/p1, rule 1: to[0].operation.ports does not include 8080; \
         shop/p0: has no rules; shop/p2, rule 0: L4 cannot see spec.rules[0].to[0].operation.methods, so that the rule \
         never matches"
    );
}

#[test]
fn plaintext_is_named_as_the_cause() {
    assert_eq!(
        reason("plaintext", &["{rules: [{from: [{source: {principals: ['*']}}]}]}"]),
        "ALLOW policies apply, and none of them matches: shop/p0, rule 0: from[0].source.principals does not include a \
         caller without an identity (plaintext)"
    );
}

#[test]
fn a_long_list_of_policies_is_cut() {
    let decision = decide_for(&Caller::new(CART), &["{}"; 50]);
    assert!(decision.reason.to_string().ends_with("; and 47 more"), "{}", decision.reason);
}

#[test]
fn dry_run_policies_say_what_they_would_do() {
    let specs = ["dry {action: DENY, rules: [{from: [{source: {namespaces: [x]}}]}, {}]}", "dry {}"];
    let decision = decide_for(&Caller::new(CART), &specs);
    assert!(decision.allowed);
    let said: Vec<_> = decision.dry_run.iter().map(|dry| (&*dry.policy.name.name, dry.rule)).collect();
    assert_eq!(said, [("dry0", Some(1)), ("dry1", None)]);
}

#[test]
fn an_allowed_call_allocates_nothing() {
    let many = "{rules: [{from: [{source: {principals: ['*'], namespaces: ['*'], trustDomains: ['*'], ipBlocks: [0.0.0.0/0]}}],
        to: [{operation: {ports: ['8080']}}], when: [{key: source.ip, values: [0.0.0.0/0]}]}]}";
    let decision = decide_for(&Caller::new(CART), &[many, "dry {}", "dry {}"]);
    assert!(!decision.dry_run.spilled());
    let Reason::Allowed(found) = &decision.reason else { panic!("{}", decision.reason) };
    assert!(!found.spilled());
}

#[test]
fn a_decision_is_small() {
    assert!(size_of::<Decision>() <= 160, "{}", size_of::<Decision>());
}

#[test]
fn a_dumped_policy_looks_as_it_was_written() {
    let spec = "{action: DENY, rules: [{from: [{source: {principals: ['*'], requestPrincipals: [x]}}],
        when: [{key: source.ip, values: [10.0.0.1], notValues: [10.0.0.2]}]}]}";
    let dumped = serde_json::to_string(&policies(&[spec, "{rules: [{to: [{operation: {paths: [/]}}]}]}"])).unwrap();
    insta::assert_snapshot!(dumped, @r#"[{"name":{"namespace":"shop","name":"p0"},"action":"DENY","scope":"Namespace","dryRun":false,"rules":[{"from":[{"source.principals":["*"],"unsupported":["spec.rules[0].from[0].source.requestPrincipals"]}],"when[0]":[{"key":"source.ip","values":["10.0.0.1"],"notValues":["10.0.0.2"]}]}]},{"name":{"namespace":"shop","name":"p1"},"action":"ALLOW","scope":"Namespace","dryRun":false,"rules":[{"never":"L4 cannot see spec.rules[0].to[0].operation.paths, so that the rule never matches"}]}]"#);
}
