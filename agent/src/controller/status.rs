//! What became of policies and routes, in their statuses: what is enforced, what is not supported, what is bound to
//! nothing. Written by the leader, and only when it changes.
//!
//! The conditions have Istio's names (`ZtunnelAccepted`, `WaypointAccepted`), since that is what `istioctl`, Kiali and
//! people's `kubectl wait` look for; here the node agent is what ztunnel is there. What they say is what the nodes'
//! own reading of the object found: it is read by the same code.

mod condition;
mod feed;
mod policies;
mod routes;
#[cfg(test)]
mod tests;
mod write;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use culvert_api::{Object, ObjectError, ObjectRef, UnknownField};
use culvert_core::mesh::{Change, Mesh, Snapshot};
use culvert_core::options::MeshOptions;
use futures_util::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use self::feed::{Seen, Watched};
use super::metrics::Metrics;

/// Writes at once.
const AT_ONCE: usize = 8;
/// How many changes are taken in before anything is written.
const BATCH: usize = 1000;

/// Keeps the statuses up to date. Dropped when another replica leads.
pub(super) async fn run(
    client: &kube::Client,
    mut options: watch::Receiver<Option<Arc<MeshOptions>>>,
    metrics: &Metrics,
) {
    let (to, mut seen) = mpsc::channel(BATCH);
    let feeding = feed::all(client, to);
    let writing = async {
        let mut state = Statuses::default();
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                taken = seen.recv_many(&mut batch, BATCH) => if taken == 0 { return },
                changed = options.changed() => if changed.is_err() { return },
            }
            if let Some(options) = options.borrow_and_update().clone() {
                state.follow_options(options);
            }
            batch.drain(..).for_each(|seen| state.take(seen));
            let due = state.due();
            let write = |(key, wanted): (Key, Value)| async move {
                let done = write::patch(client, &key, &wanted).await;
                (key, done)
            };
            let mut done = stream::iter(due).map(write).buffer_unordered(AT_ONCE);
            while let Some((key, result)) = done.next().await {
                metrics.wrote("status", result.is_ok());
                match result {
                    Ok(()) => tracing::debug!("{key}: status written"),
                    // It is there again with the next change of the object, the conflicting one among them.
                    Err(error) => tracing::warn!("{key}: {error}"),
                }
            }
        }
    };
    tokio::join!(feeding, writing);
}

/// An object that has a status.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    watched: Watched,
    /// `group/version` as it is served.
    version: String,
    namespace: String,
    name: String,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.watched.kind(), self.namespace, self.name)
    }
}

/// The objects, and what they depend on.
#[derive(Default)]
struct Statuses {
    options: Option<Arc<MeshOptions>>,
    subjects: HashMap<Key, Subject>,
    /// Namespaces, services and waypoints: what targets are bound to.
    mesh: Mesh,
    unlisted: HashMap<Watched, HashSet<Key>>,
    listed: HashSet<Watched>,
    dirty: HashSet<Key>,
    bindings_changed: bool,
}

/// An object as it was last seen.
#[derive(Debug)]
struct Subject {
    object: DynamicObject,
    parsed: Parsed,
}

/// What a policy is to the nodes; routes they do not read.
#[derive(Debug)]
enum Parsed {
    Object(Object, Vec<UnknownField>),
    Broken(ObjectError),
    Route,
}

impl Statuses {
    fn follow_options(&mut self, options: Arc<MeshOptions>) {
        if self.options.as_ref() != Some(&options) {
            self.options = Some(options);
            self.dirty.extend(self.subjects.keys().cloned());
        }
    }

    /// Takes in one thing that a watch said.
    fn take(&mut self, seen: Seen) {
        match seen {
            Seen::Listing(watched) => {
                let known = self.subjects.keys().filter(|key| key.watched == watched).cloned().collect();
                self.unlisted.insert(watched, known);
            }
            Seen::Listed(watched) => {
                for gone in self.unlisted.remove(&watched).unwrap_or_default() {
                    self.forget(&gone);
                }
                self.listed.insert(watched);
                self.bindings_changed |= watched.is_context();
            }
            Seen::Applied(watched, version, object) => self.applied(watched, version, *object),
            Seen::Deleted(watched, version, object) => {
                let key = key(watched, version, &object);
                self.forget(&key);
            }
        }
    }

