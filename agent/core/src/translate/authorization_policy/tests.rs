//! What authors are told, and where.

use super::*;

/// The findings of the policy `shop/p`, one a line.
fn findings(spec: &str) -> String {
    findings_in("shop", spec)
}

fn findings_in(namespace: &str, spec: &str) -> String {
    let mut object = security::AuthorizationPolicy::new("p", serde_yaml::from_str(spec).unwrap());
    object.metadata.namespace = Some(namespace.to_owned());
    let mut findings = Vec::new();
    authorization_policy(&object, "istio-system", &mut findings);
    findings.iter().map(|finding| format!("{finding}\n")).collect()
}

fn scope_of(namespace: &str, spec: &str) -> Scope {
    let mut object = security::AuthorizationPolicy::new("p", serde_yaml::from_str(spec).unwrap());
    object.metadata.namespace = Some(namespace.to_owned());
    authorization_policy(&object, "istio-system", &mut Vec::new()).unwrap().scope
}

#[test]
fn a_sound_policy_has_no_findings() {
    let spec = "
        selector: {matchLabels: {app: cart}}
        action: DENY
        rules:
        - from:
          - source: {principals: [cluster.local/ns/shop/sa/a, '*/sa/b'], notNamespaces: [x], ipBlocks: [10.0.0.0/8, '::1']}
          - source: {serviceAccounts: [a, b/c], notTrustDomains: ['old.*']}
          to:
          - operation: {ports: ['80'], notPorts: ['81']}
          when:
          - {key: source.ip, values: [10.0.0.1]}
          - {key: source.serviceAccount, notValues: [x]}";
    assert_eq!(findings(spec), "");
}

