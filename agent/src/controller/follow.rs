//! Watches of kinds that may be served in one version or another, or not at all.

use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use kube::Api;
use kube::api::DynamicObject;
use kube::core::ApiResource;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tokio::sync::mpsc;
use tokio::time::sleep;

/// How often a kind is looked for whose CustomResourceDefinition is not there.
const LOOK: Duration = Duration::from_secs(30);
/// And after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// A kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resource {
    /// Its API group; empty for the core group.
    pub(super) group: &'static str,
    /// The versions that are read, the preferred one first.
    pub(super) versions: &'static [&'static str],
    pub(super) kind: &'static str,
    pub(super) plural: &'static str,
}

/// Which objects of a kind.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// `None` for every namespace.
    pub(super) namespace: Option<String>,
    pub(super) config: watcher::Config,
}

/// What a watch says. `T` tells watches apart.
pub(super) enum Seen<T> {
    /// A list of all begins, in this version; none where the kind is not served.
    Listing(T, Option<String>),
    /// It is complete.
    Listed(T),
    /// An object of `group/version` is there.
    Applied(T, String, Box<DynamicObject>),
    /// It is gone.
    Deleted(T, String, Box<DynamicObject>),
}

impl<T> Seen<T> {
    /// Which watch says it.
    pub(super) fn watched(&self) -> &T {
        match self {
            Self::Listing(watched, _)
            | Self::Listed(watched)
            | Self::Applied(watched, ..)
            | Self::Deleted(watched, ..) => watched,
        }
    }
}

impl Resource {
    /// The resource in a version, which may be given with its group.
    pub(super) fn at(self, version: &str) -> ApiResource {
        let version = version.rsplit_once('/').map_or(version, |(_, version)| version);
        ApiResource {
            group: self.group.to_owned(),
            version: version.to_owned(),
            api_version: self.api_version(version),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    fn api_version(self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// The version, as `group/version`, in which it is served; none when it is not installed.
    pub(super) async fn served(self, client: &kube::Client) -> Result<Option<String>, kube::Error> {
        if self.group.is_empty() {
            return Ok(Some("v1".to_owned()));
        }
        for version in self.versions {
            let version = self.api_version(version);
            match client.list_api_group_resources(&version).await {
                Ok(list) if list.resources.iter().any(|resource| resource.name == self.plural) => {
                    return Ok(Some(version));
                }
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

impl Selection {
    /// Every object, in every namespace.
    pub(super) fn all() -> Self {
        Self { namespace: None, config: super::watching() }
    }
}

/// Watches the objects of `selection` until dropped, or until nobody listens. Where the kind is not served there are
/// none, for as long as it is not.
pub(super) async fn follow<T: Clone>(
    client: kube::Client,
    tag: T,
    resource: Resource,
    selection: Selection,
    to: mpsc::Sender<Seen<T>>,
) {
    while !to.is_closed() {
        match resource.served(&client).await {
            Ok(Some(version)) => {
                follow_version(&client, &tag, resource, &version, &selection, &to).await;
                sleep(RETRY).await;
            }
            Ok(None) => {
                let _ = to.send(Seen::Listing(tag.clone(), None)).await;
                let _ = to.send(Seen::Listed(tag.clone())).await;
                sleep(LOOK).await;
            }
            Err(error) => {
                tracing::warn!("{}", super::explain(&error, "get", &format!("the API group {}", resource.group)));
                sleep(RETRY).await;
            }
        }
    }
}

/// Watches one version until it is not served any more.
async fn follow_version<T: Clone>(
    client: &kube::Client,
    tag: &T,
    resource: Resource,
    version: &str,
    selection: &Selection,
    to: &mpsc::Sender<Seen<T>>,
) {
    let at = resource.at(version);
    let api = match &selection.namespace {
        Some(namespace) => Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &at),
        None => Api::<DynamicObject>::all_with(client.clone(), &at),
    };
    let events = watcher::watcher(api, selection.config.clone()).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        let seen = match event {
            Ok(Event::Init) => Seen::Listing(tag.clone(), Some(version.to_owned())),
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                Seen::Applied(tag.clone(), version.to_owned(), Box::new(lean(object)))
            }
            Ok(Event::Delete(object)) => Seen::Deleted(tag.clone(), version.to_owned(), Box::new(lean(object))),
            Ok(Event::InitDone) => Seen::Listed(tag.clone()),
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => return,
            Err(error) => {
                tracing::warn!("what is written may be out of date: {}", super::explain_watch(&error, resource.plural));
                continue;
            }
        };
        if to.send(seen).await.is_err() {
            return;
        }
    }
}

/// Without what nothing here reads, and which is most of it.
fn lean(mut object: DynamicObject) -> DynamicObject {
    object.metadata.managed_fields = None;
    if let Some(annotations) = &mut object.metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    object
}
