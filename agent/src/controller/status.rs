//! What became of policies, routes and bindings, in the statuses of their objects: what is enforced, what is not
//! supported, what is bound to nothing. Written by the leader, and only when it changes.
//!
//! The conditions have Istio's names (`ZtunnelAccepted`, `WaypointAccepted`, `istio.io/WaypointBound`), since that is
//! what `istioctl`, Kiali and people's `kubectl wait` look for; here the node agent is what ztunnel is there. What they
//! say is what nodes' and waypoints' own reading of the object found: it is read by the same code.

mod bindings;
pub(super) mod condition;
mod feed;
mod policies;
mod routes;
#[cfg(test)]
mod tests;
pub(super) mod write;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use culvert_api::{Object, ObjectError, ObjectRef, UnknownField};
use culvert_core::mesh::{Change, Mesh, Snapshot};
use culvert_core::options::MeshOptions;
use culvert_core::route::gateway_api::ParentStatus;
use culvert_core::service::Service;
use futures_util::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::DynamicObject;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

use self::feed::Watched;
use super::follow::Seen;
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
            write_all(client, state.due(), metrics).await;
        }
    };
    tokio::join!(feeding, writing);
}

async fn write_all(client: &kube::Client, due: Vec<(Key, Value)>, metrics: &Metrics) {
    let write = |(key, wanted): (Key, Value)| async move {
        let resource = key.watched.resource().at(&key.version);
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), &key.namespace, &resource);
        let done = write::patch(&api, &key.name, &wanted, &format!("{}/status", key.watched.plural())).await;
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

/// An object that has a status.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    watched: Watched,
    /// `group/version` as it is served.
    version: String,
    namespace: String,
    name: String,
}

impl Key {
    fn reference(&self) -> ObjectRef {
        ObjectRef::new(self.watched.kind(), self.namespace.as_str(), self.name.as_str())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.reference())
    }
}

/// The objects, and what they depend on.
#[derive(Default)]
struct Statuses {
    options: Option<Arc<MeshOptions>>,
    subjects: HashMap<Key, Subject>,
    /// Namespaces, services, waypoints and routes: what policies are bound to, and what routes name.
    mesh: Mesh,
    unlisted: HashMap<Watched, HashSet<Key>>,
    listed: HashSet<Watched>,
    dirty: HashSet<Key>,
    context_changed: bool,
}

/// An object as it was last seen.
#[derive(Debug)]
struct Subject {
    object: DynamicObject,
    parsed: Parsed,
}

/// What an object is to nodes and waypoints.
#[derive(Debug)]
enum Parsed {
    Policy(Object, Vec<UnknownField>),
    Broken(ObjectError),
    /// In the mesh.
    Context,
}

impl Statuses {
    fn follow_options(&mut self, options: Arc<MeshOptions>) {
        if self.options.as_ref() != Some(&options) {
            self.options = Some(options);
            self.dirty.extend(self.subjects.keys().cloned());
        }
    }

