//! The signing key: the Secret `cacerts` that was plugged in, else `culvert-ca-secret`, which the leader makes.
//!
//! Every replica follows both and signs with what they hold at the moment; none keeps state of its own.

pub(super) mod secret;
mod tend;

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;

pub(super) use tend::{Spread, Timing};

use crate::ca::{Authority, CaError, Origin};
use crate::identity::Clock;

/// The Secret that is plugged in, in Istio's form and by Istio's name.
pub(super) const PLUGGED_IN: &str = "cacerts";
/// The Secret that is made when none is plugged in.
pub(super) const GENERATED: &str = "culvert-ca-secret";

/// The authority in force, and what is wrong with it if anything is. Cloning is cheap; all clones are one.
#[derive(Clone)]
pub(super) struct Keys(Arc<Inner>);

struct Inner {
    secrets: Api<Secret>,
    namespace: String,
    clock: Arc<dyn Clock>,
    current: watch::Sender<Option<Arc<Current>>>,
    /// Why there is none, or why it is not the newest.
    problem: Mutex<Option<String>>,
    found: watch::Sender<Found>,
}

/// The Secrets as they were last seen; none until it is known whether they are there.
#[derive(Clone, Debug, Default)]
struct Found {
    plugged_in: Option<Option<Arc<Secret>>>,
    generated: Option<Option<Arc<Secret>>>,
}

/// An authority in force.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) authority: Arc<Authority>,
    /// Every root, PEM, as it is given to others.
    pub(super) roots: String,
    /// The revocation lists, PEM, if there are any.
    pub(super) crl: Option<String>,
    pub(super) origin: Origin,
}

impl Current {
    /// When the first of the roots ends.
    pub(super) fn first_root_end(&self) -> Option<SystemTime> {
        self.authority.trust().roots().iter().filter_map(|root| secret::not_after(root)).min()
    }
}

impl Keys {
    /// The keys in `namespace`, of which nothing is known yet.
    pub(super) fn new(client: kube::Client, namespace: &str, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner {
            secrets: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            clock,
            current: watch::Sender::new(None),
            problem: Mutex::new(Some("the Secrets have not been read yet".to_owned())),
            found: watch::Sender::default(),
        }))
    }

    /// What to sign with.
    ///
    /// # Errors
    /// Why there is nothing.
    pub(super) fn current(&self) -> Result<Arc<Current>, String> {
        self.0.current.borrow().clone().ok_or_else(|| self.problem().unwrap_or_default())
    }

    /// The authority in force, as it changes.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Arc<Current>>> {
        self.0.current.subscribe()
    }

    /// What is wrong, if anything is.
    pub(super) fn problem(&self) -> Option<String> {
        self.0.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Follows the Secrets until dropped.
    pub(super) async fn follow(self) {
        let watches = [PLUGGED_IN, GENERATED].map(|name| {
            // By name, so that the Role need not allow to read other Secrets.
            let config = super::watching().fields(&format!("metadata.name={name}"));
            watcher::watcher(self.0.secrets.clone(), config).default_backoff().map(move |event| (name, event)).boxed()
        });
        let mut events = pin!(stream::select_all(watches));
        let mut listed = [None, None];
        while let Some((name, event)) = events.next().await {
            let at = usize::from(name == GENERATED);
            let seen = match event {
                Ok(Event::Init) => {
                    listed[at] = None;
                    continue;
                }
                Ok(Event::InitApply(secret)) => {
                    listed[at] = Some(Arc::new(secret));
                    continue;
                }
                Ok(Event::InitDone) => listed[at].take(),
                Ok(Event::Apply(secret)) => Some(Arc::new(secret)),
                Ok(Event::Delete(_)) => None,
                Err(error) => {
                    tracing::warn!("the keys may be out of date: {}", super::explain_watch(&error, "secrets"));
                    continue;
                }
            };
            self.see(name, seen);
        }
    }

    /// Takes note that the Secret `name` is now as `seen`.
    pub(super) fn see(&self, name: &str, seen: Option<Arc<Secret>>) {
        self.0.found.send_modify(|found| {
            let slot = if name == GENERATED { &mut found.generated } else { &mut found.plugged_in };
            *slot = Some(seen);
        });
        self.settle();
    }

    fn settle(&self) {
        let found = self.0.found.borrow().clone();
        let (Some(plugged_in), Some(generated)) = (found.plugged_in, found.generated) else { return };
        let (name, secret) = match (plugged_in, generated) {
            (Some(secret), _) => (PLUGGED_IN, secret),
            (None, Some(secret)) => (GENERATED, secret),
            (None, None) => return self.without_secret(),
        };
        match self.read(name, &secret) {
            Ok(current) => self.install(current),
            Err(error) => {
                tracing::error!("{error}");
                *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
        }
    }

    fn read(&self, name: &str, secret: &Secret) -> Result<Current, CaError> {
        let origin = Origin::Secret { namespace: self.0.namespace.clone(), name: name.to_owned() };
        let material = secret::material(origin.clone(), secret)?;
        let authority = Authority::new(&material, self.0.clock.now())?;
        // Written anew: what stands between the certificates, comments and keys by mistake, is not for everyone.
        let roots = authority.trust().roots().iter().map(|root| crate::ca::certificate_pem(root)).collect();
        let crl = material.ca_crl.map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok(Current { authority: Arc::new(authority), roots, crl, origin })
    }

    fn install(&self, current: Current) {
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let before = self.0.current.borrow().clone();
        let (old, new) = (before.as_ref().map(|c| c.authority.trust().roots()), current.authority.trust().roots());
        if let Some(old) = old.filter(|old| !old.iter().any(|root| new.contains(root))) {
            tracing::warn!(
                before = old.len(),
                "{}: none of the roots before is among the new ones: until every agent has the new ones, connections \
                 between those that have and those that have not are refused; to change roots without that, keep the \
                 old ones in root-cert.pem for a while",
                current.origin.place("root-cert.pem")
            );
        }
        let (roots, crl) = (new.len(), current.crl.is_some());
        tracing::info!(origin = current.origin.place("ca-cert.pem"), roots, crl, "signing");
        self.0.current.send_replace(Some(Arc::new(current)));
    }

    /// Both Secrets are gone, or were never there. What signs goes on signing: a Secret deleted by mistake must not
    /// replace every identity of the mesh.
    fn without_secret(&self) {
        let problem = match &*self.0.current.borrow() {
            Some(current) => format!(
                "{}: the Secret has been deleted; this replica goes on with what it held: restore it, or delete the \
                 controller's pods to have a new root made",
                current.origin.place("ca-key.pem")
            ),
            None => {
                format!("there is no Secret {PLUGGED_IN} or {GENERATED} in {}; the leader makes one", self.0.namespace)
            }
        };
        tracing::warn!("{problem}");
        *self.0.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("namespace", &self.0.namespace).finish_non_exhaustive()
    }
}

/// How long a leader waits between looks at whether something is to be done.
const LOOK: Duration = Duration::from_secs(30);
