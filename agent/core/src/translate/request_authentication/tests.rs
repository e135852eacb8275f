//! What a RequestAuthentication says, and what its author is told.

use super::*;

const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

fn read(namespace: &str, spec: &str) -> (Option<RequestAuthentication>, Vec<String>) {
    let spec = serde_yaml::from_str(spec).unwrap_or_else(|error| panic!("{spec}: {error}"));
    let mut object = security::RequestAuthentication::new("ra", spec);
    object.metadata.namespace = Some(namespace.to_owned());
    let mut findings = Vec::new();
    let read = request_authentication(&object, "istio-system", &mut findings);
    (read, findings.into_iter().map(|finding| finding.field).collect())
}

fn rule(fields: &str) -> (JwtRule, Vec<String>) {
    let (read, fields) =
        read("shop", &format!("{{targetRefs: [{{kind: Service, name: cart}}], jwtRules: [{fields}]}}"));
    (read.unwrap().rules.remove(0), fields)
}

#[test]
fn every_field_is_read() {
    let (rule, findings) = rule(&format!(
        "{{issuer: 'https://a.example', audiences: ['https://x/', y], jwks: '{KEYS}', fromHeaders: [{{name: X-Jwt, \
         prefix: 'jwt '}}], fromParams: [t], fromCookies: [c], outputPayloadToHeader: X-Payload, outputClaimToHeaders: \
         [{{header: X-Sub, claim: sub}}, {{header: x-role, claim: realm.role}}], forwardOriginalToken: true, timeout: 2s, \
         spaceDelimitedClaims: [groups]}}"
    ));
    assert_eq!(findings, [""; 0]);
    let boxed = |parts: &[&str]| parts.iter().map(|part| Box::from(*part)).collect::<Box<[Box<str>]>>();
    let expected = JwtRule {
        issuer: Some("https://a.example".into()),
        audiences: vec!["x".into(), "y".into()],
        keys: KeySource::Inline(Arc::new(KeySet::parse(KEYS).unwrap())),
        places: Arc::new([
            Location::Header { name: "x-jwt".into(), prefix: "jwt ".into() },
            Location::Param("t".into()),
            Location::Cookie("c".into()),
        ]),
        forward_original: true,
        payload_header: Some(HeaderName::from_static("x-payload")),
        claim_headers: vec![
            (HeaderName::from_static("x-sub"), boxed(&["sub"])),
            (HeaderName::from_static("x-role"), boxed(&["realm", "role"])),
        ],
        space_delimited: Arc::new(["groups".into()]),
        timeout: Duration::from_secs(2),
        broken: None,
    };
    assert_eq!(rule, expected);
}

#[test]
fn keys_are_inline_or_at_a_url_or_discovered() {
    let keys = |fields: &str| rule(fields).0.keys;
    assert_eq!(keys("{jwksUri: 'https://a/keys'}"), KeySource::Url("https://a/keys".into()));
    assert_eq!(keys("{jwks_uri: 'https://a/keys'}"), KeySource::Url("https://a/keys".into()));
    assert_eq!(keys("{issuer: 'https://a.example/'}"), KeySource::Discovery("https://a.example".into()));
    assert_eq!(rule("{jwksUri: 'https://a/keys'}").0.places, Location::default_places());
}

#[test]
fn a_rule_that_cannot_be_read_accepts_no_token_and_is_reported() {
    for (fields, field) in [
        ("{}", "issuer"),
        ("{issuer: joe}", "issuer"),
        ("{issuer: a, jwksUri: 'ftp://a/keys'}", "jwksUri"),
        ("{issuer: a, jwksUri: '/keys'}", "jwksUri"),
        ("{issuer: a, jwks: '{}'}", "jwks"),
        (&format!("{{jwks: '{KEYS}', jwksUri: 'https://a'}}"), "jwksUri"),
        (&format!("{{jwks: '{KEYS}', fromHeaders: [{{name: 'a b'}}]}}"), "fromHeaders[0].name"),
        (&format!("{{jwks: '{KEYS}', fromParams: ['']}}"), "fromParams[0]"),
        (&format!("{{jwks: '{KEYS}', outputPayloadToHeader: 'a b'}}"), "outputPayloadToHeader"),
        (
            &format!("{{jwks: '{KEYS}', outputClaimToHeaders: [{{header: a, claim: 'b..c'}}]}}"),
            "outputClaimToHeaders[0].claim",
        ),
        (&format!("{{jwks: '{KEYS}', audiences: [{}]}}", vec!["a"; 65].join(",")), "audiences"),
    ] {
        let (rule, findings) = rule(fields);
        assert!(rule.broken.is_some(), "{fields}");
        assert_eq!(findings, [format!("spec.jwtRules[0].{field}")], "{fields}");
    }
}

#[test]
fn a_misspelt_field_accepts_no_token() {
    let yaml = format!(
        "{{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {{name: p, namespace: shop}}, spec: \
         {{targetRefs: [{{kind: Service, name: a}}], jwtRules: [{{jwks: '{KEYS}', audience: [x]}}, {{jwks: '{KEYS}'}}]}}}}"
    );
    let parsed = culvert_api::yaml::parse(yaml.as_bytes());
    let Some((culvert_api::Object::RequestAuthentication(object), _)) = parsed.objects.first() else {
        panic!("{:?}", parsed.mistakes)
    };
    let read = request_authentication(object, "istio-system", &mut Vec::new()).unwrap();
    assert_eq!(read.rules.iter().map(|rule| rule.broken.is_some()).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn a_bad_timeout_has_the_default() {
    let (rule, findings) = rule(&format!("{{jwks: '{KEYS}', timeout: 2d}}"));
    assert_eq!((rule.timeout, rule.broken, findings.len()), (DEFAULT_FETCH_TIMEOUT, None, 1));
}

#[test]
fn it_needs_a_target_that_can_be_one() {
    let targets = |namespace: &str, spec: &str| {
        let (read, findings) = read(namespace, spec);
        (read.map(|read| read.targets.len()), findings.join(" "))
    };
    assert_eq!(targets("shop", "{}"), (None, "spec.targetRefs".to_owned()));
    assert_eq!(targets("shop", "{selector: {matchLabels: {a: b}}}"), (None, "spec.targetRefs".to_owned()));
    let both = "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}";
    assert_eq!(targets("shop", both), (Some(1), "spec.selector".to_owned()));
    let class = "{targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]}";
    assert_eq!(targets("istio-system", class), (Some(1), String::new()));
    assert_eq!(targets("shop", class), (None, "spec.targetRefs[0].kind".to_owned()));
    let several = "{targetRefs: [{kind: Service, name: a}, {group: networking.istio.io, kind: ServiceEntry, name: b}, \
                   {group: gateway.networking.k8s.io, kind: Gateway, name: wp}, {kind: Pod, name: c}]}";
    assert_eq!(targets("shop", several), (Some(3), "spec.targetRefs[3].kind".to_owned()));
    let elsewhere = "{targetRef: {kind: Service, name: a, namespace: other}}";
    assert_eq!(targets("shop", elsewhere), (None, "spec.targetRef.namespace".to_owned()));
}
