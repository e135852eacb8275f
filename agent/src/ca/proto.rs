//! The messages of `istio.v1.auth.IstioCertificateService` (istio/api `security/v1alpha1/ca.proto`), written by hand:
//! two messages are not worth a protoc.

use std::collections::HashMap;

/// The method, as a path of HTTP/2.
pub(crate) const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The key of the metadata under which a node agent names whom it asks for.
pub(crate) const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// What `CreateCertificate` is asked.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// The CSR, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long the certificate is to be valid, in seconds.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// `ImpersonatedIdentity`: whom the caller, a node agent, asks for.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// What it answers.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct IstioCertificateResponse {
    /// PEM: the leaf, the intermediates, and last the roots.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// `google.protobuf.Struct`, as far as it is read here.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Struct {
    /// Its fields.
    #[prost(map = "string, message", tag = "1")]
    pub fields: HashMap<String, Value>,
}

/// `google.protobuf.Value`, of which only strings are read here: the others are skipped as unknown fields are.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Value {
    /// The value, when it is a string.
    #[prost(string, optional, tag = "3")]
    pub string_value: Option<String>,
}

impl IstioCertificateRequest {
    /// Whom the caller asks for, where it is not for itself. An empty name is none, as in Istio.
    pub(crate) fn impersonated(&self) -> Option<&str> {
        let value = self.metadata.as_ref()?.fields.get(IMPERSONATED_IDENTITY)?;
        value.string_value.as_deref().filter(|name| !name.is_empty())
    }

    /// The metadata by which a node agent asks for `identity`.
    pub(crate) fn impersonating(identity: String) -> Struct {
        let value = Value { string_value: Some(identity) };
        Struct { fields: HashMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]) }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn a_request_has_the_bytes_that_protoc_gives_it() {
        let request = IstioCertificateRequest {
            csr: "c".to_owned(),
            validity_duration: 86400,
            metadata: Some(IstioCertificateRequest::impersonating("s".to_owned())),
        };
        let mut expected = vec![0x0a, 1, b'c', 0x18, 0x80, 0xa3, 0x05];
        // Field 4, a Struct of one field: its key, and a Value that is the string (field 3).
        let value = [&[0x12, 3][..], &[0x1a, 1, b's']].concat();
        let entry = [&[0x0a, 20][..], b"ImpersonatedIdentity", &value].concat();
        let map = [&[0x0a, entry.len() as u8][..], &entry].concat();
        expected.extend([&[0x22, map.len() as u8][..], &map].concat());
        assert_eq!(request.encode_to_vec(), expected);
        assert_eq!(IstioCertificateRequest::decode(&expected[..]).unwrap().impersonated(), Some("s"));
    }

    #[test]
    fn a_name_that_is_no_string_is_no_name() {
        // `number_value: 1.0` in place of a string.
        let value = [&[0x12, 9][..], &[0x11], &1.0_f64.to_le_bytes()].concat();
        let entry = [&[0x0a, 20][..], b"ImpersonatedIdentity", &value].concat();
        let map = [&[0x0a, entry.len() as u8][..], &entry].concat();
        let bytes = [&[0x22, map.len() as u8][..], &map].concat();
        assert_eq!(IstioCertificateRequest::decode(&bytes[..]).unwrap().impersonated(), None);
    }
}
