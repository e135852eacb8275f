//! The answers to who may not, as Envoy words them: people and tools know these.

use culvert_core::authentication::claims::BadClaims;
use culvert_core::authentication::token::Malformed;
use culvert_core::authentication::verify::Refusal;
use culvert_core::policy::Reason;
use culvert_core::route::normalize::BadPath;
use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};

use super::host;
use crate::telemetry::Flags;
use crate::waypoint::http::reply::LocalReply;

/// The longest address of a request that is repeated to its client.
const MAX_REALM: usize = 256;

/// A policy says no.
pub(super) fn denied(reason: &Reason) -> Box<LocalReply> {
    let details =
        reason.response_code_details().unwrap_or_else(|| "rbac_access_denied_matched_policy[none]".to_owned());
    let (reply, flags) = match reason {
        // A provider that cannot be asked.
        Reason::UnknownProvider(_) | Reason::Ask(_) => {
            (LocalReply::new(StatusCode::FORBIDDEN, details), Flags::UNAUTHORIZED_EXTERNAL)
        }
        _ => (LocalReply::new(StatusCode::FORBIDDEN, details).body("RBAC: access denied"), Flags::NONE),
    };
    Box::new(reply.flag(flags))
}

/// A path that no server should have to understand.
pub(super) fn bad_path(bad: BadPath) -> Box<LocalReply> {
    tracing::debug!("refused: {bad}");
    Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "path_normalization_failed"))
}

/// No rule accepts the token.
pub(super) fn unauthenticated(refusal: &Refusal, head: &Parts) -> Box<LocalReply> {
    let text = words(refusal);
    let details = format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_"));
    // A token for somebody else is a good token, as Envoy sees it.
    let status = match refusal {
        Refusal::Claims(BadClaims::Audience) => StatusCode::FORBIDDEN,
        _ => StatusCode::UNAUTHORIZED,
    };
    let reply = LocalReply::new(status, details).body(text);
    Box::new(match challenge(head) {
        Some(challenge) => reply.header(WWW_AUTHENTICATE, challenge),
        None => reply,
    })
}

/// RFC 6750, 3: what was asked for, and that the token is no good.
fn challenge(head: &Parts) -> Option<HeaderValue> {
    let scheme = head.uri.scheme_str().unwrap_or("http");
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let realm: String = format!("{scheme}://{}{path}", host(head)).chars().take(MAX_REALM).collect();
    // A quote would end the realm, and begin what the client likes.
    let realm = realm.replace(['"', '\\'], "");
    HeaderValue::try_from(format!("Bearer realm=\"{realm}\", error=\"invalid_token\"")).ok()
}

/// Envoy's words for it (jwt_verify_lib `status.cc`).
fn words(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Malformed(Malformed::NotCompact | Malformed::TooLong) => {
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
        }
        Refusal::Malformed(Malformed::NotAnObject("header") | Malformed::Critical) => "Jwt header is an invalid JSON",
        Refusal::Malformed(Malformed::NotAnObject(_)) => "Jwt payload is an invalid JSON",
        Refusal::Malformed(Malformed::Algorithm) => "Jwt header [alg] is not supported",
        Refusal::Malformed(Malformed::Kid) => "Jwt header [kid] field is not a string",
        Refusal::Claims(BadClaims::Expired) => "Jwt is expired",
        Refusal::Claims(BadClaims::NotYet) => "Jwt not yet valid",
        Refusal::Claims(BadClaims::NoTime("exp")) => "Jwt payload [exp] field is not an integer",
        Refusal::Claims(BadClaims::NoTime("nbf")) => "Jwt payload [nbf] field is not an integer",
        Refusal::Claims(BadClaims::NoTime(_)) => "Jwt payload [iat] field is not an integer",
        Refusal::Claims(BadClaims::Issuer) | Refusal::UnknownIssuer => "Jwt issuer is not configured",
        Refusal::Claims(BadClaims::Audience) => "Audiences in Jwt are not allowed",
        Refusal::Several(_) | Refusal::TooMany => "Multiple Jwts are found",
        Refusal::Signature => "Jwt verification fails",
        Refusal::NoKeys => "Jwks remote fetch is failed",
        Refusal::Rule(_) => "Jwt issuer is not configured",
    }
}
