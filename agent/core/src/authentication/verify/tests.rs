//! Requests and who they are.

use serde_json::json;

use super::super::base64url;
use super::*;
use crate::workload::NamespacedName;

/// Signs by writing the key's first byte and the length of the message.
struct Toy;

impl Signatures for Toy {
    fn verify(&self, _: Algorithm, key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
        let PublicKey::Ed25519(key) = key else { return false };
        signature == format!("{}:{}", key[0], message.len()).as_bytes()
    }
}

/// Key sets hold one key each, which begins with this byte.
fn keys(first: u8) -> Arc<KeySet> {
    let mut key = [7; 32];
    key[0] = first;
    let text = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{}"}}]}}"#, base64url::encode(&key));
    Arc::new(KeySet::parse(&text).unwrap())
}

fn token(key: u8, claims: Value) -> String {
    let encode = |text: &str| base64url::encode(text.as_bytes());
    let signed = format!("{}.{}", encode(r#"{"alg":"EdDSA"}"#), encode(&claims.to_string()));
    format!("{signed}.{}", encode(&format!("{key}:{}", signed.len())))
}

fn rule(issuer: &str, key: u8) -> JwtRule {
    JwtRule { issuer: Some(issuer.into()), keys: KeySource::Inline(keys(key)), ..JwtRule::default() }
}

fn policies(rules: Vec<JwtRule>) -> Vec<Arc<RequestAuthentication>> {
    let name = NamespacedName::new("shop", "ra");
    vec![Arc::new(RequestAuthentication { name, targets: Box::default(), rules })]
}

fn judge(rules: Vec<JwtRule>, headers: &[(&'static str, &str)], query: &str) -> Verdict {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(*name, value.parse().unwrap());
    }
    let request = Request { headers: &map, query, now: Duration::from_secs(1000) };
    authenticate(&policies(rules), &request, &|_| None, &Toy)
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[test]
fn a_request_without_a_token_is_nobodys() {
    assert_eq!(judge(vec![rule("a", 1)], &[("authorization", "Basic Zm9v")], "x=1"), Verdict::Nobody);
    assert_eq!(judge(vec![], &[("authorization", "Bearer x")], ""), Verdict::Nobody, "nobody looks for one");
}

#[test]
fn a_good_token_says_who_it_is() {
    let good = token(1, json!({"iss": "a", "sub": "joe", "scope": "r w"}));
    let Verdict::Somebody(accepted) = judge(vec![rule("a", 1)], &[("authorization", &bearer(&good))], "") else {
        panic!()
    };
    assert_eq!(accepted.authenticated.principal.as_deref(), Some("a/joe"));
    assert!(matches!(&accepted.strip, Some(Location::Header { name, .. }) if &**name == "authorization"));
    assert_eq!(accepted.headers, []);
    let query = format!("access_token={good}");
    let Verdict::Somebody(accepted) = judge(vec![rule("a", 1)], &[], &query) else { panic!() };
    assert_eq!(accepted.strip, Some(Location::Param("access_token".into())));
}

#[test]
fn a_token_that_no_rule_accepts_is_refused() {
    let refused = |rules: Vec<JwtRule>, token: &str| match judge(rules, &[("authorization", &bearer(token))], "") {
        Verdict::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    let good = token(1, json!({"iss": "a", "sub": "joe"}));
    assert_eq!(refused(vec![rule("a", 2)], &good), Refusal::Signature);
    assert_eq!(refused(vec![rule("b", 1)], &good), Refusal::UnknownIssuer);
    assert_eq!(refused(vec![rule("a", 1)], "opaque"), Refusal::Malformed(Malformed::NotCompact));
    assert_eq!(refused(vec![rule("a", 1)], ""), Refusal::Malformed(Malformed::NotCompact));
    let old = token(1, json!({"iss": "a", "exp": 1}));
    assert_eq!(refused(vec![rule("a", 1)], &old), Refusal::Claims(BadClaims::Expired));
    let strict = JwtRule { audiences: vec!["x".into()], ..rule("a", 1) };
    assert_eq!(refused(vec![strict], &good), Refusal::Claims(BadClaims::Audience));
    let remote = JwtRule { keys: KeySource::Url("https://a".into()), ..rule("a", 1) };
    assert_eq!(refused(vec![remote], &good), Refusal::NoKeys);
    let broken = JwtRule { broken: Some("why".into()), ..rule("a", 1) };
    assert_eq!(refused(vec![broken], &good), Refusal::Rule("why".into()));
    let tampered = good.replacen('.', ".e", 1);
    assert!(matches!(judge(vec![rule("a", 1)], &[("authorization", &bearer(&tampered))], ""), Verdict::Refused(_)));
}

#[test]
fn a_token_is_as_good_as_any_rule_of_its_issuer_says() {
    let good = token(1, json!({"iss": "a", "sub": "joe"}));
    let rules = vec![rule("b", 1), rule("a", 2), rule("a", 1)];
    assert!(matches!(judge(rules, &[("authorization", &bearer(&good))], ""), Verdict::Somebody(_)));
    let anybody = JwtRule { issuer: None, ..rule("a", 1) };
    assert!(matches!(judge(vec![anybody], &[("authorization", &bearer(&good))], ""), Verdict::Somebody(_)));
}

#[test]
fn of_several_tokens_the_first_good_one_counts_and_several_in_one_place_are_refused() {
    let (one, two) = (token(1, json!({"iss": "a", "sub": "1"})), token(1, json!({"iss": "a", "sub": "2"})));
    let query = format!("access_token={two}");
    let Verdict::Somebody(accepted) = judge(vec![rule("a", 1)], &[("authorization", &bearer(&one))], &query) else {
        panic!()
    };
    assert_eq!(accepted.authenticated.principal.as_deref(), Some("a/1"));
    let doubled = [("authorization", &*bearer(&one)), ("authorization", &*bearer(&two))];
    assert_eq!(judge(vec![rule("a", 1)], &doubled, ""), Verdict::Refused(Refusal::Several(Several)));
}

#[test]
fn tokens_and_signatures_are_bounded() {
    let places = (0..6).map(|i| Location::Param(format!("t{i}").into())).collect();
    let query = (0..6).map(|i| format!("t{i}={i}")).collect::<Vec<_>>().join("&");
    assert_eq!(judge(vec![JwtRule { places, ..rule("a", 1) }], &[], &query), Verdict::Refused(Refusal::TooMany));
    let mut rules = vec![rule("a", 2); MAX_CHECKS];
    rules.push(rule("a", 1));
    let good = token(1, json!({"iss": "a"}));
    assert_eq!(judge(rules, &[("authorization", &bearer(&good))], ""), Verdict::Refused(Refusal::Signature));
}

#[test]
fn what_the_token_says_is_passed_on_as_asked() {
    let name = |name: &'static str| HeaderName::from_static(name);
    let path = |text: &str| text.split('.').map(Box::from).collect::<Box<[Box<str>]>>();
    let asked = JwtRule {
        forward_original: true,
        payload_header: Some(name("x-payload")),
        claim_headers: vec![
            (name("x-sub"), path("sub")),
            (name("x-role"), path("realm.role")),
            (name("x-n"), path("n")),
            (name("x-list"), path("list")),
            (name("x-none"), path("no.such")),
            (name("x-bad"), path("bad")),
        ],
        ..rule("a", 1)
    };
    let claims = json!({"iss": "a", "sub": "joe", "realm": {"role": true}, "n": 7, "list": ["x"], "bad": "a\r\nb: c"});
    let good = token(1, claims);
    let Verdict::Somebody(accepted) = judge(vec![asked.clone()], &[("authorization", &bearer(&good))], "") else {
        panic!()
    };
    assert_eq!(accepted.strip, None);
    let headers: Vec<_> = accepted.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
    let payload = good.split('.').nth(1).unwrap();
    assert_eq!(
        headers,
        [("x-payload", payload), ("x-sub", "joe"), ("x-role", "true"), ("x-n", "7"), ("x-list", "WyJ4Il0")]
    );
    let reserved = policies(vec![asked]);
    assert_eq!(reserved_headers(&reserved).count(), 7, "a client must not set them itself");
}

#[test]
fn keys_elsewhere_are_wanted_only_for_tokens_that_are_there() {
    let remote = JwtRule { keys: KeySource::Url("https://a".into()), ..rule("a", 1) };
    let rules =
        policies(vec![remote.clone(), remote, JwtRule { keys: KeySource::Url("https://b".into()), ..rule("b", 1) }]);
    let good = bearer(&token(1, json!({"iss": "a"})));
    let mut headers = HeaderMap::new();
    let want = |headers: &HeaderMap| {
        let wanted = wanted(&rules, &Request { headers, query: "", now: Duration::ZERO });
        wanted.into_iter().map(|rule| rule.keys.clone()).collect::<Vec<_>>()
    };
    assert_eq!(want(&headers), []);
    headers.insert("authorization", good.parse().unwrap());
    assert_eq!(want(&headers), [KeySource::Url("https://a".into())]);
    let request = Request { headers: &headers, query: "", now: Duration::from_secs(1000) };
    let verdict = authenticate(&rules, &request, &|_| Some(keys(1)), &Toy);
    assert!(matches!(verdict, Verdict::Somebody(_)));
}
