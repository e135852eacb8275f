//! Requests with tokens.

use std::sync::Mutex;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use culvert_core::authentication::KeySource;
use culvert_core::authentication::base64url::encode;
use culvert_core::authentication::keys::KeySet;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::reach::serve;
use super::*;
use crate::waypoint::gate::jwks::{Fetch, Keys};

/// An issuer's key.
struct Issuer(Ed25519KeyPair);

impl Issuer {
    fn new() -> Self {
        Self(Ed25519KeyPair::generate().unwrap())
    }

    fn keys(&self) -> String {
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": encode(self.0.public_key().as_ref())});
        json!({"keys": [key]}).to_string()
    }

    /// A token of `https://issuer.example` with these claims beside.
    fn token(&self, claims: Value) -> String {
        let mut all = json!({"iss": "https://issuer.example", "sub": "alice", "exp": NOW + 100});
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let signed = format!("{}.{}", encode(br#"{"alg":"EdDSA"}"#), encode(all.to_string().as_bytes()));
        format!("{signed}.{}", encode(self.0.sign(signed.as_bytes()).as_ref()))
    }
}

/// A RequestAuthentication of the cart whose one rule has these fields beside the issuer.
fn authentication(rule: Value) -> String {
    let mut all = json!({"issuer": "https://issuer.example"});
    all.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
    let object = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "ra", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "cart"}], "jwtRules": [all]},
    });
    format!("---\n{object}\n")
}

fn bearer(token: &str) -> http::request::Builder {
    get("/a?b").header("authorization", format!("Bearer {token}"))
}

#[tokio::test]
async fn a_request_without_a_token_goes_on_and_a_policy_may_ask_for_one() {
    let issuer = Issuer::new();
    let rule = authentication(json!({"jwks": issuer.keys()}));
    let asking = policy("p", "rules: [{from: [{source: {requestPrincipals: ['https://issuer.example/alice']}}]}]");
    let closed = World::new(&[rule.clone(), asking], To::nowhere());
    let open = World::new(&[rule], To::nowhere());
    assert!(allowed(open.cart(get("/")).await.0).authenticated.is_none());
    assert_eq!(
        refused(closed.cart(get("/")).await.0),
        (403, RBAC.into(), "rbac_access_denied_matched_policy[none]".into())
    );
    let alice = allowed(closed.cart(bearer(&issuer.token(json!({})))).await.0);
    assert_eq!(alice.authenticated.unwrap().principal.as_deref(), Some("https://issuer.example/alice"));
    assert_eq!(refused(closed.cart(bearer(&issuer.token(json!({"sub": "bob"})))).await.0).0, 403);
}

