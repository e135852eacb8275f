//! Who a request says that it is: RequestAuthentication, and the tokens (JWT) that it asks for.
//!
//! A request without a token goes on, without a principal: to require one is for an AuthorizationPolicy. One whose
//! tokens no rule accepts is refused (401). Several RequestAuthentications add up: a token is as good as any of their
//! rules says.
//!
//! | module | what it is for |
//! |---|---|
//! | [`location`] | where in a request a token may be |
//! | [`token`] | a token, taken apart, within bounds |
//! | [`keys`] | the keys of an issuer, within bounds |
//! | [`claims`] | what a token must say |
//! | [`verify`] | from a request to who it is |
//!
//! The cryptography is not here ([`verify::Signatures`]): `culvertctl` and every test of policies would have to build
//! it, and the agent has one already, that of its TLS.

pub mod base64url;
pub mod claims;
pub mod keys;
pub mod location;
pub mod token;
pub mod verify;

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde_json::{Map, Value};

use self::keys::KeySet;
use self::location::Location;
use self::token::Token;
use crate::policy::PolicyTarget;
use crate::workload::NamespacedName;

/// A RequestAuthentication: parsed, so that judging by it cannot fail.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestAuthentication {
    /// The object.
    pub name: NamespacedName,
    /// What it is attached to.
    pub targets: Box<[PolicyTarget]>,
    /// The tokens that are accepted.
    pub rules: Vec<JwtRule>,
}

/// The tokens of one issuer that are accepted, and what becomes of them.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtRule {
    /// Who must have issued it; `None` for whoever has the keys.
    pub issuer: Option<Box<str>>,
    /// For whom it must be, as [`claims::audience`] compares; empty for anybody.
    pub audiences: Vec<Box<str>>,
    /// The issuer's keys.
    pub keys: KeySource,
    /// Where it may be, in the order in which it is looked for.
    pub places: Arc<[Location]>,
    /// Whether it is passed on where it was.
    pub forward_original: bool,
    /// The header that its payload is passed on in.
    pub payload_header: Option<HeaderName>,
    /// The headers that claims are passed on in, and the way to each claim.
    pub claim_headers: Vec<(HeaderName, Box<[Box<str>]>)>,
    /// Claims that are lists of words, beside `scope` and `permission`.
    pub space_delimited: Arc<[Box<str>]>,
    /// How long fetching the keys may take.
    pub timeout: Duration,
    /// Why it accepts no token at all, if it does not: something of it cannot be read.
    pub broken: Option<Box<str>>,
}

/// Where the keys of an issuer are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// Here.
    Inline(Arc<KeySet>),
    /// At this URL.
    Url(Arc<str>),
    /// Where `ISSUER/.well-known/openid-configuration` says (`jwks_uri`).
    Discovery(Arc<str>),
}

/// Istio's default for how long fetching keys may take.
pub const DEFAULT_FETCH_TIMEOUT: Duration = Duration::from_secs(5);

impl JwtRule {
    /// Whether it is about tokens of this issuer.
    fn is_about(&self, token: &Token<'_>) -> bool {
        let issuer = token.claims.get("iss").and_then(Value::as_str);
        self.issuer.as_deref().is_none_or(|own| issuer == Some(own))
    }
}

impl Default for JwtRule {
    /// Any token that no key has signed.
    fn default() -> Self {
        Self {
            issuer: None,
            audiences: Vec::new(),
            keys: KeySource::Inline(Arc::default()),
            places: Location::default_places(),
            forward_original: false,
            payload_header: None,
            claim_headers: Vec::new(),
            space_delimited: Arc::default(),
            timeout: DEFAULT_FETCH_TIMEOUT,
            broken: None,
        }
    }
}

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
