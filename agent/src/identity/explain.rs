//! What went wrong in a handshake, in words that name the next thing to check.

use std::fmt;

use rustls::{AlertDescription, CertificateError, Error};

use super::PeerError;
use crate::telemetry::ResponseFlags;

/// A failed handshake as one line for people. rustls names what it found; this says where to look.
#[derive(Clone, Copy, Debug)]
pub struct TlsProblem<'a>(pub &'a Error);

impl fmt::Display for TlsProblem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            Error::InvalidCertificate(error) => return certificate(error, f),
            Error::NoCertificatesPresented => "the peer presented no certificate: it is not of a mesh",
            Error::NoApplicationProtocol => {
                "the peer asks for another protocol than h2 (ALPN): it is not an HBONE client"
            }
            Error::PeerIncompatible(why) => {
                return write!(f, "the peer's TLS is not what the mesh speaks, TLS 1.3 with AES-GCM ({why:?})");
            }
            Error::InvalidMessage(why) => return write!(f, "the peer does not speak TLS ({why:?})"),
            Error::AlertReceived(alert) => return refusal(*alert, f),
            other => return write!(f, "{other}"),
        };
        f.write_str(text)
    }
}

impl TlsProblem<'_> {
    /// How a connection that ends with this is counted.
    pub fn response_flags(self) -> ResponseFlags {
        match self.0 {
            Error::InvalidCertificate(CertificateError::Revoked)
            | Error::AlertReceived(AlertDescription::CertificateRevoked) => ResponseFlags::CertificateRevoked,
            Error::InvalidCertificate(CertificateError::Other(other)) if other.0.is::<PeerError>() => {
                ResponseFlags::IdentityError
            }
            _ => ResponseFlags::TlsFailure,
        }
    }
}

fn certificate(error: &CertificateError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = match error {
        CertificateError::UnknownIssuer => {
            "the peer's certificate leads to no root of this mesh; compare root-cert.pem on both sides"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the peer's certificate has expired; check that it can reach its certificate authority, and both clocks"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the peer's certificate is not valid yet; check the clocks of both nodes"
        }
        CertificateError::Revoked => "the peer's certificate is revoked",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the peer's certificate may not be used on its side of a connection (extended key usage)"
        }
        CertificateError::BadSignature => "the peer does not hold the key of its certificate",
        CertificateError::Other(other) => return write!(f, "{other}"),
        other => return write!(f, "the peer's certificate is not acceptable: {other}"),
    };
    f.write_str(text)
}

fn refusal(alert: AlertDescription, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let text = match alert {
        AlertDescription::UnknownCA => "it trusts another root; compare root-cert.pem on both sides",
        AlertDescription::CertificateExpired => "to it our certificate has expired; check the clocks of both nodes",
        AlertDescription::CertificateRevoked => "our certificate is on its revocation list",
        AlertDescription::CertificateUnknown | AlertDescription::BadCertificate | AlertDescription::AccessDenied => {
            "it does not accept our identity; check the trust domains of both sides"
        }
        AlertDescription::NoApplicationProtocol => "it does not speak h2: it is not an HBONE server",
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3",
        _ => "its own log may say why",
    };
    write!(f, "the peer refused the handshake ({alert:?}): {text}")
}
