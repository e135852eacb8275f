//! What is watched, and under which names the API server has it.

use culvert_api::Kind;
use culvert_core::options;

use crate::source::Reader;

/// A collection of objects that is listed and watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    /// The kind of its objects.
    pub(super) kind: Kind,
    /// Its API group; empty for the core group.
    group: &'static str,
    /// Its name in paths: `pods`.
    plural: &'static str,
    /// The versions whose objects are read, the best first.
    pub(super) versions: &'static [&'static str],
    /// The one object that is watched, where not all are: its namespace and its name.
    only: Option<(&'static str, &'static str)>,
    /// Whether a CustomResourceDefinition has to be there for it.
    pub(super) is_custom: bool,
}

const ISTIO: &[&str] = &["v1", "v1beta1", "v1alpha3"];

impl Resource {
    /// Everything that `reader` uses.
    pub(super) fn read_by(reader: Reader) -> Vec<Self> {
        Kind::ALL.iter().filter(|kind| reader.reads(**kind)).flat_map(|kind| Self::of(*kind)).collect()
    }

    fn of(kind: Kind) -> Vec<Self> {
        let core = |plural| Self { kind, group: "", plural, versions: &["v1"], only: None, is_custom: false };
        let custom = |group, plural, versions| Self { kind, group, plural, versions, only: None, is_custom: true };
        match kind {
            Kind::Namespace => vec![core("namespaces")],
            Kind::Node => vec![core("nodes")],
            Kind::Pod => vec![core("pods")],
            Kind::Service => vec![core("services")],
            // One watch for each name: the namespace may hold others, which are none of our business.
            Kind::ConfigMap => options::CONFIG_MAPS
                .iter()
                .map(|name| Self { only: Some((options::DEFAULT_ROOT_NAMESPACE, name)), ..core("configmaps") })
                .collect(),
            Kind::EndpointSlice => vec![Self { group: "discovery.k8s.io", ..core("endpointslices") }],
            Kind::Gateway => vec![custom("gateway.networking.k8s.io", "gateways", &["v1", "v1beta1"])],
            Kind::ServiceEntry => vec![custom("networking.istio.io", "serviceentries", ISTIO)],
            Kind::WorkloadEntry => vec![custom("networking.istio.io", "workloadentries", ISTIO)],
            Kind::AuthorizationPolicy => vec![custom("security.istio.io", "authorizationpolicies", &ISTIO[..2])],
            Kind::PeerAuthentication => vec![custom("security.istio.io", "peerauthentications", &ISTIO[..2])],
            Kind::RequestAuthentication => vec![custom("security.istio.io", "requestauthentications", &ISTIO[..2])],
            Kind::HTTPRoute => vec![custom("gateway.networking.k8s.io", "httproutes", &["v1", "v1beta1"])],
            Kind::GRPCRoute => vec![custom("gateway.networking.k8s.io", "grpcroutes", &["v1", "v1alpha2"])],
            Kind::TCPRoute => vec![custom("gateway.networking.k8s.io", "tcproutes", &["v1", "v1alpha2"])],
            Kind::TLSRoute => vec![custom("gateway.networking.k8s.io", "tlsroutes", &["v1", "v1alpha3", "v1alpha2"])],
            Kind::ReferenceGrant => vec![custom("gateway.networking.k8s.io", "referencegrants", &["v1", "v1beta1"])],
            Kind::DestinationRule => vec![custom("networking.istio.io", "destinationrules", ISTIO)],
            Kind::VirtualService => vec![custom("networking.istio.io", "virtualservices", ISTIO)],
        }
    }

    /// As kubectl and RBAC write it: `pods`, `serviceentries.networking.istio.io`, `configmaps/culvert`.
    pub(super) fn name(&self) -> String {
        match (self.group, self.only) {
            ("", None) => self.plural.to_owned(),
            ("", Some((_, name))) => format!("{}/{name}", self.plural),
            (group, _) => format!("{}.{group}", self.plural),
        }
    }

    /// The name of its CustomResourceDefinition.
    pub(super) fn definition(&self) -> Option<String> {
        self.is_custom.then(|| format!("{}.{}", self.plural, self.group))
    }

    /// Where `version` of it is, and which part of it is asked for.
    pub(super) fn path(&self, version: &str) -> String {
        let root = match self.group {
            "" => format!("/api/{version}"),
            group => format!("/apis/{group}/{version}"),
        };
        match self.only {
            None => format!("{root}/{}?", self.plural),
            Some((namespace, name)) => {
                format!("{root}/namespaces/{namespace}/{}?fieldSelector=metadata.name%3D{name}&", self.plural)
            }
        }
    }

    /// What `apiVersion` an object is kept under, whatever version it was served in.
    pub(super) fn api_version(&self) -> String {
        let version = self.versions.first().copied().unwrap_or("v1");
        match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_watched_and_read_in_each_of_its_versions() {
        let all: Vec<_> = Kind::ALL.iter().flat_map(|kind| Resource::of(*kind)).collect();
        for kind in Kind::ALL {
            assert!(all.iter().any(|resource| resource.kind == *kind), "{kind}");
            let is_read_by = |reader| Resource::read_by(reader).iter().any(|resource| resource.kind == *kind);
            assert!(is_read_by(Reader::Waypoint), "{kind}");
            assert_eq!(is_read_by(Reader::Node), !kind.is_of_waypoints(), "{kind}");
        }
        for resource in &all {
            assert_eq!(Kind::of(&resource.api_version(), resource.kind.as_str()), Some(resource.kind));
            for version in resource.versions.iter().filter(|_| resource.is_custom) {
                let api_version = format!("{}/{version}", resource.group);
                assert_eq!(Kind::of(&api_version, resource.kind.as_str()), Some(resource.kind), "{api_version}");
            }
        }
    }

    #[test]
    fn resources_are_asked_for_where_the_api_server_has_them() {
        let all = Resource::read_by(Reader::Node);
        let paths = |name: &str| {
            let resource = all.iter().find(|resource| resource.name() == name).unwrap();
            resource.versions.iter().map(|version| resource.path(version)).collect::<Vec<_>>()
        };
        assert_eq!(paths("pods"), ["/api/v1/pods?"]);
        assert_eq!(
            paths("configmaps/culvert"),
            ["/api/v1/namespaces/istio-system/configmaps?fieldSelector=metadata.name%3Dculvert&"]
        );
        assert_eq!(
            paths("gateways.gateway.networking.k8s.io"),
            ["/apis/gateway.networking.k8s.io/v1/gateways?", "/apis/gateway.networking.k8s.io/v1beta1/gateways?"]
        );
    }
}
