//! Who a request says that it is: RequestAuthentication, and the tokens (JWT) that it asks for.

use std::sync::Arc;

use serde_json::{Map, Value};

/// What a verified token says.
#[derive(Clone, Debug, PartialEq)]
pub struct Authenticated {
    /// `ISSUER/SUBJECT`; `None` unless the token has both.
    pub principal: Option<Arc<str>>,
    /// Every claim.
    pub claims: Map<String, Value>,
    /// The claims that are lists of words, beside `scope` and `permission` (`spaceDelimitedClaims`).
    pub space_delimited: Arc<[Box<str>]>,
}

/// The claims that Istio always takes for lists of words.
const SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

impl Authenticated {
    /// A verified token of these claims.
    pub fn new(claims: Map<String, Value>, space_delimited: Arc<[Box<str>]>) -> Self {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let principal = text("iss").zip(text("sub")).map(|(issuer, subject)| format!("{issuer}/{subject}").into());
        Self { principal, claims, space_delimited }
    }

    /// For whom the token is: `aud`, one or several.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        let (one, several) = match self.claims.get("aud") {
            Some(Value::String(one)) => (Some(one.as_str()), None),
            Some(Value::Array(several)) => (None, Some(several)),
            _ => (None, None),
        };
        one.into_iter().chain(several.into_iter().flatten().filter_map(Value::as_str))
    }

    /// Whether the claim `name` is a list of words in one string.
    pub fn is_space_delimited(&self, name: &str) -> bool {
        SPACE_DELIMITED.contains(&name) || self.space_delimited.iter().any(|known| **known == *name)
    }
}
