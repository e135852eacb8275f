//! What no edit may do.

use proptest::prelude::*;
use security::{Action as Written, AuthorizationPolicySpec, Condition, From, Operation, Rule, Source, To};

use super::*;

fn some(values: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop_oneof![2 => Just(Vec::new()), 1 => proptest::sample::subsequence(values, 1..=2).prop_map(owned)]
}

fn owned(values: Vec<&'static str>) -> Vec<String> {
    values.into_iter().map(str::to_owned).collect()
}

const PRINCIPALS: &[&str] = &["cluster.local/ns/shop/sa/cart", "*/sa/pay", "cluster.local/*", "*"];
const NETWORKS: &[&str] = &["10.0.0.0/24", "10.0.0.1", "fd00::/8", "0.0.0.0/0"];
const PORTS: &[&str] = &["8080", "80"];

prop_compose! {
    fn source()(
        principals in some(PRINCIPALS), not_principals in some(PRINCIPALS),
        namespaces in some(&["shop", "oth*"]), not_namespaces in some(&["shop", "oth*"]),
        ip_blocks in some(NETWORKS), not_ip_blocks in some(NETWORKS),
    ) -> From {
        let source =
            Source { principals, not_principals, namespaces, not_namespaces, ip_blocks, not_ip_blocks, ..Source::default() };
        From { source: Some(source) }
    }
}

prop_compose! {
    fn operation()(ports in some(PORTS), not_ports in some(PORTS)) -> To {
        To { operation: Some(Operation { ports, not_ports, ..Operation::default() }) }
    }
}

prop_compose! {
    fn condition()(
        key in proptest::sample::select(vec!["source.ip", "destination.ip"]),
        values in some(NETWORKS), not_values in some(NETWORKS),
    ) -> Condition {
        Condition { key: key.to_owned(), values, not_values }
    }
}

prop_compose! {
    fn rule()(
        from in proptest::collection::vec(source(), 0..3),
        to in proptest::collection::vec(operation(), 0..3),
        when in proptest::collection::vec(condition(), 0..2),
    ) -> Rule {
        Rule { from, to, when }
    }
}

fn action() -> impl Strategy<Value = Written> {
    prop_oneof![Just(Written::Allow), Just(Written::Deny)]
}

prop_compose! {
    fn spec()(action in action(), rules in proptest::collection::vec(rule(), 1..3)) -> AuthorizationPolicySpec {
        AuthorizationPolicySpec { action, rules, ..AuthorizationPolicySpec::default() }
    }
}

prop_compose! {
    fn caller()(
        principal in proptest::sample::select(vec![
            "plaintext", "cluster.local/ns/shop/sa/cart", "cluster.local/ns/other/sa/pay", "foreign/ns/shop/sa/cart",
        ]),
        source_ip in proptest::sample::select(vec!["10.0.0.1", "10.0.0.200", "10.9.9.9", "fd00::1"]),
        port in proptest::sample::select(vec![80, 8080, 9090]),
    ) -> Caller {
        let mut caller = Caller::new(principal);
        caller.source_ip = source_ip.parse().unwrap();
        caller.destination.set_port(port);
        caller
    }
}

fn allows(spec: &AuthorizationPolicySpec, caller: &Caller) -> bool {
    let mut object = security::AuthorizationPolicy::new("p", spec.clone());
    object.metadata.namespace = Some("shop".to_owned());
    let policy = translate::authorization_policy(&object, ROOT, &mut Vec::new()).unwrap();
    decide(settings(&[]), &EffectivePeerAuthentication::default(), &[Arc::new(policy)], &caller.call(), None).allowed
}

