//! The watches of what has a status, and of what that depends on.

use culvert_api::Kind;
use futures_util::future::join_all;
use tokio::sync::mpsc;

use crate::controller::follow::{Resource, Seen, Selection, follow};

/// A kind that is watched, and by which names the API server has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Watched(Kind);

const GATEWAY_API: &str = "gateway.networking.k8s.io";

impl Watched {
    pub(super) const AUTHORIZATION_POLICY: Self = Self(Kind::AuthorizationPolicy);
    pub(super) const PEER_AUTHENTICATION: Self = Self(Kind::PeerAuthentication);
    pub(super) const REQUEST_AUTHENTICATION: Self = Self(Kind::RequestAuthentication);
    pub(super) const SERVICE: Self = Self(Kind::Service);
    pub(super) const SERVICE_ENTRY: Self = Self(Kind::ServiceEntry);

    pub(super) const ALL: [Self; 12] = [
        Self::AUTHORIZATION_POLICY,
        Self::PEER_AUTHENTICATION,
        Self::REQUEST_AUTHENTICATION,
        Self(Kind::HTTPRoute),
        Self(Kind::GRPCRoute),
        Self(Kind::TCPRoute),
        Self(Kind::TLSRoute),
        Self(Kind::ReferenceGrant),
        Self(Kind::Namespace),
        Self::SERVICE,
        Self::SERVICE_ENTRY,
        Self(Kind::Gateway),
    ];

    /// The watch of a kind that is among [`Self::ALL`].
    #[cfg(test)]
    pub(super) const fn of(kind: Kind) -> Self {
        Self(kind)
    }

    pub(super) fn kind(self) -> Kind {
        self.0
    }

    pub(super) fn plural(self) -> &'static str {
        match self.0 {
            Kind::AuthorizationPolicy => "authorizationpolicies",
            Kind::PeerAuthentication => "peerauthentications",
            Kind::RequestAuthentication => "requestauthentications",
            Kind::HTTPRoute => "httproutes",
            Kind::GRPCRoute => "grpcroutes",
            Kind::TCPRoute => "tcproutes",
            Kind::TLSRoute => "tlsroutes",
            Kind::ReferenceGrant => "referencegrants",
            Kind::Namespace => "namespaces",
            Kind::Service => "services",
            Kind::ServiceEntry => "serviceentries",
            _ => "gateways",
        }
    }

    /// The group, and the versions that are read, the preferred one first.
    fn versions(self) -> (&'static str, &'static [&'static str]) {
        match self.0 {
            Kind::AuthorizationPolicy | Kind::PeerAuthentication | Kind::RequestAuthentication => {
                ("security.istio.io", &["v1", "v1beta1"])
            }
            Kind::ServiceEntry => ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"]),
            Kind::GRPCRoute | Kind::TCPRoute => (GATEWAY_API, &["v1", "v1alpha2"]),
            Kind::TLSRoute => (GATEWAY_API, &["v1", "v1alpha3", "v1alpha2"]),
            Kind::HTTPRoute | Kind::Gateway | Kind::ReferenceGrant => (GATEWAY_API, &["v1", "v1beta1"]),
            _ => ("", &["v1"]),
        }
    }

    pub(super) fn is_route(self) -> bool {
        matches!(self.0, Kind::HTTPRoute | Kind::GRPCRoute | Kind::TCPRoute | Kind::TLSRoute)
    }

    /// Whether the status of others depends on it.
    pub(super) fn is_context(self) -> bool {
        self.is_route()
            || matches!(
                self.0,
                Kind::Namespace | Kind::Service | Kind::ServiceEntry | Kind::Gateway | Kind::ReferenceGrant
            )
    }

    /// Whether it has a status that is written here.
    pub(super) fn is_subject(self) -> bool {
        !matches!(self.0, Kind::Namespace | Kind::Gateway | Kind::ReferenceGrant)
    }

    /// What the API server calls it.
    pub(super) fn resource(self) -> Resource {
        let (group, versions) = self.versions();
        Resource { group, versions, kind: self.0.as_str(), plural: self.plural() }
    }
}

/// Watches everything until dropped, or until nobody listens.
pub(super) async fn all(client: &kube::Client, to: mpsc::Sender<Seen<Watched>>) {
    let follow = |watched: Watched| follow(client.clone(), watched, watched.resource(), Selection::all(), to.clone());
    join_all(Watched::ALL.map(follow)).await;
}
