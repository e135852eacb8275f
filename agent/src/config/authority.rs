//! Where a node gets its certificates.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::ConfigError;
use crate::ca::{Asker, CaError, CertificateAuthority, DirectoryCa, ServiceCa, ServiceOptions};
use crate::identity::SystemClock;

/// The flags that say who signs.
#[derive(Clone, Debug, Args)]
pub struct AuthorityConfig {
    /// Sign certificates with the CA in this directory: ca-cert.pem, ca-key.pem, cert-chain.pem and root-cert.pem,
    /// as in Istio's `cacerts`. Created if the directory is empty. Without it, the CA service signs.
    #[arg(long, env = "CULVERT_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,

    /// The CA service: the controller's, or istiod's.
    #[arg(
        long,
        env = "CULVERT_CA_ADDRESS",
        value_name = "HOST:PORT",
        default_value = "culvert-controller.culvert-system.svc:15012"
    )]
    pub ca_address: String,

    /// The roots of the mesh, PEM: the ConfigMap istio-ca-root-cert, mounted. Followed as it changes.
    #[arg(
        long,
        env = "CULVERT_CA_ROOT_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/istio/root-cert.pem"
    )]
    pub ca_root_file: PathBuf,

    /// Revocation lists, PEM: the ConfigMap istio-ca-crl, mounted. Need not be there.
    #[arg(
        long,
        env = "CULVERT_CA_CRL_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/istio/crl/ca-crl.pem"
    )]
    pub ca_crl_file: PathBuf,

    /// The token that is shown to the CA service, of audience istio-ca. Read for each request.
    #[arg(
        long,
        env = "CULVERT_CA_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/tokens/istio-token"
    )]
    pub ca_token_file: PathBuf,
}

impl AuthorityConfig {
    /// Checks what clap cannot.
    ///
    /// # Errors
    /// The first flag that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.ca_dir.is_some() {
            return Ok(());
        }
        let port = self.ca_address.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        match port.map(str::parse::<u16>) {
            Some(Ok(1..)) => Ok(()),
            _ => Err(ConfigError(format!(
                "--ca-address: {:?} is not HOST:PORT; give the CA service, or a directory with a CA by --ca-dir",
                self.ca_address
            ))),
        }
    }

    /// The authority that they name, as `asker` asks it. Needs a tokio runtime.
    ///
    /// # Errors
    /// When there is none in `--ca-dir`. A CA service need not be there yet.
    pub fn open(&self, asker: Asker) -> Result<Arc<dyn CertificateAuthority>, CaError> {
        if let Some(directory) = &self.ca_dir {
            return Ok(DirectoryCa::open(directory)?);
        }
        Ok(ServiceCa::open(ServiceOptions {
            address: self.ca_address.clone(),
            root_file: self.ca_root_file.clone(),
            crl_file: self.ca_crl_file.clone(),
            token_file: self.ca_token_file.clone(),
            asker,
            clock: Arc::new(SystemClock),
        })?)
    }
}
