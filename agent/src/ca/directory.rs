//! A certificate authority in a directory.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::authority::Authority;
use super::files::{self, Stamp};
use super::{BoxFuture, CaError, CertificateAuthority, SignedCertificate, SigningRequest, TrustBundle, create};
use crate::identity::{Clock, SystemClock};

/// How often the files are looked at. Mounted Secrets change by a symbolic link, which no notification tells.
const POLL: Duration = Duration::from_secs(1);

/// Signs with the key of a directory in Istio's `cacerts` form: `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`,
/// `root-cert.pem` and, optionally, `ca-crl.pem`. An empty directory is given a new authority.
#[derive(Debug)]
pub struct DirectoryCa {
    directory: PathBuf,
    loaded: ArcSwap<Authority>,
    trust: watch::Sender<Arc<TrustBundle>>,
    clock: Arc<dyn Clock>,
}

impl DirectoryCa {
    /// Opens the authority in `directory`, creating it when the directory is empty or absent, and follows changes of
    /// the files for as long as it lives. Needs a tokio runtime.
    ///
    /// # Errors
    /// When a file is missing, broken, or does not match the others.
    pub fn open(directory: &Path) -> Result<Arc<Self>, CaError> {
        Self::open_at(directory, Arc::new(SystemClock))
    }

    /// [`open`](Self::open) by a clock of one's own.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(directory: &Path, clock: Arc<dyn Clock>) -> Result<Arc<Self>, CaError> {
        if create::create_if_empty(directory, clock.now())? {
            tracing::info!(directory = %directory.display(), "created a certificate authority");
        }
        let stamp = files::stamp(directory);
        let loaded = files::load(directory, clock.now())?;
        let ca = Arc::new(Self {
            directory: directory.to_owned(),
            trust: watch::Sender::new(loaded.trust().clone()),
            loaded: ArcSwap::from_pointee(loaded),
            clock,
        });
        tokio::spawn(follow(Arc::downgrade(&ca), stamp));
        Ok(ca)
    }

    fn reload(&self) {
        match files::load(&self.directory, self.clock.now()) {
            Ok(loaded) => {
                let trust = loaded.trust().clone();
                self.loaded.store(Arc::new(loaded));
                self.trust.send_if_modified(|current| {
                    let changed = !current.is_same_as(&trust);
                    if changed {
                        *current = trust.clone();
                    }
                    changed
                });
                let directory = self.directory.display();
                tracing::info!(%directory, roots = trust.roots().len(), "reloaded the certificate authority");
            }
            // Writing several files takes a moment, during which they do not match.
            Err(error) => tracing::error!(%error, "keeping the certificate authority as it was"),
        }
    }
}

/// Looks at the files for as long as anyone uses the authority.
async fn follow(ca: Weak<DirectoryCa>, mut seen: Stamp<5>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(ca) = ca.upgrade() else { return };
        let stamp = files::stamp(&ca.directory);
        if stamp != seen {
            seen = stamp;
            ca.reload();
        }
    }
}

impl CertificateAuthority for DirectoryCa {
    fn sign(&self, request: SigningRequest) -> BoxFuture<'_, Result<SignedCertificate, CaError>> {
        Box::pin(async move { self.loaded.load().sign(&request, self.clock.now()) })
    }

    fn trust(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.trust.subscribe()
    }
}
