//! The signatures of tokens, by the cryptography of the agent's TLS.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use culvert_core::authentication::keys::PublicKey;
use culvert_core::authentication::token::Algorithm;
use culvert_core::authentication::verify::Signatures;

/// Verifies by aws-lc.
#[derive(Clone, Copy, Debug, Default)]
pub struct AwsLc;

impl Signatures for AwsLc {
    fn verify(&self, algorithm: Algorithm, key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
        // An algorithm is only ever tried with keys of its kind, whatever the token says.
        let rsa = |parameters: &RsaParameters| match key {
            PublicKey::Rsa { n, e } => RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok(),
            PublicKey::Ec(..) | PublicKey::Ed25519(_) => false,
        };
        let point = |algorithm: &'static dyn VerificationAlgorithm| {
            let bytes: &[u8] = match key {
                PublicKey::Ec(_, point) => point,
                PublicKey::Ed25519(point) => point,
                PublicKey::Rsa { .. } => return false,
            };
            UnparsedPublicKey::new(algorithm, bytes).verify(message, signature).is_ok()
        };
        key.fits(algorithm)
            && match algorithm {
                Algorithm::Rs256 => rsa(&RSA_PKCS1_2048_8192_SHA256),
                Algorithm::Rs384 => rsa(&RSA_PKCS1_2048_8192_SHA384),
                Algorithm::Rs512 => rsa(&RSA_PKCS1_2048_8192_SHA512),
                Algorithm::Ps256 => rsa(&RSA_PSS_2048_8192_SHA256),
                Algorithm::Ps384 => rsa(&RSA_PSS_2048_8192_SHA384),
                Algorithm::Ps512 => rsa(&RSA_PSS_2048_8192_SHA512),
                Algorithm::Es256 => point(&ECDSA_P256_SHA256_FIXED),
                Algorithm::Es384 => point(&ECDSA_P384_SHA384_FIXED),
                Algorithm::Es512 => point(&ECDSA_P521_SHA512_FIXED),
                Algorithm::EdDsa => point(&ED25519),
            }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
        EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384,
        RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding, RsaKeyPair,
    };
    use culvert_core::authentication::base64url::{decode, encode};
    use culvert_core::authentication::keys::KeySet;
    use culvert_core::authentication::token::Token;

    use super::*;

    /// Whether a key of `keys` has signed `text` as it says.
    fn is_signed(text: &str, keys: &str) -> bool {
        let keys = KeySet::parse(&format!(r#"{{"keys":[{keys}]}}"#)).unwrap();
        let (signed, signature) = text.rsplit_once('.').unwrap();
        let token = Token::parse(text).unwrap();
        assert_eq!((token.signed, token.signature.as_slice()), (signed, &*decode(signature).unwrap()));
        let mut candidates = keys.candidates(token.algorithm, token.kid.as_deref());
        candidates.any(|key| AwsLc.verify(token.algorithm, key, token.signed.as_bytes(), &token.signature))
    }

    fn sign(algorithm: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let header = encode(format!(r#"{{"alg":"{algorithm}"}}"#).as_bytes());
        let signed = format!("{header}.{}", encode(br#"{"iss":"joe"}"#));
        format!("{signed}.{}", encode(&sign(signed.as_bytes())))
    }

    /// Holds for the token as it is, and for no other: another payload, another signature.
    fn assert_only(token: &str, key: &str) {
        assert!(is_signed(token, key), "{token}");
        let parts: Vec<&str> = token.split('.').collect();
        let other = encode(br#"{"iss":"eve"}"#);
        assert!(!is_signed(&format!("{}.{other}.{}", parts[0], parts[2]), key));
        assert!(!is_signed(&format!("{}.{}.{}", parts[0], parts[1], encode(&[0; 64])), key));
    }

    #[test]
    fn the_example_of_rfc_7515_is_signed() {
        const KEY: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        assert_only(
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19y\
             b290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
            KEY,
        );
    }

    #[test]
    fn every_rsa_algorithm_is_verified_by_itself_alone() {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = pair.public_key();
        let key = format!(
            r#"{{"kty":"RSA","n":"{}","e":"{}"}}"#,
            encode(public.modulus().big_endian_without_leading_zero()),
            encode(public.exponent().big_endian_without_leading_zero())
        );
        let all: [(&str, &'static dyn RsaEncoding); 6] = [
            ("RS256", &RSA_PKCS1_SHA256),
            ("RS384", &RSA_PKCS1_SHA384),
            ("RS512", &RSA_PKCS1_SHA512),
            ("PS256", &RSA_PSS_SHA256),
            ("PS384", &RSA_PSS_SHA384),
            ("PS512", &RSA_PSS_SHA512),
        ];
        for (name, encoding) in all {
            let by_pair = |message: &[u8]| {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
                signature
            };
            assert_only(&sign(name, by_pair), &key);
            for (other, _) in all.iter().filter(|(other, _)| *other != name) {
                assert!(!is_signed(&sign(other, by_pair), &key), "{name} for {other}");
            }
        }
    }

    #[test]
    fn every_curve_is_verified() {
        let all: [(&str, &str, &'static EcdsaSigningAlgorithm); 3] = [
            ("ES256", "P-256", &ECDSA_P256_SHA256_FIXED_SIGNING),
            ("ES384", "P-384", &ECDSA_P384_SHA384_FIXED_SIGNING),
            ("ES512", "P-521", &ECDSA_P521_SHA512_FIXED_SIGNING),
        ];
        for (name, curve, algorithm) in all {
            let pair = EcdsaKeyPair::generate(algorithm).unwrap();
            let (x, y) = pair.public_key().as_ref()[1..].split_at((pair.public_key().as_ref().len() - 1) / 2);
            let key = format!(r#"{{"kty":"EC","crv":"{curve}","x":"{}","y":"{}"}}"#, encode(x), encode(y));
            assert_only(&sign(name, |m| pair.sign(&SystemRandom::new(), m).unwrap().as_ref().to_vec()), &key);
        }
    }

    #[test]
    fn ed25519_is_verified() {
        let pair = Ed25519KeyPair::generate().unwrap();
        let key = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{}"}}"#, encode(pair.public_key().as_ref()));
        assert_only(&sign("EdDSA", |message| pair.sign(message).as_ref().to_vec()), &key);
    }
}
