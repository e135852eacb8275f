//! Signing in the name of a CA whose subject may be anything.
//!
//! rcgen keeps one value of each attribute of a name, but real CAs are called `DC=example, DC=com, OU=a, OU=b`. A
//! certificate whose issuer is not its CA's subject byte for byte leads nowhere. So rcgen lays out the certificate, the
//! CA's subject is put in as it is encoded, and only then is it signed.

use rcgen::{CertificateParams, DistinguishedName, Issuer, KeyIdMethod, KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What signs: the subject and key of a CA certificate.
pub(super) struct Signer {
    key: KeyPair,
    /// DER.
    subject: Vec<u8>,
    key_identifier: Option<Vec<u8>>,
}

impl Signer {
    /// Signs as `certificate`, whose key is `key`.
    pub(super) fn new(certificate: &X509Certificate<'_>, key: KeyPair) -> Self {
        let key_identifier = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Self { key, subject: certificate.subject().as_raw().to_vec(), key_identifier }
    }

    /// A certificate for `public_key` as `params` say.
    pub(super) fn sign(
        &self,
        params: &CertificateParams,
        public_key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, String> {
        let mut of_issuer = CertificateParams::default();
        of_issuer.distinguished_name = DistinguishedName::new();
        of_issuer.key_identifier_method = match &self.key_identifier {
            Some(id) => KeyIdMethod::PreSpecified(id.clone()),
            None => KeyIdMethod::Sha256,
        };
        let issuer = Issuer::new(of_issuer, Unsigned(&self.key));
        let unsigned = params.signed_by(public_key, &issuer).map_err(|e| e.to_string())?;
        let unsigned = unsigned.der();

        let malformed = || "the certificate cannot be laid out".to_owned();
        let (_, parsed) = X509Certificate::from_der(unsigned).map_err(|_| malformed())?;
        let to_be_signed: &[u8] = parsed.tbs_certificate.as_ref();
        let (_, rest) = split_at(unsigned, to_be_signed).ok_or_else(malformed)?;
        // What follows is the algorithm and an empty signature.
        let algorithm = rest.strip_suffix(&EMPTY_BIT_STRING[..]).ok_or_else(malformed)?;
        let (before, after) = split_at(to_be_signed, parsed.issuer().as_raw()).ok_or_else(malformed)?;
        let header = to_be_signed.len() - contents(to_be_signed).ok_or_else(malformed)?.len();
        let before = before.get(header..).ok_or_else(malformed)?;

        let to_be_signed = der(SEQUENCE, &[before, &self.subject, after]);
        let signature = self.key.sign(&to_be_signed).map_err(|e| e.to_string())?;
        let signature = der(BIT_STRING, &[&[0], &signature]);
        Ok(der(SEQUENCE, &[&to_be_signed, algorithm, &signature]).into())
    }
}

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;
const EMPTY_BIT_STRING: [u8; 3] = [BIT_STRING, 1, 0];

/// Stands in for a key while the certificate is laid out: signs with nothing.
struct Unsigned<'a>(&'a KeyPair);

impl PublicKeyData for Unsigned<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(self.0)
    }
}

impl SigningKey for Unsigned<'_> {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(Vec::new())
    }
}

/// What is before and behind `part`, a slice of `whole`.
fn split_at<'a>(whole: &'a [u8], part: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let start = (part.as_ptr() as usize).checked_sub(whole.as_ptr() as usize)?;
    Some((whole.get(..start)?, whole.get(start.checked_add(part.len())?..)?))
}

/// The contents of a DER value.
fn contents(value: &[u8]) -> Option<&[u8]> {
    match value.get(1)? {
        short @ 0..0x80 => value.get(2..2 + usize::from(*short)),
        long => value.get(2 + usize::from(long & 0x7f)..),
    }
}

/// A DER value made of `parts` (X.690 §8.1).
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut value = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => value.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let bytes = &bytes[length.leading_zeros() as usize / 8..];
            value.push(0x80 | bytes.len() as u8);
            value.extend_from_slice(bytes);
        }
    }
    parts.iter().for_each(|part| value.extend_from_slice(part));
    value
}
