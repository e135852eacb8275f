//! From a request to who it is: the tokens it carries, tried against the rules that apply.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::claims::{self, BadClaims};
use super::keys::{KeySet, PublicKey};
use super::location::{Location, Several};
use super::token::{Algorithm, Malformed, Token};
use super::{Authenticated, JwtRule, KeySource, RequestAuthentication};

/// The most different tokens of one request that are tried.
const MAX_TOKENS: usize = 4;
/// The most signatures that are checked for one request.
const MAX_CHECKS: usize = 16;
/// The longest claim that is passed on in a header.
const MAX_CLAIM: usize = 8 << 10;

/// Checks signatures: the cryptography that this crate leaves to its users, so that it builds without any.
pub trait Signatures {
    /// Whether `signature` is `key`'s under `algorithm` for `message`. The key is of a kind that fits.
    fn verify(&self, algorithm: Algorithm, key: &PublicKey, message: &[u8], signature: &[u8]) -> bool;
}

/// What the tokens of a request say.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It carries none: it goes on, without a principal.
    Nobody,
    /// A rule accepts one of them.
    Somebody(Box<Accepted>),
    /// It carries one or more, and no rule accepts any: 401.
    Refused(Refusal),
}

/// A token that a rule accepts.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// What it says.
    pub authenticated: Authenticated,
    /// The headers to set on the request, in the place of the client's.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Where it was, if it must not be passed on.
    pub strip: Option<Location>,
}

/// Why no token of a request is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The token cannot be read.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Its claims are not good.
    #[error(transparent)]
    Claims(#[from] BadClaims),
    /// One place holds several.
    #[error(transparent)]
    Several(#[from] Several),
    /// More than can be tried.
    #[error("the request holds more than {MAX_TOKENS} tokens")]
    TooMany,
    /// No rule is about its issuer.
    #[error("the token's issuer is not known")]
    UnknownIssuer,
    /// No key of the issuer has signed it.
    #[error("no key of the issuer has signed the token")]
    Signature,
    /// The issuer's keys are not there.
    #[error("the issuer's keys cannot be had")]
    NoKeys,
    /// The rule is not sound.
    #[error("the rule for the token's issuer cannot be read: {0}")]
    Rule(Box<str>),
}

/// What tokens are looked for in, and by what they are judged.
pub struct Request<'r> {
    /// The headers.
    pub headers: &'r HeaderMap,
    /// The query, without its `?`.
    pub query: &'r str,
    /// The time, since 1970.
    pub now: Duration,
}

/// The rules whose key sets, which are not written in them, are needed to judge `request`: to be fetched first, each
/// once.
pub fn wanted<'p>(policies: &'p [Arc<RequestAuthentication>], request: &Request<'_>) -> Vec<&'p JwtRule> {
    let Ok(found) = tokens(policies, request) else { return Vec::new() };
    let mut wanted: Vec<&JwtRule> = Vec::new();
    for (text, places) in &found {
        let Ok(token) = Token::parse(text) else { continue };
        let remote = places.iter().map(|(rule, _)| *rule).filter(|rule| rule.is_about(&token));
        for rule in remote.filter(|rule| !matches!(rule.keys, KeySource::Inline(_)) && rule.broken.is_none()) {
            if !wanted.iter().any(|known| known.keys == rule.keys) {
                wanted.push(rule);
            }
        }
    }
    wanted
}

/// Decides who `request` is. `remote` has the key sets that were fetched; `None` for one that could not be.
///
/// A request with several tokens is accepted by any that a rule accepts, the first place first, as in Istio.
pub fn authenticate(
    policies: &[Arc<RequestAuthentication>],
    request: &Request<'_>,
    remote: &dyn Fn(&KeySource) -> Option<Arc<KeySet>>,
    signatures: &dyn Signatures,
) -> Verdict {
    let found = match tokens(policies, request) {
        Ok(found) => found,
        Err(refusal) => return Verdict::Refused(refusal),
    };
    let mut refusal = None;
    let mut checks = MAX_CHECKS;
    for (text, places) in &found {
        let token = match Token::parse(text) {
            Ok(token) => token,
            Err(malformed) => {
                refusal.get_or_insert(malformed.into());
                continue;
            }
        };
        let mut judged = Refusal::UnknownIssuer;
        for (rule, place) in places.iter().filter(|(rule, _)| rule.is_about(&token)) {
            match judge(rule, &token, request.now, remote, signatures, &mut checks) {
                Ok(()) => return Verdict::Somebody(Box::new(accept(rule, place, token))),
                Err(why) => judged = why,
            }
        }
        refusal.get_or_insert(judged);
    }
    refusal.map_or(Verdict::Nobody, Verdict::Refused)
}

