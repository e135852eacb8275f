//! RequestAuthentication into rules for tokens.
//!
//! A rule that cannot be read accepts no token, so that what it was to guard stays shut: a token of its issuer is
//! refused.

use std::sync::Arc;
use std::time::Duration;

use culvert_api::security::{self, JwtRule as Written, RequestAuthenticationSpec};
use culvert_api::{Kind, ObjectRef};
use http::HeaderName;

use super::authorization_policy::targets;
use super::{Finding, Findings};
use crate::authentication::claims::audience;
use crate::authentication::keys::KeySet;
use crate::authentication::location::Location;
use crate::authentication::{DEFAULT_FETCH_TIMEOUT, JwtRule, KeySource, RequestAuthentication};
use crate::workload::NamespacedName;

/// The most rules of an object; Istio's CRD has 4096, which no request could be judged by.
const MAX_RULES: usize = 256;
/// The most values of a list.
const MAX_VALUES: usize = 64;
/// The longest URL, by Istio's CRD.
const MAX_URL: usize = 2048;

/// Reads `object`, and adds to `findings` what is to be said about it.
///
/// `None` if nothing enforces it: nodes do not read tokens, so that it needs `targetRefs`.
pub fn request_authentication(
    object: &security::RequestAuthentication,
    root_namespace: &str,
    findings: &mut Vec<Finding>,
) -> Option<RequestAuthentication> {
    let name = NamespacedName::new(
        object.metadata.namespace.as_deref().unwrap_or_default(),
        object.metadata.name.as_deref().unwrap_or_default(),
    );
    let object_ref = ObjectRef::new(Kind::RequestAuthentication, name.namespace.clone(), name.name.clone());
    let mut report = Findings { object: object_ref, list: findings };
    let spec = &object.spec;
    let refs: Vec<_> = targets::written(spec.target_ref.as_ref(), &spec.target_refs).collect();
    if refs.is_empty() {
        report.error("spec.targetRefs", "is missing: nodes do not read tokens; attach it to a waypoint's object");
        return None;
    }
    if spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty()) {
        report.error("spec.selector", "has no effect beside targetRefs: remove it");
    }
    let targets = targets::read(refs, &name.namespace, root_namespace, |field, message| report.error(field, message));
    if targets.is_empty() {
        return None;
    }
    if spec.jwt_rules.len() > MAX_RULES {
        report.error("spec.jwtRules", format!("more than {MAX_RULES}: tokens of the rest are not known"));
    }
    let rules = spec.jwt_rules.iter().take(MAX_RULES).enumerate();
    let rules = rules.map(|(i, rule)| Reader::new(spec, i, &mut report).rule(rule)).collect();
    Some(RequestAuthentication { name, targets, rules })
}

/// Reads one rule.
struct Reader<'a, 'r> {
    path: String,
    broken: Option<Box<str>>,
    report: &'a mut Findings<'r>,
}

impl<'a, 'r> Reader<'a, 'r> {
    fn new(spec: &RequestAuthenticationSpec, i: usize, report: &'a mut Findings<'r>) -> Self {
        let path = format!("spec.jwtRules[{i}]");
        // Whoever misspells `audiences` must not accept every audience.
        let concerns = |field: &&String| {
            field.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.'))
                || (field.starts_with("spec.") && !field.starts_with("spec.jwtRules["))
        };
        let unread = spec.unknown_fields.iter().find(concerns);
        let broken = unread.map(|field| format!("nothing reads {field}: correct it").into());
        Self { path, broken, report }
    }

    /// Says what is wrong, and that for it the rule accepts no token.
    fn refuse(&mut self, field: &str, problem: impl std::fmt::Display) {
        let field = format!("{}.{field}", self.path);
        self.report.error(&field, format!("{problem}: the rule accepts no token"));
        self.broken.get_or_insert_with(|| format!("{field} {problem}").into());
    }