#[tokio::test]
async fn a_token_that_no_rule_accepts_is_refused_in_envoys_words() {
    let (issuer, other) = (Issuer::new(), Issuer::new());
    let world = World::new(&[authentication(json!({"jwks": issuer.keys(), "audiences": ["cart"]}))], To::nowhere());
    let good = json!({"aud": "cart"});
    allowed(world.cart(bearer(&issuer.token(good.clone()))).await.0);
    for (token, status, text) in [
        (other.token(good.clone()), 401, "Jwt verification fails"),
        (issuer.token(json!({"aud": "cart", "exp": NOW - 100})), 401, "Jwt is expired"),
        (issuer.token(json!({"aud": "cart", "nbf": NOW + 100})), 401, "Jwt not yet valid"),
        (issuer.token(json!({"aud": "cart", "iss": "x"})), 401, "Jwt issuer is not configured"),
        (issuer.token(json!({"aud": "other"})), 403, "Audiences in Jwt are not allowed"),
        ("abc".to_owned(), 401, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"),
        (format!("{}.e30.", encode(br#"{"alg":"none"}"#)), 401, "Jwt header [alg] is not supported"),
    ] {
        let (verdict, _) = world.cart(bearer(&token)).await;
        let Verdict::Deny(reply) = &verdict else { panic!("{token}") };
        let challenge = reply.headers["www-authenticate"].to_str().unwrap();
        assert_eq!(challenge, "Bearer realm=\"http://cart.shop/a?b\", error=\"invalid_token\"");
        let details = format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_"));
        assert_eq!(refused(verdict), (status, text.to_owned(), details));
    }
}

#[tokio::test]
async fn what_a_token_says_is_passed_on_and_nobody_else_can_say_it() {
    let issuer = Issuer::new();
    let outputs = json!([{"header": "x-sub", "claim": "sub"}, {"header": "x-team", "claim": "a.b"}]);
    let rule = json!({"jwks": issuer.keys(), "outputPayloadToHeader": "x-payload", "outputClaimToHeaders": outputs});
    let world = World::new(&[authentication(rule)], To::nowhere());
    let forge = |request: http::request::Builder| {
        request.header("x-sub", "root").header("x-team", "root").header("x-payload", "e30").header("x-mine", "kept")
    };
    let (verdict, head) = world.cart(forge(bearer(&issuer.token(json!({"a": {"b": 7}}))))).await;
    assert!(allowed(verdict).reroute, "a route must not be chosen by what was forged");
    let header = |name: &str| head.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((header("x-sub"), header("x-team"), header("x-mine")), (vec!["alice"], vec!["7"], vec!["kept"]));
    assert_eq!(header("x-payload").len(), 1);
    assert!(header("authorization").is_empty(), "the token is not passed on unless asked for");
    let (verdict, head) = world.cart(forge(get("/"))).await;
    allowed(verdict);
    assert!(["x-sub", "x-team", "x-payload"].iter().all(|name| !head.headers.contains_key(*name)));
}

#[tokio::test]
async fn a_token_is_found_where_it_may_be_and_goes_on_only_if_it_is_to() {
    let issuer = Issuer::new();
    let places = json!({"jwks": issuer.keys(), "fromHeaders": [{"name": "x-jwt", "prefix": "T "}],
        "fromParams": ["tok"], "fromCookies": ["session"]});
    let mut forwarding = places.clone();
    forwarding["forwardOriginalToken"] = json!(true);
    let token = issuer.token(json!({}));
    let requests = || {
        [
            get("/p?a=1").header("x-jwt", format!("T {token}")),
            get(&format!("/p?a=1&tok={token}")),
            get("/p?a=1").header("cookie", format!("a=b; session={token}")),
        ]
    };
    let strict = "rules: [{from: [{source: {requestPrincipals: ['*']}}]}]";
    let stripping = World::new(&[authentication(places), policy("p", strict)], To::nowhere());
    for request in requests() {
        let (verdict, head) = stripping.cart(request).await;
        allowed(verdict);
        assert_eq!(head.uri.path_and_query().unwrap().as_str(), "/p?a=1");
        assert!(!format!("{:?}", head.headers).contains(&token));
    }
    assert_eq!(refused(stripping.cart(bearer(&token)).await.0).0, 403, "where it is not looked for it is none");
    let keeping = World::new(&[authentication(forwarding)], To::nowhere());
    for request in requests() {
        let (verdict, head) = keeping.cart(request).await;
        allowed(verdict);
        assert!(format!("{:?}{}", head.headers, head.uri).contains(&token));
    }
}

/// Key servers whose keys change.
struct Rotating(Mutex<Vec<String>>);

impl Fetch for Rotating {
    fn fetch(&self, _: KeySource, _: Duration) -> BoxFuture<'static, Result<KeySet, String>> {
        let mut keys = self.0.lock().unwrap();
        let next = if keys.len() > 1 { keys.remove(0) } else { keys[0].clone() };
        Box::pin(async move { KeySet::parse(&next).map_err(|bad| bad.to_string()) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_of_a_key_that_is_new_is_accepted_as_soon_as_its_issuer_may_be_asked_again() {
    let (old, new) = (Issuer::new(), Issuer::new());
    let rule = authentication(json!({"jwksUri": "https://issuer.example/keys"}));
    let mut world = World::new(&[rule], To::nowhere());
    let rotating = Rotating(Mutex::new(vec![old.keys(), new.keys()]));
    world.gate.keys = Keys::with(Arc::new(rotating));
    allowed(world.cart(bearer(&old.token(json!({})))).await.0);
    assert_eq!(refused(world.cart(bearer(&new.token(json!({})))).await.0).1, "Jwt verification fails");
    tokio::time::sleep(Duration::from_secs(31)).await;
    allowed(world.cart(bearer(&new.token(json!({})))).await.0);
    assert_eq!(refused(world.cart(bearer(&old.token(json!({})))).await.0).1, "Jwt verification fails");
}

#[tokio::test]
async fn keys_elsewhere_are_fetched_through_the_mesh_and_without_them_tokens_are_refused() {
    let issuer = Issuer::new();
    let keys = issuer.keys();
    let address = serve(move |request| {
        assert_eq!(request.uri().path(), "/keys");
        http::Response::new(keys.clone().into())
    })
    .await;
    let rule = authentication(json!({"jwksUri": "http://opa.shop:8000/keys"}));
    let world = World::new(std::slice::from_ref(&rule), To::one(8000, address));
    allowed(world.cart(bearer(&issuer.token(json!({})))).await.0);
    let away = World::new(&[rule], To::nowhere());
    assert_eq!(refused(away.cart(bearer(&issuer.token(json!({})))).await.0).1, "Jwks remote fetch is failed");
}