/// The headers that only this proxy may set: to be taken from every request before anything looks at it.
pub fn reserved_headers(policies: &[Arc<RequestAuthentication>]) -> impl Iterator<Item = &HeaderName> {
    let rules = policies.iter().flat_map(|policy| &policy.rules);
    rules.flat_map(|rule| rule.payload_header.iter().chain(rule.claim_headers.iter().map(|(header, _)| header)))
}

type Found<'p, 'r> = Vec<(Cow<'r, str>, Vec<(&'p JwtRule, &'p Location)>)>;

/// Each token of the request, with the rules that look where it is.
fn tokens<'p, 'r>(policies: &'p [Arc<RequestAuthentication>], request: &Request<'r>) -> Result<Found<'p, 'r>, Refusal> {
    let mut found: Found<'p, 'r> = Vec::new();
    for rule in policies.iter().flat_map(|policy| &policy.rules) {
        for place in &*rule.places {
            let Some(token) = place.find(request.headers, request.query)? else { continue };
            match found.iter().position(|(known, _)| *known == token) {
                Some(at) => found[at].1.push((rule, place)),
                None if found.len() == MAX_TOKENS => return Err(Refusal::TooMany),
                None => found.push((token, vec![(rule, place)])),
            }
        }
    }
    Ok(found)
}

fn judge(
    rule: &JwtRule,
    token: &Token<'_>,
    now: Duration,
    remote: &dyn Fn(&KeySource) -> Option<Arc<KeySet>>,
    signatures: &dyn Signatures,
    checks: &mut usize,
) -> Result<(), Refusal> {
    if let Some(why) = &rule.broken {
        return Err(Refusal::Rule(why.clone()));
    }
    // Cheaper than the signature, and says nothing that the client does not know.
    claims::check(rule, &token.claims, now)?;
    let keys = match &rule.keys {
        KeySource::Inline(keys) => keys.clone(),
        source => remote(source).ok_or(Refusal::NoKeys)?,
    };
    for key in keys.candidates(token.algorithm, token.kid.as_deref()) {
        let Some(left) = checks.checked_sub(1) else { break };
        *checks = left;
        if signatures.verify(token.algorithm, key, token.signed.as_bytes(), &token.signature) {
            return Ok(());
        }
    }
    Err(Refusal::Signature)
}

fn accept(rule: &JwtRule, place: &Location, token: Token<'_>) -> Accepted {
    let mut headers = Vec::new();
    if let Some(name) = &rule.payload_header
        && let Ok(value) = HeaderValue::from_str(token.payload)
    {
        headers.push((name.clone(), value));
    }
    for (name, path) in &rule.claim_headers {
        let claim = path.iter().try_fold(None, |within: Option<&Value>, part| {
            Some(Some(match within {
                None => token.claims.get(&**part)?,
                Some(value) => value.as_object()?.get(&**part)?,
            }))
        });
        let text = match claim.flatten() {
            Some(Value::String(text)) => text.clone(),
            Some(value @ (Value::Bool(_) | Value::Number(_))) => value.to_string(),
            // What is neither text nor number is passed on as JSON, in base64url, as Envoy has it.
            Some(value @ (Value::Array(_) | Value::Object(_))) => {
                super::base64url::encode(value.to_string().as_bytes())
            }
            Some(Value::Null) | None => continue,
        };
        if let Some(value) = (text.len() <= MAX_CLAIM).then(|| HeaderValue::from_str(&text).ok()).flatten() {
            headers.push((name.clone(), value));
        }
    }
    Accepted {
        authenticated: Authenticated::new(token.claims, rule.space_delimited.clone()),
        headers,
        strip: (!rule.forward_original).then(|| place.clone()),
    }
}

#[cfg(test)]
mod tests;
