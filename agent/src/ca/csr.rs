//! Certificate signing requests of strangers: what is believed of them, and what is refused.

use rcgen::{PublicKeyData, SignatureAlgorithm};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// The longest CSR in PEM: one with an RSA key of 8192 bits has 3.5 kB.
pub const MAX_CSR: usize = 32 << 10;

/// RSA keys in bits: what aws-lc verifies, from what is still secure to what is still affordable.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The one CSR of a PEM text, whose signature proves that its author holds the key.
#[derive(Debug)]
pub struct CertificateRequest {
    /// The key to certify.
    pub key: RequestedKey,
    /// The one name that is asked for, a URI; none when the CSR leaves it to the authority.
    pub uri: Option<String>,
}

/// Why a CSR is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrProblem {
    /// It is longer than anything honest.
    #[error("the CSR has {0} bytes, and {MAX_CSR} are allowed")]
    TooLong(usize),
    /// It cannot be read.
    #[error("the CSR is not one PEM block CERTIFICATE REQUEST")]
    NotPem,
    /// It cannot be read.
    #[error("the CSR is not a PKCS #10 certification request")]
    Malformed,
    /// Its author does not hold the key, or signs in a way that nobody should.
    #[error("the CSR is not signed by its own key, or by an algorithm that is not accepted")]
    Signature,
    /// A key that peers would not or should not accept.
    #[error("the CSR is for {0}; ECDSA P-256 and P-384, Ed25519 and RSA of 2048 to 8192 bits are accepted")]
    KeyType(String),
    /// It asks for more than one name, or another kind of name.
    #[error("the CSR asks for {0}; at most one URI name is accepted")]
    Names(String),
}

impl CertificateRequest {
    /// Reads the CSR in `pem`.
    ///
    /// # Errors
    /// What is wrong with it, without a word of what it holds.
    pub fn parse(pem: &str) -> Result<Self, CsrProblem> {
        if pem.len() > MAX_CSR {
            return Err(CsrProblem::TooLong(pem.len()));
        }
        let mut blocks = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes());
        let (Some(Ok(der)), None) = (blocks.next(), blocks.next()) else { return Err(CsrProblem::NotPem) };
        let (rest, csr) = X509CertificationRequest::from_der(&der).map_err(|_| CsrProblem::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrProblem::Malformed);
        }
        let info = &csr.certification_request_info;
        // Before the signature: a key of a million bits is not to be calculated with.
        let key = RequestedKey::new(&info.subject_pki)?;
        csr.verify_signature().map_err(|_| CsrProblem::Signature)?;
        Ok(Self { key, uri: uri(&csr)? })
    }
}

/// The one URI among the names that `csr` asks for.
fn uri(csr: &X509CertificationRequest<'_>) -> Result<Option<String>, CsrProblem> {
    let requests = csr.certification_request_info.iter_attributes().map(|attribute| attribute.parsed_attribute());
    let mut names = Vec::new();
    for extension in requests.flat_map(|attribute| match attribute {
        ParsedCriAttribute::ExtensionRequest(request) => request.extensions.as_slice(),
        _ => &[],
    }) {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(alternative) => names.extend(&alternative.general_names),
            ParsedExtension::ParseError { .. } => return Err(CsrProblem::Malformed),
            // Usages and constraints are the authority's to say; what the CSR says of them is not looked at.
            _ => {}
        }
    }
    match names.as_slice() {
        [] => Ok(None),
        [GeneralName::URI(uri)] => Ok(Some((*uri).to_owned())),
        [other] => Err(CsrProblem::Names(format!("a {} name", kind(other)))),
        several => Err(CsrProblem::Names(format!("{} names", several.len()))),
    }
}

fn kind(name: &GeneralName<'_>) -> &'static str {
    match name {
        GeneralName::DNSName(_) => "DNS",
        GeneralName::IPAddress(_) => "IP",
        GeneralName::RFC822Name(_) => "mail",
        GeneralName::DirectoryName(_) => "directory",
        _ => "strange",
    }
}

/// A public key whose type is accepted.
///
/// Its algorithm is told by the key, never by how the CSR is signed: openssl signs for P-384 with SHA-256, and a
/// certificate laid out by that would say P-256.
#[derive(Clone, Debug)]
pub struct RequestedKey {
    bits: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl RequestedKey {
    fn new(info: &SubjectPublicKeyInfo<'_>) -> Result<Self, CsrProblem> {
        const P256: &str = "1.2.840.10045.3.1.7";
        const P384: &str = "1.3.132.0.34";
        const EC: &str = "1.2.840.10045.2.1";
        const ED25519: &str = "1.3.101.112";
        const RSA: &str = "1.2.840.113549.1.1.1";
        let refused = |what: &str| CsrProblem::KeyType(what.to_owned());
        let bits = info.subject_public_key.data.to_vec();
        let algorithm = match info.algorithm.algorithm.to_id_string().as_str() {
            EC => {
                let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
                // Uncompressed points only: what every TLS library takes.
                match curve.map(|curve| curve.to_id_string()).as_deref() {
                    Some(P256) if bits.len() == 65 => &rcgen::PKCS_ECDSA_P256_SHA256,
                    Some(P384) if bits.len() == 97 => &rcgen::PKCS_ECDSA_P384_SHA384,
                    _ => return Err(refused("an EC key of another curve or form")),
                }
            }
            ED25519 if bits.len() == 32 => &rcgen::PKCS_ED25519,
            RSA => match info.parsed() {
                Ok(PublicKey::RSA(key)) if RSA_BITS.contains(&key.key_size()) => &rcgen::PKCS_RSA_SHA256,
                Ok(PublicKey::RSA(key)) => return Err(refused(&format!("an RSA key of {} bits", key.key_size()))),
                _ => return Err(CsrProblem::Malformed),
            },
            _ => return Err(refused("a key of another type")),
        };
        Ok(Self { bits, algorithm })
    }
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bits
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests;