    fn applied(&mut self, watched: Watched, version: String, object: DynamicObject) {
        let key = key(watched, version, &object);
        if let Some(unlisted) = self.unlisted.get_mut(&watched) {
            unlisted.remove(&key);
        }
        let parsed = if watched.is_route() { Parsed::Route } else { parse(&key, &object) };
        if watched.is_context() {
            if let Parsed::Object(object, _) = parsed {
                self.mesh.stage([Change::Upsert(object)]);
                self.bindings_changed = true;
            }
            // Kept by name only, to notice what a later list does not show any more.
            let nothing = DynamicObject { types: None, metadata: Default::default(), data: Value::Null };
            self.subjects.insert(key, Subject { object: nothing, parsed: Parsed::Route });
            return;
        }
        self.subjects.insert(key.clone(), Subject { object, parsed });
        self.dirty.insert(key);
    }

    fn forget(&mut self, key: &Key) {
        let known = self.subjects.remove(key).is_some();
        if let Some(kind) = key.watched.object_kind().filter(|_| known) {
            let gone = ObjectRef::new(kind, key.namespace.as_str(), key.name.as_str());
            self.mesh.stage([Change::Remove(gone)]);
            self.bindings_changed = true;
        }
        self.dirty.remove(key);
    }

    /// The statuses that are not as they should be, each as a merge patch. Nothing before everything has been listed.
    fn due(&mut self) -> Vec<(Key, Value)> {
        let Some(options) = self.options.clone().filter(|_| self.listed.len() == Watched::ALL.len()) else {
            return Vec::new();
        };
        if std::mem::take(&mut self.bindings_changed) {
            self.mesh.publish();
            let bound =
                self.subjects.iter().filter(|(key, subject)| !key.watched.is_context() && subject.has_targets());
            self.dirty.extend(bound.map(|(key, _)| key.clone()));
        }
        let snapshot = self.mesh.snapshot();
        let view = View { snapshot: &snapshot, options: &options };
        let due = std::mem::take(&mut self.dirty).into_iter().filter_map(|key| {
            let patch = self.subjects.get(&key)?.patch(&key, &view, Timestamp::now())?;
            Some((key, patch))
        });
        due.collect()
    }
}

/// What an object's status depends on, beside itself.
struct View<'a> {
    snapshot: &'a Arc<Snapshot>,
    options: &'a MeshOptions,
}

impl Subject {
    /// Whether its status depends on services and waypoints.
    fn has_targets(&self) -> bool {
        match &self.parsed {
            Parsed::Route => true,
            Parsed::Object(Object::AuthorizationPolicy(policy), _) => {
                policy.spec.target_ref.is_some() || !policy.spec.target_refs.is_empty()
            }
            _ => false,
        }
    }

    /// What makes its status what it should be; none when it is.
    fn patch(&self, key: &Key, view: &View<'_>, now: Timestamp) -> Option<Value> {
        let status = match &self.parsed {
            Parsed::Route => routes::status(key, &self.object, view, now),
            Parsed::Broken(error) => Some(policies::broken(&self.object, error, now)),
            Parsed::Object(Object::AuthorizationPolicy(policy), unknown) => {
                Some(policies::authorization(&self.object, policy, unknown, view, now))
            }
            Parsed::Object(Object::PeerAuthentication(policy), unknown) => {
                Some(policies::peer_authentication(&self.object, policy, unknown, view, now))
            }
            Parsed::Object(..) => None,
        };
        write::merge(&self.object, status?)
    }
}

fn key(watched: Watched, version: String, object: &DynamicObject) -> Key {
    let meta = &object.metadata;
    let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    Key { watched, version, namespace, name }
}

/// Reads `object` as the nodes do.
fn parse(key: &Key, object: &DynamicObject) -> Parsed {
    let mut value = object.data.clone();
    if let Value::Object(fields) = &mut value {
        // Statuses are for others to read: what is in one must not make a policy unreadable.
        fields.remove("status");
        fields.insert("apiVersion".to_owned(), key.version.clone().into());
        fields.insert("kind".to_owned(), key.watched.kind().into());
        fields.insert("metadata".to_owned(), serde_json::to_value(&object.metadata).unwrap_or_default());
    }
    match Object::from_value(value) {
        Ok((object, unknown)) => Parsed::Object(object, unknown),
        Err(error) => Parsed::Broken(error),
    }
}
