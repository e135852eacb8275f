//! What the claims of a verified token must say (RFC 7519 section 4.1).

use std::time::Duration;

use serde_json::{Map, Value};

use super::JwtRule;

/// How far clocks may differ, as Envoy has it.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Why the claims of a token are not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadClaims {
    /// `exp` is over.
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` is still to come.
    #[error("the token is not valid yet")]
    NotYet,
    /// `exp`, `nbf` or `iat` is no number of seconds.
    #[error("the token's {0} is no number of seconds")]
    NoTime(&'static str),
    /// `iss` is another than the rule's.
    #[error("the token is of another issuer")]
    Issuer,
    /// `aud` names none of the rule's audiences.
    #[error("the token is for another audience")]
    Audience,
}

/// Whether `rule` accepts the claims of a token whose signature is good; `now` is since 1970.
///
/// # Errors
/// When it does not.
pub fn check(rule: &JwtRule, claims: &Map<String, Value>, now: Duration) -> Result<(), BadClaims> {
    if let Some(issuer) = &rule.issuer
        && claims.get("iss").and_then(Value::as_str) != Some(issuer)
    {
        return Err(BadClaims::Issuer);
    }
    let (now, skew) = (now.as_secs_f64(), CLOCK_SKEW.as_secs_f64());
    if time(claims, "exp")?.is_some_and(|expires| now >= expires + skew) {
        return Err(BadClaims::Expired);
    }
    for name in ["nbf", "iat"] {
        if time(claims, name)?.is_some_and(|starts| starts > now + skew) {
            return Err(BadClaims::NotYet);
        }
    }
    if rule.audiences.is_empty() || audiences(claims).any(|audience| rule.audiences.iter().any(|a| **a == *audience)) {
        return Ok(());
    }
    Err(BadClaims::Audience)
}

/// An audience as it is compared: without a scheme and a final slash, as Envoy has it.
pub fn audience(text: &str) -> &str {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    bare.strip_suffix('/').unwrap_or(bare)
}

fn audiences(claims: &Map<String, Value>) -> impl Iterator<Item = &str> {
    let several = claims.get("aud").and_then(Value::as_array).into_iter().flatten();
    several.chain(claims.get("aud")).filter_map(Value::as_str).map(audience)
}

fn time(claims: &Map<String, Value>, name: &'static str) -> Result<Option<f64>, BadClaims> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0) {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(BadClaims::NoTime(name)),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn checked(rule: &JwtRule, claims: Value) -> Result<(), BadClaims> {
        check(rule, claims.as_object().unwrap(), NOW)
    }

    #[test]
    fn times_count_with_a_minute_of_skew() {
        let rule = JwtRule::default();
        for (claims, result) in [
            (json!({}), Ok(())),
            (json!({"exp": 1_000_001}), Ok(())),
            (json!({"exp": 999_941}), Ok(())),
            (json!({"exp": 999_940}), Err(BadClaims::Expired)),
            (json!({"exp": 0}), Err(BadClaims::Expired)),
            (json!({"nbf": 1_000_060}), Ok(())),
            (json!({"nbf": 1_000_061}), Err(BadClaims::NotYet)),
            (json!({"iat": 1_000_061}), Err(BadClaims::NotYet)),
            (json!({"exp": 1_000_000.5, "nbf": 1.5}), Ok(())),
            (json!({"exp": "1000001"}), Err(BadClaims::NoTime("exp"))),
            (json!({"exp": null}), Err(BadClaims::NoTime("exp"))),
            (json!({"nbf": -1}), Err(BadClaims::NoTime("nbf"))),
            (json!({"iat": []}), Err(BadClaims::NoTime("iat"))),
        ] {
            assert_eq!(checked(&rule, claims.clone()), result, "{claims}");
        }
    }

    #[test]
    fn the_issuer_is_exact_and_an_audience_must_be_among_the_rules() {
        let rule = JwtRule {
            issuer: Some("https://a.example".into()),
            audiences: vec!["x.example".into(), "y".into()],
            ..JwtRule::default()
        };
        for (iss, aud, result) in [
            (json!("https://a.example"), json!("y"), Ok(())),
            (json!("https://a.example"), json!(["w", "y"]), Ok(())),
            (json!("https://a.example"), json!("https://x.example/"), Ok(())),
            (json!("https://a.example"), json!("z"), Err(BadClaims::Audience)),
            (json!("https://a.example"), json!([1, {}]), Err(BadClaims::Audience)),
            (json!("https://a.example"), json!(null), Err(BadClaims::Audience)),
            (json!("https://a.example/"), json!("y"), Err(BadClaims::Issuer)),
            (json!(null), json!("y"), Err(BadClaims::Issuer)),
        ] {
            assert_eq!(checked(&rule, json!({"iss": iss, "aud": aud})), result, "{iss} {aud}");
        }
    }
}