#[test]
fn each_finding_names_its_field() {
    let spec = "
        action: DENY
        rules:
        - from:
          - source: {principals: [spiffe://cluster.local/ns/a/sa/b, cart], notNamespaces: ['a*b']}
          - source: {}
          - source: {ipBlocks: [10.0.0.0/8, 10.0.0.0/33], requestPrincipals: ['*']}
          - source: {serviceAccounts: [a], namespaces: [b]}
          to:
          - operation: {ports: [http], methods: [GET]}
          when:
          - {key: 'request.headers[a]', values: [b]}
          - {key: destination.labels, values: [b]}
          - {key: source.ip}";
    insta::assert_snapshot!(findings(spec), @r#"
error: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.principals[0]: "spiffe://cluster.local/ns/a/sa/b" must be written without spiffe://: here it denies what it seems to mean
error: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.principals[1]: "cart" is not of the form TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT: here it matches everything
error: AuthorizationPolicy shop/p: spec.rules[0].from[0].source.notNamespaces[0]: "a*b" may have a * only at its start or at its end: it matches nothing
error: AuthorizationPolicy shop/p: spec.rules[0].from[1].source: this source is empty, and never matches: remove it to match everything
error: AuthorizationPolicy shop/p: spec.rules[0].from[2].source.ipBlocks[1]: "10.0.0.0/33" is neither an IP address nor a CIDR: here it matches everything
warning: AuthorizationPolicy shop/p: spec.rules[0].from[2].source.requestPrincipals: L4 cannot see requestPrincipals: taken to match, so that more is denied; attach the policy to a waypoint by targetRefs
error: AuthorizationPolicy shop/p: spec.rules[0].from[3].source.serviceAccounts: must not be set beside principals or namespaces; a caller must match them all
error: AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.ports[0]: "http" is not a port from 1 to 65535: here it matches everything
warning: AuthorizationPolicy shop/p: spec.rules[0].to[0].operation.methods: L4 cannot see methods: taken to match, so that more is denied; attach the policy to a waypoint by targetRefs
warning: AuthorizationPolicy shop/p: spec.rules[0].when[0].key: L4 cannot see "request.headers[a]": taken to match, so that more is denied; attach the policy to a waypoint by targetRefs
error: AuthorizationPolicy shop/p: spec.rules[0].when[1].key: "destination.labels" is not an attribute: taken to match, so that more is denied; attach the policy to a waypoint by targetRefs
error: AuthorizationPolicy shop/p: spec.rules[0].when[2]: this condition is empty, and never matches: remove it to match everything
"#);
}

#[test]
fn what_nodes_do_not_enforce_is_reported() {
    insta::assert_snapshot!(findings("{action: AUDIT, rules: [{}]}"), @"error: AuthorizationPolicy shop/p: spec.action: nodes do not support AUDIT, and ignore the policy: use a waypoint");
    insta::assert_snapshot!(findings("{action: CUSTOM, provider: {name: x}, rules: [{}]}"), @"error: AuthorizationPolicy shop/p: spec.action: nodes do not support CUSTOM, and ignore the policy: use a waypoint");
    insta::assert_snapshot!(findings("{targetRefs: [{kind: Service, name: x}]}"), @"");
    insta::assert_snapshot!(findings("{action: DENY}"), @"error: AuthorizationPolicy shop/p: spec.rules: a DENY policy without rules denies nothing: to deny everything, write [{}]");
    insta::assert_snapshot!(findings("{selector: {matchLabels: {app: 'a*'}}}"), @r#"error: AuthorizationPolicy shop/p: spec.selector.matchLabels.app: "a*" is no label value that a pod can carry: wildcards are not supported"#);
}

#[test]
fn the_scope_follows_namespace_and_selector() {
    let labels: Labels = [("app".into(), "cart".into())].into();
    assert_eq!(scope_of("shop", "{}"), Scope::Namespace);
    assert_eq!(scope_of("shop", "{selector: {}}"), Scope::Namespace);
    assert_eq!(scope_of("istio-system", "{}"), Scope::Mesh);
    assert_eq!(scope_of("shop", "{selector: {matchLabels: {app: cart}}}"), Scope::Selector(labels.clone()));
    assert_eq!(scope_of("istio-system", "{selector: {matchLabels: {app: cart}}}"), Scope::MeshSelector(labels));
}

#[test]
fn too_many_rules_are_cut_in_allow_and_kept_in_deny() {
    let rules = vec!["{}"; 600].join(", ");
    let count = |action: &str| {
        let spec = format!("{{action: {action}, rules: [{rules}]}}");
        let object = security::AuthorizationPolicy::new("p", serde_yaml::from_str(&spec).unwrap());
        let mut findings = Vec::new();
        let policy = authorization_policy(&object, "istio-system", &mut findings).unwrap();
        assert_eq!(findings[0].field, "spec.rules");
        policy.rules.len()
    };
    assert_eq!(count("ALLOW"), 512);
    assert_eq!(count("DENY"), 600);
}

#[test]
fn a_dry_run_that_is_not_a_boolean_is_enforced() {
    let of = |value: &str| {
        let mut object = security::AuthorizationPolicy::new("p", AuthorizationPolicySpec::default());
        object.metadata.annotations = Some([(annotation::DRY_RUN.to_owned(), value.to_owned())].into());
        let mut findings = Vec::new();
        let policy = authorization_policy(&object, "istio-system", &mut findings).unwrap();
        (policy.dry_run, findings.len())
    };
    assert_eq!(of("true"), (true, 0));
    assert_eq!(of("false"), (false, 0));
    assert_eq!(of("yes"), (false, 1));
}

#[test]
fn a_misspelt_field_never_opens() {
    let rules = |spec: &str| {
        let yaml = format!(
            "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, \
             spec: {spec}}}"
        );
        let parsed = culvert_api::yaml::parse(yaml.as_bytes());
        let Some((culvert_api::Object::AuthorizationPolicy(object), _)) = parsed.objects.first() else {
            panic!("{:?}", parsed.mistakes)
        };
        let policy = authorization_policy(object, "istio-system", &mut Vec::new()).unwrap();
        policy.rules.iter().map(|rule| matches!(rule, Rule::Never(_))).collect::<Vec<_>>()
    };
    assert_eq!(rules("{rules: [{form: []}, {}]}"), [true, false]);
    assert_eq!(rules("{rules: [{to: [{operation: {port: ['80']}}]}]}"), [true]);
    assert_eq!(rules("{selectr: {}, rules: [{}, {}]}"), [true, true]);
    assert_eq!(rules("{action: DENY, rules: [{form: []}]}"), [false]);
}