/// Every list of `rule` that L4 can see, and then every list that it cannot.
fn lists(rule: &mut Rule) -> (Vec<&mut Vec<String>>, Vec<&mut Vec<String>>) {
    let (mut seen, mut unseen) = (Vec::new(), Vec::new());
    for source in rule.from.iter_mut().filter_map(|from| from.source.as_mut()) {
        seen.extend([
            &mut source.principals,
            &mut source.not_principals,
            &mut source.namespaces,
            &mut source.not_namespaces,
            &mut source.service_accounts,
            &mut source.not_service_accounts,
            &mut source.trust_domains,
            &mut source.not_trust_domains,
            &mut source.ip_blocks,
            &mut source.not_ip_blocks,
        ]);
        unseen.extend([
            &mut source.request_principals,
            &mut source.not_request_principals,
            &mut source.remote_ip_blocks,
            &mut source.not_remote_ip_blocks,
        ]);
    }
    for operation in rule.to.iter_mut().filter_map(|to| to.operation.as_mut()) {
        seen.extend([&mut operation.ports, &mut operation.not_ports]);
        unseen.extend([
            &mut operation.hosts,
            &mut operation.not_hosts,
            &mut operation.methods,
            &mut operation.not_methods,
            &mut operation.paths,
            &mut operation.not_paths,
        ]);
    }
    for when in &mut rule.when {
        seen.extend([&mut when.values, &mut when.not_values]);
    }
    (seen, unseen)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_field_that_l4_cannot_see_never_opens(
        spec in spec(), caller in caller(), rule: prop::sample::Index, field: prop::sample::Index,
    ) {
        let before = allows(&spec, &caller);
        let mut edited = spec.clone();
        let rule = rule.get_mut(&mut edited.rules);
        let (_, mut unseen) = lists(rule);
        if unseen.is_empty() {
            return Ok(());
        }
        field.get_mut(&mut unseen).push("x".to_owned());
        prop_assert!(before || !allows(&edited, &caller), "{spec:?}\n{edited:?}");
    }

    #[test]
    fn a_value_that_cannot_be_read_never_opens(
        spec in spec(), caller in caller(), rule: prop::sample::Index, field: prop::sample::Index,
        value in proptest::sample::select(vec!["", " ", "10.0.0.0/33/", "spiffe://", "a/b/c/d/e/f", "?", "\u{fffd}"]),
    ) {
        let before = allows(&spec, &caller);
        let mut edited = spec.clone();
        let rule = rule.get_mut(&mut edited.rules);
        let (mut seen, _) = lists(rule);
        if seen.is_empty() {
            return Ok(());
        }
        field.get_mut(&mut seen).push(value.to_owned());
        prop_assert!(before || !allows(&edited, &caller), "{spec:?}\n{edited:?}");
    }

    #[test]
    fn without_fields_of_requests_waypoints_decide_as_nodes_do(
        specs in proptest::collection::vec(spec(), 0..3), caller in caller(), is_http in any::<bool>(),
    ) {
        let compile = |attached: bool| {
            let each = specs.iter().enumerate().filter_map(|(i, spec)| {
                let mut object = security::AuthorizationPolicy::new(&format!("p{i}"), spec.clone());
                object.metadata.namespace = Some("shop".to_owned());
                if attached {
                    let target = culvert_api::meta::PolicyTargetReference {
                        kind: "Service".to_owned(), name: "cart".to_owned(), ..Default::default()
                    };
                    object.spec.target_refs.push(target);
                }
                translate::authorization_policy(&object, ROOT, &mut Vec::new()).map(Arc::new)
            });
            each.collect::<Vec<_>>()
        };
        let (nodes, waypoints) = (compile(false), compile(true));
        prop_assert_eq!(nodes.iter().map(|p| &p.rules).collect::<Vec<_>>(), waypoints.iter().map(|p| &p.rules).collect::<Vec<_>>());
        let headers = http::HeaderMap::new();
        let facts = RequestFacts {
            call: caller.call(),
            remote_ip: caller.source_ip,
            sni: None,
            http: is_http.then_some(HttpFacts { method: "GET", host: "a", path: "/", headers: &headers }),
            authenticated: None,
            agreed: &[],
        };
        let at_node = decide(settings(&[]), &EffectivePeerAuthentication::default(), &nodes, &caller.call(), None);
        let at_waypoint = decide_request(settings(&[]), &waypoints, &[], &facts);
        prop_assert_eq!(at_node.allowed, at_waypoint.is_allowed(), "{:?}", specs);
        prop_assert_eq!(at_node.reason.to_string(), at_waypoint.reason.to_string());
    }

    #[test]
    fn a_condition_that_nobody_knows_never_opens(spec in spec(), caller in caller(), rule: prop::sample::Index) {
        let mut edited = spec.clone();
        // A rule that matches everything cannot match more; where there is a clause, it must match as before.
        let when = Condition { key: "source.colour".to_owned(), values: vec!["red".to_owned()], not_values: vec![] };
        rule.get_mut(&mut edited.rules).when.push(when);
        prop_assert!(allows(&spec, &caller) || !allows(&edited, &caller), "{spec:?}");
    }

    #[test]
    fn anything_is_translated_and_decided(values in proptest::collection::vec(".*", 0..4), caller in caller()) {
        for action in [Written::Allow, Written::Deny] {
            let mut rule = Rule { from: vec![From { source: Some(Source::default()) }], ..Rule::default() };
            rule.to.push(To { operation: Some(Operation::default()) });
            for list in lists(&mut rule).0 {
                list.clone_from(&values);
            }
            let spec = AuthorizationPolicySpec { action, rules: vec![rule], ..AuthorizationPolicySpec::default() };
            allows(&spec, &caller);
        }
    }
}
