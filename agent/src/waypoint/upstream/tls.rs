//! TLS to endpoints, as `tls` of a DestinationRule has it: SIMPLE and MUTUAL.
//!
//! Files are read when they are needed, and again when they have changed, so that certificates can be renewed in place.

mod verifier;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_core::traffic::policy::{ClientTls, TlsFiles};
use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use smallvec::SmallVec;
use tokio::time::Instant;

use self::verifier::Verifier;
use super::error::ConnectFailure;
use crate::ca::TrustBundle;
use crate::files::read_bounded;

/// How long files are taken to be as they were.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// The largest file that is read: the roots of a distribution are a quarter of it.
const MAX_FILE: u64 = 1 << 20;

/// What external servers are spoken to with: every suite and group of the library, as some have no others.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));

/// What servers of the system's trust are verified by.
static SYSTEM: LazyLock<Result<Arc<TrustBundle>, Arc<str>>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    let usable = found.certs.into_iter().filter(|root| webpki::anchor_from_trusted_cert(root).is_ok());
    let roots: Vec<_> = usable.collect();
    match (roots.is_empty(), found.errors.first()) {
        (false, _) => TrustBundle::new(roots, &[]).map(Arc::new).map_err(|(_, why)| why.into()),
        (true, Some(error)) => Err(error.to_string().into()),
        (true, None) => Err("there are none".into()),
    }
});

/// The TLS of one cluster.
#[derive(Debug)]
pub(super) struct Tls {
    settings: Arc<ClientTls>,
    /// The host that is asked for.
    host: Arc<str>,
    made: Mutex<Option<Made>>,
}

#[derive(Debug)]
struct Made {
    looked: Instant,
    stamps: Stamps,
    config: Arc<ClientConfig>,
}

/// By what a change of the files is noticed.
type Stamps = SmallVec<[Option<(SystemTime, u64)>; 4]>;

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings && self.host == other.host
    }
}

impl Tls {
    pub(super) fn new(settings: Arc<ClientTls>, host: Arc<str>) -> Self {
        Self { settings, host, made: Mutex::new(None) }
    }

    /// The server's name: sent to it, and what its certificate is for unless other names are given.
    ///
    /// # Errors
    /// It is no name.
    pub(super) fn server_name(&self) -> Result<ServerName<'static>, ConnectFailure> {
        let name = self.settings.server_name(&self.host);
        ServerName::try_from(name.to_owned()).map_err(|_| {
            ConnectFailure::new(format!(
                "{name:?} is no name that TLS could ask for: set tls.sni of the DestinationRule"
            ))
        })
    }

    /// How to speak to the server, which is to agree on `protocol` where one is given.
    ///
    /// # Errors
    /// A file is missing or wrong, and there is nothing from before.
    pub(super) fn config(&self, protocol: Option<&'static [u8]>) -> Result<Arc<ClientConfig>, ConnectFailure> {
        let config = self.current()?;
        let Some(protocol) = protocol else { return Ok(config) };
        // Sessions are shared by the copies: what differs is what is offered.
        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(config))
    }

    fn current(&self) -> Result<Arc<ClientConfig>, ConnectFailure> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(made) = made.as_ref().filter(|made| now < made.looked + LOOK_AGAIN) {
            return Ok(made.config.clone());
        }
        let stamps = self.stamps();
        if let Some(made) = made.as_mut().filter(|made| made.stamps == stamps) {
            made.looked = now;
            return Ok(made.config.clone());
        }
        match (self.make(), made.as_mut()) {
            (Ok(config), _) => {
                *made = Some(Made { looked: now, stamps, config: config.clone() });
                Ok(config)
            }
            (Err(why), Some(made)) => {
                tracing::warn!(host = %self.host, "the files of tls have changed, and are not used: {why}");
                made.looked = now;
                Ok(made.config.clone())
            }
            (Err(why), None) => Err(ConnectFailure::new(why)),
        }
    }

    fn stamps(&self) -> Stamps {
        let ClientTls { certificate, roots, revoked, .. } = &*self.settings;
        let pair = certificate.as_ref().map(|files| [&files.certificate, &files.key]);
        let files = pair.into_iter().flatten().chain(roots).chain(revoked);
        files.map(|file| fs::metadata(&**file).and_then(|found| Ok((found.modified()?, found.len()))).ok()).collect()
    }

    fn make(&self) -> Result<Arc<ClientConfig>, String> {
        if let Some(name) = &self.settings.credential_name {
            return Err(format!(
                "tls.credentialName {name:?}: waypoints read no Secrets; mount it and name its files in \
                 clientCertificate, privateKey and caCertificates"
            ));
        }
        let verifier = Verifier::new(self.trust()?, self.settings.clone(), self.host.clone(), PROVIDER.clone());
        let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let config = match &self.settings.certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let (chain, key) = own(files)?;
                let wrong = |error: rustls::Error| format!("tls.clientCertificate {}: {error}", files.certificate);
                builder.with_client_auth_cert(chain, key).map_err(wrong)?
            }
        };
        Ok(Arc::new(config))
    }

    /// Whom to trust.
    fn trust(&self) -> Result<Arc<TrustBundle>, String> {
        let ClientTls { roots, revoked, insecure, .. } = &*self.settings;
        let Some(file) = roots.as_ref().filter(|_| !insecure) else {
            let system = || {
                SYSTEM
                    .clone()
                    .map_err(|why| format!("the system's roots cannot be read: {why}; set tls.caCertificates"))
            };
            return if *insecure { Ok(Arc::default()) } else { system() };
        };
        let wrong = |why: &dyn std::fmt::Display| format!("tls.caCertificates {file}: {why}");
        let text = read(file).map_err(|error| wrong(&error))?;
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        let roots = roots.map_err(|error| wrong(&error))?;
        if roots.is_empty() {
            return Err(wrong(&"has no certificate"));
        }
        let lists = match revoked {
            None => Vec::new(),
            Some(file) => revocations(file)?,
        };
        TrustBundle::new(roots, &lists).map(Arc::new).map_err(|(_, why)| wrong(&why))
    }
}

fn revocations(file: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("tls.caCrl {file}: {why}");
    let text = read(file).map_err(|error| wrong(&error))?;
    CertificateRevocationListDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|error| wrong(&error))
}

fn own(files: &TlsFiles) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let TlsFiles { certificate, key } = files;
    let wrong = |why: &dyn std::fmt::Display| format!("tls.clientCertificate {certificate}: {why}");
    let text = read(certificate).map_err(|error| wrong(&error))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| wrong(&error))?;
    let wrong = |why: &dyn std::fmt::Display| format!("tls.privateKey {key}: {why}");
    let text = read(key).map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| wrong(&error))?;
    Ok((chain, key))
}

fn read(file: &str) -> io::Result<Vec<u8>> {
    read_bounded(Path::new(file), MAX_FILE)
}
