//! A workload's certificate and the TLS configurations made from it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use serde::Serialize;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::peer::peer_identities;
use super::tls::{self, Template};
use crate::ca::{SignedCertificate, TrustBundle, Usage, unix_time};

/// A workload's certificate, and the TLS configurations that each of its handshakes shares.
///
/// Both configurations belong to this identity alone, session tickets included: a ticket that this identity issued
/// opens nothing elsewhere, and none outlives the certificate or a change of the roots.
#[derive(Debug)]
pub struct WorkloadCertificate {
    /// Whose it is.
    pub identity: Arc<Identity>,
    /// The serial number in hexadecimal, as `openssl x509 -serial` prints it.
    pub serial: Box<str>,
    /// Not valid before this moment.
    pub not_before: SystemTime,
    /// Not valid after this moment.
    pub not_after: SystemTime,
    /// For accepting tunnels. Requires a client certificate of the mesh; ALPN `h2`, or none.
    pub server: Arc<rustls::ServerConfig>,
    /// For opening tunnels. Sends no SNI: the server name given to a connection only tells whose session to resume, so
    /// give the address that is dialled. The caller checks who answered with [`super::verify_server`].
    pub client: Arc<rustls::ClientConfig>,
    /// What every session of these configurations began under, or something newer: a peer that resumes one is not
    /// verified again, so where the trust has changed since, the caller does that.
    pub trust: Arc<TrustBundle>,
    key: Arc<CertifiedKey>,
}

/// What can be told of a certificate: everything but the key.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateReport {
    /// Whose it is.
    pub identity: String,
    /// `ready`, `pending` (never had one yet) or `failing` (in use or not, the last attempt to get one failed).
    pub state: &'static str,
    /// The serial number in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<Box<str>>,
    /// Not valid before: seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
    /// Not valid after: seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<u64>,
    /// How long it is still valid, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
    /// Why the last attempt to get a newer one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl WorkloadCertificate {
    /// How long it is still valid at `now`; zero once it is not.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

/// A key pair and the request to have it certified.
pub(super) struct Prepared {
    key: KeyPair,
    /// PEM.
    pub(super) csr: String,
}

impl Prepared {
    /// A new ECDSA P-256 key and a CSR for it with an empty subject and, for that reason, a critical URI SAN
    /// (RFC 5280 §4.2.1.6).
    pub(super) fn new(identity: &Identity) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        let csr = params.serialize_request(&key)?.pem()?;
        Ok(Self { key, csr })
    }

    /// The certificate in `signed`, once it is sure that peers will take it at `now`; else what is wrong with it.
    pub(super) fn complete(
        self,
        identity: Arc<Identity>,
        signed: SignedCertificate,
        template: &Template,
        now: SystemTime,
    ) -> Result<WorkloadCertificate, String> {
        let key = PrivateKeyDer::Pkcs8(self.key.serialize_der().into());
        let key = CertifiedKey::from_der(signed.chain, key, tls::provider())
            .map_err(|e| format!("the signed certificate is not for the key of the request: {e}"))?;
        let leaf = key.cert.first().ok_or("the authority signed nothing")?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|e| format!("the signed certificate: {e}"))?;
        let identities = peer_identities(&key.cert).map_err(|e| e.to_string())?;
        if identities.first() != Some(&*identity) {
            return Err("the signed certificate is for someone else".to_owned());
        }
        let serial = parsed.raw_serial().iter().map(|byte| format!("{byte:02X}")).collect::<String>().into();
        let not_before = system_time(parsed.validity().not_before.timestamp());
        let not_after = system_time(parsed.validity().not_after.timestamp());
        let certificate = WorkloadCertificate::build(identity, serial, not_before, not_after, Arc::new(key), template)?;
        certificate.check(template, now)?;
        Ok(certificate)
    }
}

impl WorkloadCertificate {
    /// The same certificate with configurations that resume no session of before.
    pub(super) fn with_fresh_sessions(&self, template: &Template) -> Result<Self, String> {
        let (identity, key) = (self.identity.clone(), self.key.clone());
        Self::build(identity, self.serial.clone(), self.not_before, self.not_after, key, template)
    }

    /// Whether peers that trust what `template` does take it at `now`; else what they would object to.
    pub(super) fn check(&self, template: &Template, now: SystemTime) -> Result<(), String> {
        let trust = template.trust();
        for usage in [Usage::Client, Usage::Server] {
            tls::verify_chain(&trust, &self.key.cert, usage, unix_time(now))
                .map_err(|e| format!("peers would not accept the certificate: {e}"))?;
        }
        Ok(())
    }

    fn build(
        identity: Arc<Identity>,
        serial: Box<str>,
        not_before: SystemTime,
        not_after: SystemTime,
        key: Arc<CertifiedKey>,
        template: &Template,
    ) -> Result<Self, String> {
        // Before there can be a session.
        let trust = template.trust();
        let server = template.server(&key).map_err(|e| e.to_string())?;
        let client = template.client(&key).map_err(|e| e.to_string())?;
        Ok(Self { identity, serial, not_before, not_after, server, client, trust, key })
    }
}

pub(super) fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
