//! JSON Web Key Sets (RFC 7517): the public keys of an issuer.

use serde_json::{Map, Value};

use super::base64url;
use super::token::Algorithm;

/// The longest key set that is read, in bytes.
pub const MAX_KEY_SET: usize = 256 << 10;
/// The most keys of a set.
pub const MAX_KEYS: usize = 64;
/// The sizes that an RSA modulus may have, in bytes: less is broken, more takes too long.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;
/// The longest RSA exponent, in bytes.
const MAX_EXPONENT: usize = 5;

/// The public keys of an issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// A key, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub kid: Option<Box<str>>,
    /// The only algorithm that it is for, if it says so.
    pub algorithm: Option<Algorithm>,
    /// The key itself.
    pub public: PublicKey,
}

/// A public key. Numbers are big-endian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// RS and PS.
    Rsa {
        /// The modulus, without leading zeros.
        n: Box<[u8]>,
        /// The exponent, without leading zeros.
        e: Box<[u8]>,
    },
    /// ES: a point on a curve, uncompressed as X9.62 has it (`04`, x, y).
    Ec(Curve, Box<[u8]>),
    /// EdDSA with Ed25519.
    Ed25519([u8; 32]),
}

/// A curve of NIST's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "RFC 7518 section 6.2.1.1")]
pub enum Curve {
    P256,
    P384,
    P521,
}

/// Why a text is no key set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeySet {
    /// Longer than [`MAX_KEY_SET`].
    #[error("is longer than {MAX_KEY_SET} bytes")]
    TooLong,
    /// Not JSON with a list `keys`.
    #[error("is not a JSON Web Key Set: an object with a list \"keys\"")]
    NotASet,
    /// More than [`MAX_KEYS`].
    #[error("has more than {MAX_KEYS} keys")]
    TooMany,
    /// No key that can verify.
    #[error("has no public key that verifies RS, PS, ES or EdDSA; the first problem: {0}")]
    NoKey(&'static str),
}

impl KeySet {
    /// Reads a set. Keys for something else, or that cannot be read, are left out; one that is left out verifies nothing.
    ///
    /// # Errors
    /// When no key is left.
    pub fn parse(text: &str) -> Result<Self, BadKeySet> {
        if text.len() > MAX_KEY_SET {
            return Err(BadKeySet::TooLong);
        }
        let set: Value = serde_json::from_str(text).map_err(|_| BadKeySet::NotASet)?;
        let entries = set.get("keys").and_then(Value::as_array).ok_or(BadKeySet::NotASet)?;
        if entries.len() > MAX_KEYS {
            return Err(BadKeySet::TooMany);
        }
        let mut problem = "it is empty";
        let mut keys = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            match entry.as_object().ok_or("a key is not an object").and_then(key) {
                Ok(key) => keys.push(key),
                Err(why) if i == 0 => problem = why,
                Err(_) => {}
            }
        }
        if keys.is_empty() { Err(BadKeySet::NoKey(problem)) } else { Ok(Self { keys }) }
    }

    /// The keys that may have signed a token of this algorithm and key name: those of the name, and those without one.
    pub fn candidates<'k>(&'k self, algorithm: Algorithm, kid: Option<&'k str>) -> impl Iterator<Item = &'k PublicKey> {
        let named = move |key: &&Key| match (kid, key.kid.as_deref()) {
            (Some(wanted), Some(name)) => wanted == name,
            _ => true,
        };
        let fits = move |key: &&Key| key.public.fits(algorithm) && key.algorithm.is_none_or(|only| only == algorithm);
        self.keys.iter().filter(named).filter(fits).map(|key| &key.public)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is none; never, of a set that was read.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl PublicKey {
    /// Whether a signature of `algorithm` can be of this key: the kind of the key decides, whatever a token says.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        use Algorithm::{EdDsa, Es256, Es384, Es512, Ps256, Ps384, Ps512, Rs256, Rs384, Rs512};
        match self {
            Self::Rsa { .. } => matches!(algorithm, Rs256 | Rs384 | Rs512 | Ps256 | Ps384 | Ps512),
            Self::Ec(Curve::P256, _) => algorithm == Es256,
            Self::Ec(Curve::P384, _) => algorithm == Es384,
            Self::Ec(Curve::P521, _) => algorithm == Es512,
            Self::Ed25519(_) => algorithm == EdDsa,
        }
    }
}

fn key(fields: &Map<String, Value>) -> Result<Key, &'static str> {
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return Err("it is not for signatures (use)");
    }
    let operations = fields.get("key_ops").and_then(Value::as_array);
    if operations.is_some_and(|all| !all.iter().any(|operation| operation == "verify")) {
        return Err("it is not for verifying (key_ops)");
    }
    let algorithm = match fields.get("alg") {
        None => None,
        Some(name) => Some(name.as_str().and_then(Algorithm::of).ok_or("its algorithm (alg) is not supported")?),
    };
    let kid = match fields.get("kid") {
        None => None,
        Some(Value::String(kid)) => Some(kid.as_str().into()),
        Some(_) => return Err("its name (kid) is no text"),
    };
    let public = match text("kty") {
        Some("RSA") => rsa(fields),
        Some("EC") => ec(fields),
        Some("OKP") if text("crv") == Some("Ed25519") => {
            let x = number(fields, "x")?;
            <[u8; 32]>::try_from(x).map(PublicKey::Ed25519).map_err(|_| "its x is not 32 bytes")
        }
        Some("oct") => Err("it is a secret (oct), which anybody who verifies could sign with"),
        _ => Err("its kind (kty, crv) is not supported"),
    }?;
    Ok(Key { kid, algorithm, public })
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<Vec<u8>, &'static str> {
    let text = fields.get(name).and_then(Value::as_str).ok_or("a part of it is missing")?;
    base64url::decode(text).ok_or("a part of it is not base64url")
}

