//! The watches of what has a status, and of what that depends on.

use std::time::Duration;

use culvert_api::Kind;
use futures_util::future::join_all;
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

/// A kind that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Watched {
    AuthorizationPolicy,
    PeerAuthentication,
    HttpRoute,
    GrpcRoute,
    Namespace,
    Service,
    ServiceEntry,
    Gateway,
}

/// What a watch says.
pub(super) enum Seen {
    /// A list of all begins.
    Listing(Watched),
    /// It is complete.
    Listed(Watched),
    /// An object of `group/version` is there.
    Applied(Watched, String, Box<DynamicObject>),
    /// It is gone.
    Deleted(Watched, String, Box<DynamicObject>),
}

impl Watched {
    pub(super) const ALL: [Self; 8] = [
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::Namespace,
        Self::Service,
        Self::ServiceEntry,
        Self::Gateway,
    ];

    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::Namespace => "Namespace",
            Self::Service => "Service",
            Self::ServiceEntry => "ServiceEntry",
            Self::Gateway => "Gateway",
        }
    }

    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "authorizationpolicies",
            Self::PeerAuthentication => "peerauthentications",
            Self::HttpRoute => "httproutes",
            Self::GrpcRoute => "grpcroutes",
            Self::Namespace => "namespaces",
            Self::Service => "services",
            Self::ServiceEntry => "serviceentries",
            Self::Gateway => "gateways",
        }
    }

    fn group(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy | Self::PeerAuthentication => "security.istio.io",
            Self::HttpRoute | Self::GrpcRoute | Self::Gateway => "gateway.networking.k8s.io",
            Self::ServiceEntry => "networking.istio.io",
            Self::Namespace | Self::Service => "",
        }
    }

    /// The versions that are read, the preferred one first.
    fn versions(self) -> &'static [&'static str] {
        match self {
            Self::AuthorizationPolicy | Self::PeerAuthentication => &["v1", "v1beta1"],
            Self::HttpRoute | Self::Gateway => &["v1", "v1beta1"],
            Self::GrpcRoute => &["v1"],
            Self::ServiceEntry => &["v1", "v1beta1", "v1alpha3"],
            Self::Namespace | Self::Service => &["v1"],
        }
    }

    pub(super) fn is_route(self) -> bool {
        matches!(self, Self::HttpRoute | Self::GrpcRoute)
    }

    /// Whether it is watched for what others are bound to.
    pub(super) fn is_context(self) -> bool {
        self.object_kind().is_some()
    }

    /// What the mesh calls it, where it is context.
    pub(super) fn object_kind(self) -> Option<Kind> {
        match self {
            Self::Namespace => Some(Kind::Namespace),
            Self::Service => Some(Kind::Service),
            Self::ServiceEntry => Some(Kind::ServiceEntry),
            Self::Gateway => Some(Kind::Gateway),
            _ => None,
        }
    }

    pub(super) fn resource(self, version: &str) -> ApiResource {
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") },
            kind: self.kind().to_owned(),
            plural: self.plural().to_owned(),
        }
    }
}

/// Watches everything until dropped, or until nobody listens.
pub(super) async fn all(client: &kube::Client, to: mpsc::Sender<Seen>) {
    join_all(Watched::ALL.map(|watched| follow(client, watched, to.clone()))).await;
}

async fn follow(client: &kube::Client, watched: Watched, to: mpsc::Sender<Seen>) {
    while !to.is_closed() {
        match served(client, watched).await {
            Ok(Some(version)) => {
                follow_version(client, watched, &version, &to).await;
                sleep(RETRY).await;
            }
            Ok(None) => {
                // There are none, then.
                let _ = to.send(Seen::Listing(watched)).await;
                let _ = to.send(Seen::Listed(watched)).await;
                sleep(LOOK).await;
            }
            Err(error) => {
                let group = watched.group();
                tracing::warn!("{}", super::super::explain(&error, "get", &format!("the API group {group}")));
                sleep(RETRY).await;
            }
        }
    }
}

/// The version, as `group/version`, in which the kind is served; none when it is not installed.
async fn served(client: &kube::Client, watched: Watched) -> Result<Option<String>, kube::Error> {
    if watched.group().is_empty() {
        return Ok(Some("v1".to_owned()));
    }
    for version in watched.versions() {
        let version = format!("{}/{version}", watched.group());
        match client.list_api_group_resources(&version).await {
            Ok(list) if list.resources.iter().any(|resource| resource.name == watched.plural()) => {
                return Ok(Some(version));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Watches one version until it is not served any more.
async fn follow_version(client: &kube::Client, watched: Watched, version: &str, to: &mpsc::Sender<Seen>) {
    let api = Api::<DynamicObject>::all_with(client.clone(), &watched.resource(version));
    let events = watcher::watcher(api, super::super::watching()).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        let seen = match event {
            Ok(Event::Init) => Seen::Listing(watched),
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                Seen::Applied(watched, version.to_owned(), Box::new(lean(object)))
            }
            Ok(Event::Delete(object)) => Seen::Deleted(watched, version.to_owned(), Box::new(lean(object))),
            Ok(Event::InitDone) => Seen::Listed(watched),
            Err(watcher::Error::InitialListFailed(kube::Error::Api(status))) if status.code == 404 => return,
            Err(error) => {
                tracing::warn!(
                    "statuses may be out of date: {}",
                    super::super::explain_watch(&error, watched.plural())
                );
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
