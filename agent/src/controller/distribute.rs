//! The roots, and the revocation lists, in a ConfigMap of every namespace. Written by the leader; written again when
//! someone changes them.

mod plan;

use std::pin::pin;

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;
use tokio::time::Instant;

use self::plan::{Act, Map, Plan};
use super::keys::{Keys, Spread};
use super::metrics::Metrics;
use super::{FIELD_MANAGER, MANAGED_BY};

/// Writes at once: a thousand namespaces must not be written one after the other, nor all together.
const AT_ONCE: usize = 8;

/// What a watch says.
enum Seen {
    Namespace(Event<PartialObjectMeta<Namespace>>),
    Map(Map, Event<ConfigMap>),
}

/// Keeps the ConfigMaps as they should be, and says in `spread` since when they are. Dropped when another replica leads.
pub(super) async fn run(client: &kube::Client, keys: &Keys, spread: &watch::Sender<Spread>, metrics: &Metrics) {
    // Whatever was known before is from another term.
    spread.send_replace(None);
    let namespaces = watcher::watcher(Api::<PartialObjectMeta<Namespace>>::all(client.clone()), super::watching());
    let namespaces = namespaces.default_backoff().map(|event| event.map(Seen::Namespace)).boxed();
    let maps = [Map::Roots, Map::Revocations].map(|map| {
        let config = super::watching().fields(&format!("metadata.name={}", map.name()));
        let events = watcher::watcher(Api::<ConfigMap>::all(client.clone()), config).default_backoff();
        events.map(move |event| event.map(|event| Seen::Map(map, event))).boxed()
    });
    let mut events = pin!(stream::select_all([namespaces].into_iter().chain(maps)));
    let mut authority = keys.watch();
    let mut plan = Plan::default();
    loop {
        if let Some(current) = authority.borrow_and_update().clone() {
            plan.want(current.roots.clone(), current.crl.clone());
        }
        let due = plan.due(Instant::now());
        let written: Vec<_> = stream::iter(due)
            .map(|(namespace, map, act)| async move {
                let done = write(client, &namespace, map, &act).await;
                (namespace, map, act, done)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (namespace, map, act, done) in written {
            match done {
                Ok(()) => {
                    metrics.wrote(map.label(), true);
                    tracing::debug!(namespace, map = map.name(), "written");
                    plan.written(&namespace, map, &act, Instant::now());
                }
                Err(error) => {
                    metrics.wrote(map.label(), false);
                    tracing::warn!(namespace, "{error}");
                    plan.failed(&namespace, map, Instant::now());
                }
            }
        }
        let complete = plan.complete();
        spread.send_if_modified(|spread| {
            let known = spread.as_ref().map(|(roots, _)| roots.as_str());
            let changed = known != complete;
            if changed {
                *spread = complete.map(|roots| (roots.to_owned(), Instant::now()));
            }
            changed
        });
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Seen::Namespace(event))) => namespace_event(&mut plan, event),
                Some(Ok(Seen::Map(map, event))) => map_event(&mut plan, map, event),
                Some(Err(error)) => {
                    let line = super::explain_watch(&error, "namespaces or configmaps");
                    tracing::warn!("the roots may not be everywhere: {line}");
                }
                None => return,
            },
            changed = authority.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(plan.next_look(Instant::now())) => {}
        }
    }
}

fn namespace_event(plan: &mut Plan, event: Event<PartialObjectMeta<Namespace>>) {
    match event {
        Event::Init => plan.list_namespaces(),
        Event::InitApply(namespace) | Event::Apply(namespace) => {
            let Some(name) = namespace.metadata.name else { return };
            // One that is being deleted takes nothing new, and needs nothing any more.
            plan.namespace(name, namespace.metadata.deletion_timestamp.is_none());
        }
        Event::Delete(namespace) => plan.namespace(namespace.metadata.name.unwrap_or_default(), false),
        Event::InitDone => plan.listed_namespaces(),
    }
}

fn map_event(plan: &mut Plan, map: Map, event: Event<ConfigMap>) {
    match event {
        Event::Init => plan.list_maps(map),
        Event::InitApply(found) | Event::Apply(found) => {
            let namespace = found.metadata.namespace.unwrap_or_default();
            let labels = found.metadata.labels.unwrap_or_default();
            let is_ours = labels.get(MANAGED_BY.0).is_some_and(|value| value == MANAGED_BY.1);
            let text = found.data.and_then(|mut data| data.remove(map.key()));
            plan.map(namespace, map, Some((text.unwrap_or_default(), is_ours)));
        }
        Event::Delete(found) => plan.map(found.metadata.namespace.unwrap_or_default(), map, None),
        Event::InitDone => plan.listed_maps(map),
    }
}

async fn write(client: &kube::Client, namespace: &str, map: Map, act: &Act) -> Result<(), String> {
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let (result, verb) = match act {
        Act::Put(text) => {
            let wanted = serde_json::json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": map.name(),
                    "labels": {(MANAGED_BY.0): MANAGED_BY.1, "istio.io/config": "true"},
                },
                "data": {(map.key()): text.as_str()},
            });
            let params = PatchParams::apply(FIELD_MANAGER).force();
            (maps.patch_metadata(map.name(), &params, &Patch::Apply(&wanted)).await.map(drop), "patch")
        }
        Act::Delete => (maps.delete(map.name(), &DeleteParams::default()).await.map(drop), "delete"),
    };
    match result {
        Ok(()) => Ok(()),
        // It has gone meanwhile, or is about to.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 403 && status.message.contains("being terminated") => Ok(()),
        Err(error) => Err(super::explain(&error, verb, "configmaps")),
    }
}
