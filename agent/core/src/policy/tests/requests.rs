//! What waypoints are asked for, field by field.

use http::HeaderMap;
use serde_json::Value;

mod fields;

use super::*;
use crate::authentication::Authenticated;
use crate::options::ext_authz::{ExtAuthz, ExtAuthzProtocol};
use crate::translate::Severity;

/// A request: a GET of `/`, from 10.0.0.1 by `cluster.local/ns/shop/sa/front`, for cart.shop:80 (10.0.1.1).
struct Asked {
    caller: Caller,
    remote_ip: &'static str,
    sni: Option<&'static str>,
    method: &'static str,
    host: &'static str,
    path: &'static str,
    headers: HeaderMap,
    token: Option<Authenticated>,
    is_http: bool,
    agreed: Vec<Arc<str>>,
}

impl Asked {
    fn new(prepare: impl Fn(&mut Self)) -> Self {
        let mut caller = Caller::new("cluster.local/ns/shop/sa/front");
        caller.destination.set_port(80);
        let mut asked = Self {
            caller,
            remote_ip: "203.0.113.9",
            sni: None,
            method: "GET",
            host: "cart.shop",
            path: "/",
            headers: HeaderMap::new(),
            token: None,
            is_http: true,
            agreed: Vec::new(),
        };
        prepare(&mut asked);
        asked
    }

    fn header(&mut self, name: &'static str, value: &'static str) {
        self.headers.append(name, value.parse().unwrap());
    }

    fn claims(&mut self, claims: Value) {
        let Value::Object(claims) = claims else { panic!("claims are an object") };
        self.token = Some(Authenticated::new(claims, Arc::new(["groups".into()])));
    }

    fn decide(&self, specs: &[&str]) -> RequestDecision {
        let facts = RequestFacts {
            call: self.caller.call(),
            remote_ip: self.remote_ip.parse().unwrap(),
            sni: self.sni,
            http: self.is_http.then_some(HttpFacts {
                method: self.method,
                host: self.host,
                path: self.path,
                headers: &self.headers,
            }),
            authenticated: self.token.as_ref(),
            agreed: &self.agreed,
        };
        decide_request(settings(&["old.td".into()]), &attached(specs), &[provider("opa")], &facts)
    }
}

fn provider(name: &str) -> Arc<ExtAuthz> {
    Arc::new(ExtAuthz {
        name: name.into(),
        namespace: None,
        host: "opa.example".into(),
        port: 9000,
        timeout: std::time::Duration::from_secs(1),
        fail_open: false,
        status_on_error: 403,
        clear_route_cache: false,
        body: None,
        protocol: ExtAuthzProtocol::Grpc,
    })
}

/// The policy `shop/name`, attached to the Service `cart`.
fn attach(name: &str, spec: &str) -> (Option<AuthorizationPolicy>, Vec<Finding>) {
    let (annotated, spec) = match spec.strip_prefix("dry ") {
        Some(spec) => (true, spec),
        None => (false, spec),
    };
    let mut spec: security::AuthorizationPolicySpec =
        serde_yaml::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
    spec.target_refs.push(culvert_api::meta::PolicyTargetReference {
        kind: "Service".to_owned(),
        name: "cart".to_owned(),
        ..Default::default()
    });
    let mut object = security::AuthorizationPolicy::new(name, spec);
    object.metadata.namespace = Some("shop".to_owned());
    object.metadata.annotations = Some([("istio.io/dry-run".to_owned(), annotated.to_string())].into());
    let mut findings = Vec::new();
    (translate::authorization_policy(&object, ROOT, &mut findings), findings)
}

fn attached(specs: &[&str]) -> Vec<Arc<AuthorizationPolicy>> {
    let named = specs.iter().enumerate().map(|(i, spec)| attach(&format!("p{i}"), spec).0.map(Arc::new));
    named.flatten().collect()
}

/// A fact: whether a rule of this matches this request, be it in ALLOW or in DENY.
struct Matches(&'static str, &'static str, fn(&mut Asked), bool);

