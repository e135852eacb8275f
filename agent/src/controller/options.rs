//! The mesh options, as far as the controller needs them: which trust domain it signs for, where the mesh-wide policies
//! are.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use culvert_core::options::{self, MeshOptions};
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;

/// The options in force. Cloning is cheap; all clones are one.
#[derive(Clone)]
pub(super) struct Options {
    client: kube::Client,
    current: watch::Sender<Option<Arc<MeshOptions>>>,
}

/// The ConfigMaps that hold options, by name: none until it is known whether they are there.
type Found = BTreeMap<&'static str, Option<String>>;

impl Options {
    pub(super) fn new(client: kube::Client) -> Self {
        Self { client, current: watch::Sender::new(None) }
    }

    /// The options in force; none until they have been read.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Arc<MeshOptions>>> {
        self.current.subscribe()
    }

    /// The trust domain in force; none until it has been read.
    pub(super) fn trust_domain(&self) -> Option<Arc<str>> {
        self.current.borrow().as_ref().map(|options| options.trust_domain.clone())
    }

    /// Follows the ConfigMaps until dropped.
    pub(super) async fn follow(self) {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), options::DEFAULT_ROOT_NAMESPACE);
        let watches = options::CONFIG_MAPS.map(|name| {
            let config = super::watching().fields(&format!("metadata.name={name}"));
            watcher::watcher(maps.clone(), config).default_backoff().map(move |event| (name, event)).boxed()
        });
        let mut events = pin!(stream::select_all(watches));
        let (mut found, mut listed) = (Found::new(), Found::new());
        while let Some((name, event)) = events.next().await {
            match event {
                Ok(Event::Init) => {
                    listed.insert(name, None);
                }
                Ok(Event::InitApply(map)) => {
                    listed.insert(name, text(map));
                }
                Ok(Event::InitDone) => {
                    found.insert(name, listed.remove(name).flatten());
                }
                Ok(Event::Apply(map)) => {
                    found.insert(name, text(map));
                }
                Ok(Event::Delete(_)) => {
                    found.insert(name, None);
                }
                Err(error) => {
                    tracing::warn!(
                        "the mesh options may be out of date: {}",
                        super::explain_watch(&error, "configmaps")
                    );
                    continue;
                }
            }
            self.settle(&found);
        }
    }

    /// As if there were no ConfigMap.
    #[cfg(test)]
    pub(super) fn use_defaults(&self) {
        self.settle(&options::CONFIG_MAPS.map(|name| (name, None)).into());
    }

    fn settle(&self, found: &Found) {
        if found.len() < options::CONFIG_MAPS.len() {
            return;
        }
        let before = self.current.borrow().clone();
        let parsed = match options::CONFIG_MAPS.iter().find_map(|name| Some((*name, found.get(name)?.as_ref()?))) {
            Some((name, text)) => {
                let mut findings = Vec::new();
                let parsed = options::parse(text, &options::config_map(name), &mut findings);
                for finding in findings {
                    tracing::warn!("{finding}");
                }
                // Options that cannot be read at all: the last good ones stay, as they do in the nodes.
                parsed.map(Arc::new).or_else(|| before.clone())
            }
            None => Some(Arc::new(MeshOptions::default())),
        };
        if let Some(options) = parsed.filter(|options| before.as_ref() != Some(options)) {
            tracing::info!(trust_domain = %options.trust_domain, root_namespace = %options.root_namespace, "mesh options");
            self.current.send_replace(Some(options));
        }
    }
}

fn text(map: ConfigMap) -> Option<String> {
    map.data?.remove(options::KEY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>()
        });
        Options::new(kube::Client::new(service, "default"))
    }

    #[tokio::test]
    async fn nothing_is_known_until_both_maps_have_been_looked_for() {
        let options = options();
        options.settle(&Found::from([("culvert", None)]));
        assert_eq!(options.trust_domain(), None);
        options.settle(&Found::from([("culvert", None), ("istio", None)]));
        assert_eq!(options.trust_domain().as_deref(), Some("cluster.local"));
    }

    #[tokio::test]
    async fn our_map_counts_before_istios_and_a_broken_one_changes_nothing() {
        let options = options();
        let istio = || Some("trustDomain: istio.example".to_owned());
        options.settle(&Found::from([("culvert", None), ("istio", istio())]));
        assert_eq!(options.trust_domain().as_deref(), Some("istio.example"));
        options.settle(&Found::from([("culvert", Some("trustDomain: ours.example".to_owned())), ("istio", istio())]));
        assert_eq!(options.trust_domain().as_deref(), Some("ours.example"));
        options.settle(&Found::from([("culvert", Some("{[".to_owned())), ("istio", istio())]));
        assert_eq!(options.trust_domain().as_deref(), Some("ours.example"));
    }
}
