//! The mounted roots and revocation lists, followed as they change.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::client::WebPkiServerVerifier;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;

use super::ServiceOptions;
use crate::ca::authority::revocation_lists;
use crate::ca::files::{Stamp, read_file, stamp_of};
use crate::ca::{CaError, TrustBundle};
use crate::identity::wall_time;

/// How often the files are looked at. Mounted ConfigMaps change by a symbolic link, which no notification tells.
const POLL: Duration = Duration::from_secs(1);

/// What is trusted, and the TLS configuration that trusts it.
pub(super) struct Roots {
    options: ServiceOptions,
    bundle: watch::Sender<Arc<TrustBundle>>,
    /// None until the roots have been read for the first time.
    tls: ArcSwapOption<ClientConfig>,
    /// Why there are no roots.
    problem: Mutex<Option<Problem>>,
    /// Why the last handshake failed, if it did.
    handshake: Mutex<Option<String>>,
}

/// A [`CaError`] that can be given out again.
#[derive(Clone)]
struct Problem {
    place: String,
    problem: String,
    cure: &'static str,
}

impl Roots {
    /// Reads the files of `options`, which need not be there yet, and follows their changes.
    pub(super) fn open(options: &ServiceOptions) -> Arc<Self> {
        let roots = Arc::new(Self {
            options: options.clone(),
            bundle: watch::Sender::new(Arc::default()),
            tls: ArcSwapOption::empty(),
            problem: Mutex::default(),
            handshake: Mutex::default(),
        });
        let stamp = roots.stamp();
        roots.reload();
        tokio::spawn(follow(Arc::downgrade(&roots), stamp));
        roots
    }

    /// What is trusted now.
    pub(super) fn bundle(&self) -> Arc<TrustBundle> {
        self.bundle.borrow().clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.subscribe()
    }

    /// The TLS configuration for the next connection.
    pub(super) fn tls(&self) -> Option<Arc<ClientConfig>> {
        self.tls.load_full()
    }

    /// Whether there are roots to connect with.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn usable(&self) -> Result<(), CaError> {
        if self.tls.load().is_some() {
            return Ok(());
        }
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Problem { place, problem, cure } = problem.unwrap_or_else(|| Problem {
            place: format!("--ca-root-file: {}", self.options.root_file.display()),
            problem: "has not been read yet".to_owned(),
            cure: "wait a moment",
        });
        Err(CaError::File { place, problem, cure })
    }

    /// Remembers how the last handshake ended.
    pub(super) fn note_handshake(&self, problem: Option<String>) {
        *self.handshake.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// Why the last handshake failed, if it did.
    pub(super) fn handshake_problem(&self) -> Option<String> {
        self.handshake.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stamp(&self) -> Stamp<2> {
        stamp_of([&self.options.root_file, &self.options.crl_file])
    }

    fn reload(&self) {
        match self.load() {
            Ok((bundle, tls)) => {
                let roots = bundle.roots().len();
                self.tls.store(Some(Arc::new(tls)));
                *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
                let bundle = Arc::new(bundle);
                let changed = self.bundle.send_if_modified(|current| {
                    let changed = !current.is_same_as(&bundle);
                    if changed {
                        *current = bundle.clone();
                    }
                    changed
                });
                if changed {
                    tracing::info!(roots, file = %self.options.root_file.display(), "read the roots of the mesh");
                }
            }
            Err(Problem { place, problem, cure }) => {
                let kept = self.tls.load().is_some();
                tracing::error!(kept, "{place}: {problem}; {cure}");
                *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(Problem { place, problem, cure });
            }
        }
    }

    fn load(&self) -> Result<(TrustBundle, ClientConfig), Problem> {
        let ServiceOptions { root_file, crl_file, clock, .. } = &self.options;
        let root_place = format!("--ca-root-file: {}", root_file.display());
        let crl_place = format!("--ca-crl-file: {}", crl_file.display());
        let cure = "mount the ConfigMap istio-ca-root-cert there, which the controller writes into every namespace";
        let root = |problem: String| Problem { place: root_place.clone(), problem, cure };
        let crl_cure = "mount the ConfigMap istio-ca-crl there, or nothing";
        let crl = |problem: String| Problem { place: crl_place.clone(), problem, cure: crl_cure };

        let text = read_file(root_file, &root_place, cure).map_err(|e| match e {
            CaError::Io { source, .. } => root(source.to_string()),
            CaError::File { problem, .. } => root(problem),
            other => root(other.to_string()),
        })?;
        let roots: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, _>>()
            .map_err(|e| root(format!("is not PEM: {e:?}")))?;
        if roots.is_empty() {
            return Err(root("holds no certificate".to_owned()));
        }
        let text = match read_file(crl_file, &crl_place, crl_cure) {
            Ok(text) => Some(text),
            Err(CaError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(CaError::Io { source, .. }) => return Err(crl(source.to_string())),
            Err(other) => return Err(crl(other.to_string())),
        };
        let lists = revocation_lists(&text).map_err(crl)?;
        let mut store = RootCertStore::empty();
        for certificate in &roots {
            store.add(certificate.clone()).map_err(|e| root(format!("holds what is no root: {e}")))?;
        }
        let bundle = TrustBundle::new(roots, &lists).map_err(|(_, problem)| root(problem))?;

        let provider = crate::identity::tls_provider();
        let mut verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone());
        if !lists.is_empty() {
            verifier = verifier.with_crls(lists).allow_unknown_revocation_status();
        }
        let verifier = verifier.build().map_err(|e| crl(e.to_string()))?;
        let mut tls = ClientConfig::builder_with_details(provider.clone(), wall_time(clock.clone()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| root(e.to_string()))?
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok((bundle, tls))
    }
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roots").field("roots", &self.bundle.borrow().roots().len()).finish_non_exhaustive()
    }
}

/// Looks at the files for as long as anyone uses the roots.
async fn follow(roots: Weak<Roots>, mut seen: Stamp<2>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(roots) = roots.upgrade() else { return };
        let stamp = roots.stamp();
        if stamp != seen {
            seen = stamp;
            roots.reload();
        }
    }
}