fn check_matches(rows: &[Matches]) {
    let mut wrong = Vec::new();
    for Matches(fact, rule, prepare, matches) in rows {
        let asked = Asked::new(prepare);
        let allow = asked.decide(&[&format!("{{rules: [{rule}]}}")]);
        let deny = asked.decide(&[&format!("{{action: DENY, rules: [{rule}]}}")]);
        if (allow.is_allowed(), deny.is_allowed()) != (*matches, !*matches) {
            wrong.push(format!("{fact}: {rule}: ALLOW: {}; DENY: {}", allow.reason, deny.reason));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn to(fields: &str) -> String {
    format!("{{to: [{{operation: {fields}}}]}}")
}

/// A fact: with this policy, whether this request is allowed.
struct Allowed(&'static str, &'static str, fn(&mut Asked), bool);

fn check_allowed(rows: &[Allowed]) {
    let decide = |Allowed(fact, spec, prepare, allowed): &Allowed| {
        let decision = Asked::new(prepare).decide(&[spec]);
        (decision.is_allowed() != *allowed).then(|| format!("{fact}: {spec}: {}", decision.reason))
    };
    let wrong: Vec<_> = rows.iter().filter_map(decide).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

const ASK: &str = "{action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: ['/admin*']}}]}]}";

#[test]
fn custom_comes_before_deny_and_deny_before_allow() {
    let deny = "{action: DENY, rules: [{to: [{operation: {methods: [PUT]}}]}]}";
    let allow = "{rules: [{}]}";
    let asked = |prepare: fn(&mut Asked)| Asked::new(prepare).decide(&[allow, deny, ASK]);

    let decision = asked(|r| (r.method, r.path) = ("PUT", "/admin/x"));
    assert!(matches!(&decision.verdict, Verdict::Ask(provider) if &*provider.name == "opa"));
    insta::assert_snapshot!(decision.reason, @r#"for provider "opa" to decide, by AuthorizationPolicy shop/p2, rule 0: to[0].operation.paths[0] = "/admin*" (request.url_path)"#);
    assert!(!decision.is_allowed());

    let decision = asked(|r| {
        (r.method, r.path) = ("PUT", "/admin/x");
        r.agreed = vec!["opa".into()];
    });
    assert!(matches!(decision.reason, Reason::Denied(_)), "{}", decision.reason);

    let decision = asked(|r| {
        r.path = "/admin/x";
        r.agreed = vec!["opa".into()];
    });
    assert!(decision.is_allowed() && matches!(decision.reason, Reason::Allowed(_)));
    assert!(asked(|r| r.path = "/public").is_allowed());
}

#[test]
fn a_provider_that_nobody_knows_denies() {
    for spec in ["{action: CUSTOM, provider: {name: nobody}, rules: [{}]}", "{action: CUSTOM, rules: [{}]}"] {
        let decision = Asked::new(|_| {}).decide(&[spec]);
        assert!(matches!(decision.verdict, Verdict::Deny) && matches!(decision.reason, Reason::UnknownProvider(_)));
    }
    assert!(Asked::new(|_| {}).decide(&["{action: CUSTOM, provider: {name: nobody}}"]).is_allowed(), "asks nothing");
}

#[test]
fn each_provider_whose_policy_matches_is_asked() {
    let policies = [ASK, "{action: CUSTOM, provider: {name: other}, rules: [{}]}"];
    let decision = |agreed: &[&str]| {
        let mut asked = Asked::new(|r| r.path = "/admin");
        asked.agreed = agreed.iter().map(|name| Arc::from(*name)).collect();
        asked.decide(&policies)
    };
    assert!(matches!(decision(&[]).reason, Reason::Ask(_)));
    assert!(matches!(decision(&["opa"]).reason, Reason::UnknownProvider(_)));
    assert!(decision(&["opa", "other"]).is_allowed());
}

#[test]
fn custom_with_fields_of_a_token_asks_about_more() {
    let spec =
        "{action: CUSTOM, provider: {name: opa}, rules: [{when: [{key: 'request.auth.claims[a]', values: [b]}]}]}";
    assert!(matches!(Asked::new(|_| {}).decide(&[spec]).verdict, Verdict::Ask(_)));
    let (_, findings) = attach("p", spec);
    assert_eq!(findings.len(), 1, "{findings:?}");
    let spec = "{action: CUSTOM, provider: {name: opa}, rules: [{from: [{source: {requestPrincipals: [x]}}], to: [{operation: {paths: [/a]}}]}]}";
    assert!(Asked::new(|_| {}).decide(&[spec]).is_allowed(), "the rest of the rule still counts");
}

#[test]
fn audit_marks_and_never_decides() {
    let audit = "{action: AUDIT, rules: [{to: [{operation: {methods: [GET]}}]}]}";
    let decision = Asked::new(|_| {}).decide(&[audit]);
    assert!(decision.is_allowed() && matches!(decision.reason, Reason::NoAllowPolicy));
    assert_eq!(decision.audit.map(|found| found.rule), Some(0));
    let decision = Asked::new(|r| r.method = "PUT").decide(&[audit]);
    assert!(decision.is_allowed() && decision.audit.is_none());
    let decision = Asked::new(|_| {}).decide(&[audit, "{}"]);
    assert!(!decision.is_allowed() && decision.audit.is_some());
}

#[test]
fn a_policy_on_trial_is_reported_and_decides_nothing() {
    let deny = "dry {action: DENY, rules: [{to: [{operation: {paths: [/]}}]}]}";
    let decision = Asked::new(|_| {}).decide(&[deny]);
    assert!(decision.is_allowed());
    assert_eq!(decision.dry_run.iter().map(|trial| trial.rule).collect::<Vec<_>>(), [Some(0)]);
    assert!(Asked::new(|_| {}).decide(&["dry {}"]).is_allowed(), "an ALLOW policy on trial closes nothing");
    let (policy, findings) = attach("p", &format!("dry {ASK}"));
    assert!(!policy.unwrap().dry_run && findings.len() == 1, "a CUSTOM policy cannot be on trial");
}

#[test]
fn a_refusal_says_what_was_wanted_and_what_there_was() {
    let refused = |spec: &str, prepare: fn(&mut Asked)| Asked::new(prepare).decide(&[spec]).reason.to_string();
    insta::assert_snapshot!(refused("{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {paths: [/a], methods: [GET]}}]}]}", |r| r.path = "/b\n"), @r#"ALLOW policies apply, and none of them matches: shop/p0, rule 0: to[0].operation.paths does not include "/b\n""#);
    insta::assert_snapshot!(refused("{rules: [{when: [{key: 'request.headers[authorization]', values: [x]}]}]}", |r| r.header("authorization", "secret")), @"ALLOW policies apply, and none of them matches: shop/p0, rule 0: when[0].values does not include the request's header authorization");
    insta::assert_snapshot!(refused("{rules: [{when: [{key: 'request.auth.claims[a][b]', values: [x]}]}]}", |_| {}), @"ALLOW policies apply, and none of them matches: shop/p0, rule 0: when[0].values does not include a request without a token");
    insta::assert_snapshot!(refused("{action: DENY, rules: [{when: [{key: 'request.headers[x-a]', values: [x, 'y*']}]}]}", |r| r.header("x-a", "yes")), @r#"denied by AuthorizationPolicy shop/p0, rule 0: when[0].values[1] = "y*" (request.headers[x-a])"#);
    insta::assert_snapshot!(refused("{action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]}", |r| r.is_http = false), @"denied by AuthorizationPolicy shop/p0, rule 0: to[0] has only fields that cannot be seen here (operation.paths), and matches");
    let decision = Asked::new(|_| {}).decide(&["{action: DENY, rules: [{to: [{operation: {hosts: [cart.shop]}}]}]}"]);
    let explanation = decision.reason.explanation();
    assert_eq!(
        (explanation.clause.as_deref(), explanation.value.as_deref()),
        (Some("to[0].operation.hosts[0]"), Some("cart.shop"))
    );
    assert_eq!(
        decision.reason.response_code_details().unwrap(),
        "rbac_access_denied_matched_policy[ns[shop]-policy[p0]-rule[0]]"
    );
}

#[test]
fn what_authors_may_have_meant_otherwise_is_said() {
    let odd = |rule: &str| {
        let (_, findings) = attach("p", &format!("{{rules: [{rule}]}}"));
        findings.iter().filter(|finding| finding.severity == Severity::Warning).count()
    };
    for fields in
        ["{methods: [get]}", "{paths: [admin]}", "{paths: ['/a?b']}", "{hosts: ['https://a']}", "{paths: ['/a*b']}"]
    {
        assert_eq!(odd(&to(fields)), 1, "{fields}");
    }
    for fields in ["{methods: [GET, 'P*']}", "{paths: [/a, '*', '*.x', '/a/{*}']}", "{hosts: ['*.a', 'b:*']}"] {
        let (_, findings) = attach("p", &format!("{{rules: [{}]}}", to(fields)));
        assert_eq!(findings, [], "{fields}");
    }
}

#[test]
fn nodes_do_not_enforce_what_is_attached_to_waypoints() {
    let (policy, _) = attach("p", "{action: DENY, rules: [{}]}");
    assert!(!policy.unwrap().is_for_nodes());
}