fn rsa(fields: &Map<String, Value>) -> Result<PublicKey, &'static str> {
    let trimmed = |name: &str| -> Result<Box<[u8]>, &'static str> {
        let bytes = number(fields, name)?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Ok(bytes[zeros..].into())
    };
    let (n, e) = (trimmed("n")?, trimmed("e")?);
    if !RSA_BYTES.contains(&n.len()) {
        return Err("its modulus has less than 2048 or more than 8192 bits");
    }
    let is_odd = |number: &[u8]| number.last().is_some_and(|byte| byte % 2 == 1);
    if e.len() > MAX_EXPONENT || !is_odd(&e) || *e == [1] || !is_odd(&n) {
        return Err("its exponent or modulus is unsound");
    }
    Ok(PublicKey::Rsa { n, e })
}

fn ec(fields: &Map<String, Value>) -> Result<PublicKey, &'static str> {
    let (curve, size) = match fields.get("crv").and_then(Value::as_str) {
        Some("P-256") => (Curve::P256, 32),
        Some("P-384") => (Curve::P384, 48),
        Some("P-521") => (Curve::P521, 66),
        _ => return Err("its curve (crv) is not supported"),
    };
    let (x, y) = (number(fields, "x")?, number(fields, "y")?);
    if x.len() != size || y.len() != size {
        return Err("its x or y is not as long as its curve's numbers");
    }
    let mut point = vec![4];
    point.extend(x);
    point.extend(y);
    Ok(PublicKey::Ec(curve, point.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `x`, then zeros, then 1: odd, and of this size.
    fn bytes(size: usize) -> String {
        let mut bytes = vec![0; size];
        (bytes[0], bytes[size - 1]) = (0x80, 1);
        base64url::encode(&bytes)
    }

    fn set(keys: &str) -> Result<KeySet, BadKeySet> {
        KeySet::parse(&format!(r#"{{"keys":[{keys}]}}"#))
    }

    fn rsa_key(more: &str) -> String {
        format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"{more}}}"#, bytes(256))
    }

    fn ec_key(curve: &str, size: usize) -> String {
        format!(r#"{{"kty":"EC","crv":"{curve}","x":"{0}","y":"{0}"}}"#, bytes(size))
    }

    #[test]
    fn a_key_verifies_what_its_kind_can_and_nothing_else() {
        use Algorithm::{EdDsa, Es256, Es384, Es512, Ps256, Rs256, Rs512};
        let all = format!(
            r#"{},{},{},{},{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#,
            rsa_key(""),
            ec_key("P-256", 32),
            ec_key("P-384", 48),
            ec_key("P-521", 66),
            bytes(32)
        );
        let set = set(&all).unwrap();
        assert_eq!(set.len(), 5);
        for algorithm in [EdDsa, Es256, Es384, Es512, Ps256, Rs256, Rs512] {
            assert_eq!(set.candidates(algorithm, Some("any")).count(), 1, "{algorithm:?}");
        }
    }

    #[test]
    fn a_name_selects_its_key_and_those_without_one() {
        let set =
            set(&format!("{},{},{}", rsa_key(r#","kid":"a""#), rsa_key(r#","kid":"b","alg":"RS256""#), rsa_key("")))
                .unwrap();
        let count = |algorithm, kid| set.candidates(algorithm, kid).count();
        assert_eq!((count(Algorithm::Rs256, Some("a")), count(Algorithm::Rs256, Some("c"))), (2, 1));
        assert_eq!((count(Algorithm::Rs256, None), count(Algorithm::Ps256, None)), (3, 2));
    }

    #[test]
    fn keys_that_cannot_verify_are_left_out() {
        for bad in [
            r#"{"kty":"oct","k":"c2VjcmV0"}"#.to_owned(),
            rsa_key(r#","use":"enc""#),
            rsa_key(r#","key_ops":["sign"]"#),
            rsa_key(r#","alg":"HS256""#),
            rsa_key(r#","kid":1"#),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, bytes(128)),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQAB"}}"#, bytes(2048)),
            format!(r#"{{"kty":"RSA","n":"{}","e":"AQ"}}"#, bytes(256)),
            format!(r#"{{"kty":"RSA","n":"{}","e":"Ag"}}"#, bytes(256)),
            r#"{"kty":"RSA","e":"AQAB"}"#.to_owned(),
            ec_key("P-256", 31),
            ec_key("secp256k1", 32),
            r#"{"kty":"OKP","crv":"Ed25519","x":"AQ"}"#.to_owned(),
            r#"{"kty":"OKP","crv":"X25519","x":"AQ"}"#.to_owned(),
            "1".to_owned(),
        ] {
            assert!(matches!(set(&bad), Err(BadKeySet::NoKey(_))), "{bad}");
            assert_eq!(set(&format!("{bad},{}", rsa_key(""))).map(|set| set.len()), Ok(1), "{bad}");
        }
    }

    #[test]
    fn a_set_is_bounded() {
        assert_eq!(set(&vec!["{}"; MAX_KEYS + 1].join(",")), Err(BadKeySet::TooMany));
        assert_eq!(KeySet::parse(&" ".repeat(MAX_KEY_SET + 1)), Err(BadKeySet::TooLong));
        for text in ["", "[]", "{}", r#"{"keys":{}}"#] {
            assert_eq!(KeySet::parse(text), Err(BadKeySet::NotASet), "{text}");
        }
        assert_eq!(set(""), Err(BadKeySet::NoKey("it is empty")));
    }
}
