//! A workload's certificate and the TLS configurations made from it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use culvert_core::identity::Identity;
use rustls::sign::CertifiedKey;
use serde::Serialize;

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
    pub(super) key: Arc<CertifiedKey>,
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