    /// Takes in one thing that a watch said.
    fn take(&mut self, seen: Seen<Watched>) {
        match seen {
            Seen::Listing(watched, _) => {
                let known = self.subjects.keys().filter(|key| key.watched == watched).cloned().collect();
                self.unlisted.insert(watched, known);
            }
            Seen::Listed(watched) => {
                for gone in self.unlisted.remove(&watched).unwrap_or_default() {
                    self.forget(&gone);
                }
                self.listed.insert(watched);
                self.context_changed |= watched.is_context();
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
        let parsed = match (parse(&key, &object), watched.is_context()) {
            (Parsed::Policy(object, _), true) => {
                self.mesh.stage([Change::Upsert(object)]);
                self.context_changed = true;
                Parsed::Context
            }
            (parsed, _) => parsed,
        };
        let object = if watched.is_context() { bare(&object, watched) } else { object };
        self.subjects.insert(key.clone(), Subject { object, parsed });
        if watched.is_subject() {
            self.dirty.insert(key);
        }
    }

    fn forget(&mut self, key: &Key) {
        let known = self.subjects.remove(key).is_some();
        if known && key.watched.is_context() {
            self.mesh.stage([Change::Remove(key.reference())]);
            self.context_changed = true;
        }
        self.dirty.remove(key);
    }

    /// The statuses that are not as they should be, each as a merge patch. Nothing before everything has been listed.
    fn due(&mut self) -> Vec<(Key, Value)> {
        let Some(options) = self.options.clone().filter(|_| self.listed.len() == Watched::ALL.len()) else {
            return Vec::new();
        };
        if std::mem::take(&mut self.context_changed) {
            self.mesh.publish();
            let bound = self.subjects.iter().filter(|(key, subject)| subject.depends_on_context(key));
            self.dirty.extend(bound.map(|(key, _)| key.clone()));
        }
        if self.dirty.is_empty() {
            return Vec::new();
        }
        let snapshot = self.mesh.snapshot();
        let view = View::of(&snapshot, &options);
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
    routes: HashMap<&'a ObjectRef, &'a [ParentStatus]>,
    /// The services of ServiceEntries, by namespace and name: one of each, since their hosts are bound by one label.
    entries: HashMap<(&'a str, &'a str), &'a Service>,
}

impl<'a> View<'a> {
    fn of(snapshot: &'a Arc<Snapshot>, options: &'a MeshOptions) -> Self {
        let entries = snapshot.services().filter(|service| !service.canonical);
        Self {
            snapshot,
            options,
            routes: snapshot.route_statuses().map(|(route, parents)| (route, &**parents)).collect(),
            entries: entries.map(|service| ((&*service.key.namespace, &*service.name), &**service)).collect(),
        }
    }
}

impl Subject {
    /// Whether its status depends on services and waypoints.
    fn depends_on_context(&self, key: &Key) -> bool {
        match &self.parsed {
            Parsed::Context => key.watched.is_subject(),
            Parsed::Policy(Object::AuthorizationPolicy(policy), _) => {
                policy.spec.target_ref.is_some() || !policy.spec.target_refs.is_empty()
            }
            Parsed::Policy(Object::RequestAuthentication(object), _) => {
                object.spec.target_ref.is_some() || !object.spec.target_refs.is_empty()
            }
            Parsed::Policy(..) | Parsed::Broken(_) => false,
        }
    }

    /// What makes its status what it should be; none when it is.
    fn patch(&self, key: &Key, view: &View<'_>, now: Timestamp) -> Option<Value> {
        let status = match &self.parsed {
            Parsed::Context if key.watched.is_route() => routes::status(key, &self.object, view, now),
            Parsed::Context => bindings::status(key, &self.object, view, now),
            // The API server's schemas keep such out; where there are none, the object is told in the nodes' logs.
            Parsed::Broken(_) if key.watched.is_context() => None,
            Parsed::Broken(error) => Some(policies::broken(&self.object, error, now)),
            Parsed::Policy(Object::AuthorizationPolicy(policy), unknown) => {
                Some(policies::authorization(&self.object, policy, unknown, view, now))
            }
            Parsed::Policy(Object::PeerAuthentication(policy), unknown) => {
                Some(policies::peer_authentication(&self.object, policy, unknown, view, now))
            }
            Parsed::Policy(Object::RequestAuthentication(policy), unknown) => {
                Some(policies::request_authentication(&self.object, policy, unknown, view, now))
            }
            Parsed::Policy(..) => None,
        };
        write::merge(&self.object, status?)
    }
}

fn key(watched: Watched, version: String, object: &DynamicObject) -> Key {
    let meta = &object.metadata;
    let (namespace, name) = (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
    Key { watched, version, namespace, name }
}

/// Without what the mesh keeps of it, where there are many: what is left says what its status is.
fn bare(object: &DynamicObject, watched: Watched) -> DynamicObject {
    let mut bare = DynamicObject { types: None, metadata: object.metadata.clone(), data: Value::Null };
    bare.metadata.annotations = None;
    if watched.is_subject() {
        bare.data = json!({"status": object.data["status"]});
    } else {
        // By name only, to notice what a later list does not show any more.
        bare.metadata.labels = None;
    }
    bare
}

/// Reads `object` as the nodes do.
fn parse(key: &Key, object: &DynamicObject) -> Parsed {
    let mut value = object.data.clone();
    if let Value::Object(fields) = &mut value {
        // Statuses are for others to read: what is in one must not make a policy unreadable.
        fields.remove("status");
        fields.insert("apiVersion".to_owned(), key.version.clone().into());
        fields.insert("kind".to_owned(), key.watched.kind().as_str().into());
        fields.insert("metadata".to_owned(), serde_json::to_value(&object.metadata).unwrap_or_default());
    }
    match Object::from_value(value) {
        Ok((object, unknown)) => Parsed::Policy(object, unknown),
        Err(error) => Parsed::Broken(error),
    }
}