    fn rule(mut self, written: &Written) -> JwtRule {
        let issuer = (!written.issuer.is_empty()).then(|| Box::from(written.issuer.as_str()));
        let keys = self.keys(written);
        let audiences = self.bounded("audiences", &written.audiences);
        let audiences = audiences.iter().map(|text| audience(text).into()).collect();
        let places = self.places(written);
        let payload_header = match written.output_payload_to_header.as_str() {
            "" => None,
            name => self.header("outputPayloadToHeader", name),
        };
        let mut claim_headers = Vec::new();
        for (i, output) in self.bounded("outputClaimToHeaders", &written.output_claim_to_headers).iter().enumerate() {
            let field = format!("outputClaimToHeaders[{i}]");
            let Some(header) = self.header(&format!("{field}.header"), &output.header) else { continue };
            let claim: Box<[Box<str>]> = output.claim.split('.').map(Box::from).collect();
            match claim.iter().any(|part| part.is_empty()) {
                true => self.refuse(&format!("{field}.claim"), "is no claim"),
                false => claim_headers.push((header, claim)),
            }
        }
        let space_delimited = self.bounded("spaceDelimitedClaims", &written.space_delimited_claims);
        let space_delimited: Arc<[Box<str>]> = space_delimited.iter().map(|name| Box::from(name.as_str())).collect();
        let timeout = written.timeout.as_deref().map(|text| self.timeout(text));
        JwtRule {
            issuer,
            audiences,
            keys,
            places,
            forward_original: written.forward_original_token,
            payload_header,
            claim_headers,
            space_delimited,
            timeout: timeout.unwrap_or(DEFAULT_FETCH_TIMEOUT),
            broken: self.broken,
        }
    }

    fn keys(&mut self, written: &Written) -> KeySource {
        let (issuer, inline, url) = (written.issuer.as_str(), written.jwks.as_str(), written.jwks_uri.as_str());
        match (inline, url) {
            ("", "") if issuer.is_empty() => self.refuse("issuer", "is missing, and so are jwksUri and jwks"),
            ("", "") if is_url(issuer) => {
                return KeySource::Discovery(issuer.strip_suffix('/').unwrap_or(issuer).into());
            }
            ("", "") => self.refuse("issuer", "is no URL at which its keys could be found: set jwksUri or jwks"),
            ("", url) if is_url(url) => return KeySource::Url(url.into()),
            ("", _) => self.refuse("jwksUri", "is not an http or https URL of at most 2048 characters"),
            (_, url) => {
                if !url.is_empty() {
                    self.refuse("jwksUri", "must not be set beside jwks");
                }
                match KeySet::parse(inline) {
                    Ok(keys) => return KeySource::Inline(Arc::new(keys)),
                    Err(bad) => self.refuse("jwks", bad),
                }
            }
        }
        KeySource::Inline(Arc::default())
    }

    fn places(&mut self, written: &Written) -> Arc<[Location]> {
        let mut places = Vec::new();
        for (i, from) in self.bounded("fromHeaders", &written.from_headers).iter().enumerate() {
            if let Some(name) = self.header(&format!("fromHeaders[{i}].name"), &from.name) {
                places.push(Location::Header { name: name.as_str().into(), prefix: from.prefix.as_str().into() });
            }
        }
        for (field, names, place) in [
            ("fromParams", &written.from_params, Location::Param as fn(Box<str>) -> Location),
            ("fromCookies", &written.from_cookies, Location::Cookie),
        ] {
            for (i, name) in self.bounded(field, names).iter().enumerate() {
                match name.is_empty() {
                    true => self.refuse(&format!("{field}[{i}]"), "is empty"),
                    false => places.push(place(name.as_str().into())),
                }
            }
        }
        // A rule whose places cannot be read still looks where tokens are, to refuse them.
        if places.is_empty() { Location::default_places() } else { places.into() }
    }

    fn header(&mut self, field: &str, name: &str) -> Option<HeaderName> {
        let header = HeaderName::from_bytes(name.as_bytes()).ok();
        if header.is_none() {
            self.refuse(field, "is not the name of a header");
        }
        header
    }

    fn bounded<'v, T>(&mut self, field: &str, values: &'v [T]) -> &'v [T] {
        if values.len() > MAX_VALUES {
            self.refuse(field, format_args!("has more than {MAX_VALUES} entries"));
        }
        values.get(..MAX_VALUES).unwrap_or(values)
    }

    fn timeout(&mut self, text: &str) -> Duration {
        const UNITS: [(&str, f64); 4] = [("ms", 1e-3), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let seconds =
            UNITS.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor));
        let sound = seconds.filter(|seconds| (1e-3..=60.0).contains(seconds));
        if sound.is_none() {
            let field = format!("{}.timeout", self.path);
            self.report.error(field, "not a duration between 1ms and 1m: 5s holds");
        }
        sound.map_or(DEFAULT_FETCH_TIMEOUT, Duration::from_secs_f64)
    }
}

fn is_url(text: &str) -> bool {
    let scheme = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme));
    text.len() <= MAX_URL && scheme.is_some() && text.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some())
}

#[cfg(test)]
mod tests;
