//! Tokens in JWS compact form (RFC 7515, RFC 7519), taken apart but not yet believed.

use serde_json::{Map, Value};

use super::base64url;

/// The longest token that is read, in bytes.
pub const MAX_TOKEN: usize = 16 << 10;
/// The deepest that claims may be nested.
const MAX_DEPTH: usize = 32;
/// The longest name of a key.
const MAX_KID: usize = 1024;

/// How a token is signed. Those that are not here are refused: `none`, and the HS family, whose keys are secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "RFC 7518 section 3.1, and RFC 8037 for EdDSA")]
pub enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Algorithm {
    /// The algorithm of this name.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "EdDSA" => Self::EdDsa,
            _ => return None,
        })
    }
}

/// A token, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Token<'t> {
    /// How it says that it is signed.
    pub algorithm: Algorithm,
    /// The name of the key.
    pub kid: Option<Box<str>>,
    /// What is signed: header and payload as they were sent.
    pub signed: &'t str,
    /// The payload as it was sent, in base64url.
    pub payload: &'t str,
    /// What the payload says.
    pub claims: Map<String, Value>,
    /// The signature.
    pub signature: Vec<u8>,
}

/// Why a token cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Longer than [`MAX_TOKEN`].
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    /// Not three parts in base64url.
    #[error("the token is not three parts in base64url")]
    NotCompact,
    /// A part is not a JSON object, or too deep.
    #[error("the token's {0} is not a JSON object, or nested too deep")]
    NotAnObject(&'static str),
    /// It is signed by an algorithm that is not taken, or not signed.
    #[error("the token's algorithm is not among RS, PS and ES 256, 384, 512 and EdDSA")]
    Algorithm,
    /// It asks for an extension that has to be understood (`crit`).
    #[error("the token asks for extensions (crit), which are not supported")]
    Critical,
    /// `kid` is no text, or too long.
    #[error("the token's kid is no text, or too long")]
    Kid,
}

impl<'t> Token<'t> {
    /// Takes `text` apart.
    ///
    /// # Errors
    /// When it is no token that could be verified.
    pub fn parse(text: &'t str) -> Result<Self, Malformed> {
        if text.len() > MAX_TOKEN {
            return Err(Malformed::TooLong);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Malformed::NotCompact)?;
        let (header, payload) = signed.split_once('.').ok_or(Malformed::NotCompact)?;
        let decode = |part: &str| base64url::decode(part).ok_or(Malformed::NotCompact);
        let (header, claims, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        let header = object(&header).ok_or(Malformed::NotAnObject("header"))?;
        let algorithm =
            header.get("alg").and_then(Value::as_str).and_then(Algorithm::of).ok_or(Malformed::Algorithm)?;
        if header.contains_key("crit") {
            return Err(Malformed::Critical);
        }
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= MAX_KID => Some(kid.as_str().into()),
            Some(_) => return Err(Malformed::Kid),
        };
        let claims = object(&claims).ok_or(Malformed::NotAnObject("payload"))?;
        Ok(Self { algorithm, kid, signed, payload, claims, signature })
    }
}

fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(bytes).ok()? {
        Value::Object(fields) if fields.values().all(|value| is_shallow(value, MAX_DEPTH)) => Some(fields),
        _ => None,
    }
}

/// The parser itself goes no deeper than 128.
fn is_shallow(value: &Value, depth: usize) -> bool {
    match (value, depth.checked_sub(1)) {
        (Value::Array(list), Some(depth)) => list.iter().all(|item| is_shallow(item, depth)),
        (Value::Object(fields), Some(depth)) => fields.values().all(|item| is_shallow(item, depth)),
        (Value::Array(_) | Value::Object(_), None) => false,
        _ => true,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A token of these parts, with the signature `sig`.
    pub(in crate::authentication) fn token(header: &str, payload: &str) -> String {
        let encode = |text: &str| base64url::encode(text.as_bytes());
        format!("{}.{}.{}", encode(header), encode(payload), encode("sig"))
    }

    #[test]
    fn a_token_is_taken_apart() {
        let text = token(r#"{"alg":"ES256","kid":"k","typ":"JWT"}"#, r#"{"iss":"a","sub":"b"}"#);
        let token = Token::parse(&text).unwrap();
        assert_eq!((token.algorithm, token.kid.as_deref()), (Algorithm::Es256, Some("k")));
        assert_eq!((token.claims["iss"].as_str(), &*token.signature), (Some("a"), b"sig".as_slice()));
        assert!(text.starts_with(token.signed) && token.signed.ends_with(token.payload));
    }

    #[test]
    fn secrets_and_no_signature_are_refused() {
        for alg in ["none", "None", "HS256", "HS384", "HS512", "", "es256", "RSA-OAEP"] {
            let text = token(&format!(r#"{{"alg":"{alg}"}}"#), "{}");
            assert_eq!(Token::parse(&text), Err(Malformed::Algorithm), "{alg}");
        }
        assert_eq!(Token::parse(&token("{}", "{}")), Err(Malformed::Algorithm));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(40), "]".repeat(40));
        let good = r#"{"alg":"ES256"}"#;
        for (text, error) in [
            (String::new(), Malformed::NotCompact),
            ("a.b".to_owned(), Malformed::NotCompact),
            ("a.b.c.d".to_owned(), Malformed::NotCompact),
            ("!.b.c".to_owned(), Malformed::NotCompact),
            (format!("{}==.e30.e30", base64url::encode(good.as_bytes())), Malformed::NotCompact),
            ("A".repeat(MAX_TOKEN + 1), Malformed::TooLong),
            (token("[]", "{}"), Malformed::NotAnObject("header")),
            (token(good, "1"), Malformed::NotAnObject("payload")),
            (token(good, &deep), Malformed::NotAnObject("payload")),
            (token(r#"{"alg":"ES256","crit":["exp"]}"#, "{}"), Malformed::Critical),
            (token(r#"{"alg":"ES256","kid":1}"#, "{}"), Malformed::Kid),
        ] {
            assert_eq!(Token::parse(&text), Err(error), "{text:.60}");
        }
    }
}
