//! VirtualServices that say more of another's rules.

use super::*;

fn delegate(namespace: &str, name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{rest}\n"
    )
}

const ROOT: &str = "
- match: [{uri: {prefix: /a}}]
  name: root
  delegate: {name: leaf}
  timeout: 3s
  headers: {request: {set: {x: root}}}
- match: [{uri: {prefix: /other}}]
  delegate: {name: leaf, namespace: other}
- directResponse: {status: 404}
";

fn outcome(leaf: &str, line: &str) -> (String, Vec<String>) {
    let snapshot = with(&(rules(ROOT) + &delegate("shop", "leaf", leaf)));
    let lines = findings(&snapshot).into_iter().filter(|line| !line.contains("other/leaf")).collect();
    (describe(&decide(&snapshot, line, &[], 1)), lines)
}

#[test]
fn a_delegates_rules_take_what_both_matches_ask_for() {
    let matched =
        |matched: &str| format!("  http: [{{match: [{matched}], route: [{{destination: {{host: stock}}}}]}}]");
    let taken = "0: stock.shop:8000 within 3s";
    for (leaf, line, expected) in [
        ("{uri: {prefix: /a/b}}", "GET http://cart/a/b", taken),
        ("{uri: {prefix: /a/b}}", "GET http://cart/a", "2: 404 b\"\""),
        ("{uri: {exact: /a/x}}", "GET http://cart/a/x", taken),
        ("{method: {exact: GET}}", "GET http://cart/a", taken),
        ("{method: {exact: GET}}", "GET http://cart/", "2: 404 b\"\""),
        ("{headers: {h: {exact: v}}}", "GET http://cart/a", "2: 404 b\"\""),
        ("{port: 80}", "GET http://cart/a", taken),
    ] {
        assert_eq!(outcome(&matched(leaf), line), (expected.to_owned(), vec![]), "{leaf} {line}");
    }
}

#[test]
fn a_delegates_rule_that_conflicts_with_every_match_of_the_root_is_left_out() {
    for leaf in [
        "{uri: {prefix: /b}}",
        "{uri: {regex: '/a.*'}}",
        "{uri: {prefix: /a}, ignoreUriCase: true}",
        "{uri: {exact: /}}",
    ] {
        let http = format!("  http: [{{match: [{leaf}], route: [{{destination: {{host: stock}}}}]}}]");
        let (outcome, findings) = outcome(&http, "GET http://cart/a");
        assert_eq!(outcome, "2: 404 b\"\"", "{leaf}");
        assert!(findings[0].contains("takes nothing that this rule takes"), "{findings:?}");
    }
}

#[test]
fn what_a_delegate_leaves_out_is_the_roots() {
    let leaf = "  http:
  - name: leaf
    timeout: 1s
    route: [{destination: {host: stock}}]";
    let snapshot = with(&(rules(ROOT) + &delegate("shop", "leaf", leaf)));
    let decision = decide(&snapshot, "GET http://cart/a", &[], 1);
    assert_eq!(describe(&decision), "0: stock.shop:8000 within 1s");
    let rule = decision.rule.clone().unwrap();
    assert_eq!(
        (&*rule.name, rule.delegate.as_ref().unwrap().0.to_string()),
        ("root-leaf", "VirtualService shop/leaf".to_owned())
    );
    assert_eq!(request_headers(&snapshot, "GET http://cart/a", &[]), ["x: root"]);
}

#[test]
fn a_delegate_of_another_namespace_names_its_own_hosts_and_has_to_be_exported() {
    let route = "  http: [{route: [{destination: {host: stock}}]}]";
    let ask = |leaf: &str| {
        let snapshot = with(&(rules(ROOT) + &delegate("other", "leaf", leaf) + &delegate("shop", "leaf", route)));
        (describe(&decide(&snapshot, "GET http://cart/other", &[], 1)), findings(&snapshot))
    };
    assert_eq!(ask(route), ("1: stock.other:9000".to_owned(), vec![]));
    let (outcome, findings) = ask(&format!("{route}\n  exportTo: [.]"));
    assert_eq!(outcome, "2: 404 b\"\"");
    assert!(findings[0].contains("not exported to shop"), "{findings:?}");
}

#[test]
fn what_is_no_delegate_is_told() {
    for (leaf, message) in [
        ("  hosts: [stock]\n  http: [{directResponse: {status: 200}}]", "has hosts"),
        ("  http: [{delegate: {name: further}}]", "cannot delegate further"),
    ] {
        let (outcome, findings) = outcome(leaf, "GET http://cart/a");
        assert_eq!(outcome, "2: 404 b\"\"");
        assert!(findings.iter().any(|line| line.contains(message)), "{findings:?}");
    }
    assert!(findings(&with(&rules(ROOT)))[0].contains("there is no VirtualService shop/leaf"));
}

#[test]
fn a_change_of_a_delegate_changes_the_rules_of_its_root() {
    use crate::mesh::tests::objects;
    let mut mesh = mesh(&format!("{MESH}---\n{}", rules(ROOT)));
    let ask = |mesh: &crate::mesh::Mesh| describe(&decide(&mesh.snapshot(), "GET http://cart/a", &[], 1));
    assert_eq!(ask(&mesh), "2: 404 b\"\"");
    mesh.apply(objects(&delegate("shop", "leaf", "  http: [{directResponse: {status: 201}}]")));
    assert_eq!(ask(&mesh), "0: 201 b\"\"");
    mesh.apply([crate::mesh::Change::Remove(culvert_api::ObjectRef::new(
        culvert_api::Kind::VirtualService,
        "shop",
        "leaf",
    ))]);
    assert_eq!(ask(&mesh), "2: 404 b\"\"");
}
