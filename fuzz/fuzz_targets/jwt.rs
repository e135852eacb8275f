//! Any token, key set and query is read or refused; a token that no key has signed is never accepted.
//!
//! The input is a key set, a line break, and what stands in the header and in the query.

#![no_main]

use std::sync::Arc;
use std::time::Duration;

use culvert_core::authentication::keys::{KeySet, MAX_KEYS, PublicKey};
use culvert_core::authentication::token::{Algorithm, Token};
use culvert_core::authentication::verify::{Request, Signatures, Verdict, authenticate, wanted};
use culvert_core::authentication::{JwtRule, KeySource, RequestAuthentication, base64url};
use culvert_core::workload::NamespacedName;
use libfuzzer_sys::fuzz_target;

/// Says the same of every signature.
struct Always(bool);

impl Signatures for Always {
    fn verify(&self, algorithm: Algorithm, key: &PublicKey, _: &[u8], _: &[u8]) -> bool {
        assert!(key.fits(algorithm), "a key is only asked for what its kind can do");
        self.0
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (keys, text) = text.split_once('\n').unwrap_or(("", text));
    if let Some(bytes) = base64url::decode(text) {
        assert_eq!(base64url::encode(&bytes), text, "there is one text for each sequence of bytes");
    }
    if let Ok(token) = Token::parse(text) {
        assert!(text.starts_with(token.signed) && token.signed.ends_with(token.payload));
    }
    let keys = KeySet::parse(keys).unwrap_or_default();
    assert!(keys.len() <= MAX_KEYS);

    let rule = JwtRule { keys: KeySource::Inline(Arc::new(keys.clone())), ..JwtRule::default() };
    let remote = JwtRule { keys: KeySource::Url("https://keys.example".into()), ..JwtRule::default() };
    let name = NamespacedName::new("shop", "tokens");
    let policies = [Arc::new(RequestAuthentication { name, targets: Box::default(), rules: vec![rule, remote] })];
    let mut headers = http::HeaderMap::new();
    if let Ok(value) = http::HeaderValue::from_str(&format!("Bearer {text}")) {
        headers.insert(http::header::AUTHORIZATION, value);
    }
    let request = Request { headers: &headers, query: text, now: Duration::from_secs(1_700_000_000) };
    assert!(wanted(&policies, &request).len() <= 1);
    let judge = |signed| authenticate(&policies, &request, &|_| None, &Always(signed));
    assert!(!matches!(judge(false), Verdict::Somebody(_)), "nobody signed it");
    if let Verdict::Somebody(accepted) = judge(true) {
        assert!(!keys.is_empty(), "without keys nothing is signed");
        assert!(accepted.authenticated.principal.is_none_or(|principal| principal.contains('/')));
    }
});
