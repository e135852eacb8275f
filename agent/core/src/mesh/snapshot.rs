//! What readers see.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::ObjectRef;
use imbl::{HashMap, OrdMap};
use serde::Serialize;
use smallvec::SmallVec;

use super::destination_rules::DestinationRules;
use super::sandboxes::SandboxVerdict;
use super::scoped::PolicyIndex;
use super::vips::{Claims, VipIndex};
use crate::authentication::RequestAuthentication;
use crate::options::MeshOptions;
use crate::policy::{AuthorizationPolicy, EffectivePeerAuthentication, PeerAuthentication, RequestTarget};
use crate::route::gateway_api::ParentStatus;
use crate::route::table::ServiceRoutes;
use crate::service::{Service, ServiceKey, ServicePort};
use crate::translate::Finding;
use crate::waypoint::Waypoint;
use crate::workload::{Labels, NamespacedName, Workload, WorkloadUid};

/// The mesh at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(super) version: u64,
    pub(super) options: Arc<MeshOptions>,
    /// Sorted, as the addresses are: with many small entries an [`OrdMap`] takes a third of the memory of a [`HashMap`].
    pub(super) workloads: OrdMap<WorkloadUid, Arc<Workload>>,
    pub(super) addresses: OrdMap<IpAddr, Arc<Workload>>,
    pub(super) services: HashMap<ServiceKey, ServiceState>,
    pub(super) hostnames: HashMap<Arc<str>, Claims>,
    pub(super) vips: VipIndex,
    pub(super) namespaces: HashMap<Arc<str>, Arc<Labels>>,
    pub(super) policies: PolicyIndex<AuthorizationPolicy>,
    pub(super) peer_authentications: PolicyIndex<PeerAuthentication>,
    pub(super) request_authentications: PolicyIndex<RequestAuthentication>,
    pub(super) waypoints: HashMap<NamespacedName, Arc<Waypoint>>,
    /// The services with a waypoint that a workload is behind; only those that are behind any.
    pub(super) bound: OrdMap<WorkloadUid, Arc<[ServiceKey]>>,
    pub(super) routes: HashMap<ServiceKey, Arc<ServiceRoutes>>,
    /// What was found in the routes of a service when they were put together.
    pub(super) route_findings: OrdMap<ServiceKey, Arc<[Finding]>>,
    pub(super) destination_rules: DestinationRules,
    pub(super) route_statuses: OrdMap<ObjectRef, Arc<[ParentStatus]>>,
    pub(super) nodes: HashMap<Arc<str>, OrdMap<Arc<str>, Arc<PodEnrolment>>>,
    pub(super) sandboxes: HashMap<WorkloadUid, SandboxVerdict>,
    pub(super) findings: OrdMap<ObjectRef, Arc<[Finding]>>,
    pub(super) whole: bool,
    /// What the source says of objects that it cannot read, or of which nothing reads a field.
    pub(super) unread: OrdMap<ObjectRef, Arc<[Finding]>>,
    pub(super) incomplete: Option<Arc<str>>,
    /// Policies that were never read, and why.
    pub(super) unknown_policies: OrdMap<ObjectRef, Arc<str>>,
}

/// A service and who is behind it.
#[derive(Clone, Debug)]
pub(super) struct ServiceState {
    pub(super) service: Arc<Service>,
    pub(super) endpoints: OrdMap<WorkloadUid, Endpoint>,
}

/// A workload behind a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Whether it takes traffic of this service.
    pub ready: bool,
    /// Service port and the workload's port for it.
    pub(super) ports: Arc<[(u16, u16)]>,
}

impl Endpoint {
    /// The workload's port for `port` of the service; `None` if it lacks it.
    pub fn port(&self, port: &ServicePort) -> Option<u16> {
        self.ports.iter().find(|(known, _)| *known == port.port).map(|(_, target)| *target)
    }

    /// Whether nothing about it is different; what is shared between snapshots is known by its place in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        let same_workload = Arc::ptr_eq(&self.workload, &other.workload) || self.workload == other.workload;
        let same_ports = Arc::ptr_eq(&self.ports, &other.ports) || self.ports == other.ports;
        self.ready == other.ready && same_ports && same_workload
    }
}

/// A pod that belongs to the mesh, for the node that it runs on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PodEnrolment {
    /// The pod's UID (`metadata.uid`), or its workload UID where an object from a file has none.
    pub uid: Arc<str>,
    /// The UID by which the kubelet and the container runtime know it, where that is another: a static pod is known to
    /// the API server by a mirror of it.
    pub node_uid: Option<Arc<str>>,
    /// The workload: name, namespace, addresses, identity.
    pub workload: Arc<Workload>,
    /// The path of its network namespace, where the pod names it (annotation `culvert.dev/netns`).
    pub netns: Option<Arc<str>>,
    /// Whether only its outbound connections are taken (annotation `ambient.istio.io/bypass-inbound-capture`).
    pub bypass_inbound: bool,
    /// Whether its DNS queries are captured (annotation `ambient.istio.io/dns-capture`, or else the mesh options).
    pub dns_capture: bool,
    /// `spec.runtimeClassName`: some runtimes give their pods sockets that are not the host kernel's.
    pub runtime_class: Option<Arc<str>>,
}

impl Snapshot {
    /// Grows with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether everything there was could be read: what is not here is gone.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Why policies for workloads of `namespace` may be missing, if any are: some file was never read, or there is a
    /// policy there, or in the root namespace, that was not.
    pub fn incomplete(&self, namespace: &str) -> Option<&Arc<str>> {
        let applies =
            |object: &ObjectRef| *object.namespace == *namespace || object.namespace == self.options.root_namespace;
        let unknown = || self.unknown_policies.iter().find(|(object, _)| applies(object)).map(|(_, why)| why);
        self.incomplete.as_ref().or_else(unknown)
    }

    /// The mesh-wide options.
    pub fn options(&self) -> &Arc<MeshOptions> {
        &self.options
    }

    /// The workload of this name.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload that has this address; never one in the node's network namespace, whose address says nothing.
    pub fn workload_by_address(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.get(&ip.to_canonical())
    }

    /// A pod's workload.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(&WorkloadUid::pod(&self.options.cluster, namespace, name))
    }

    /// Every workload, in the order of their names.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Every service, in no particular order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.services.values().map(|state| &state.service)
    }

    /// Every AuthorizationPolicy that nodes or waypoints enforce, in no particular order.
    pub fn authorization_policies(&self) -> impl ExactSizeIterator<Item = &Arc<AuthorizationPolicy>> {
        self.policies.all()
    }

    /// Every waypoint, in no particular order.
    pub fn waypoints(&self) -> impl ExactSizeIterator<Item = &Arc<Waypoint>> {
        self.waypoints.values()
    }

    /// The service of this key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key).map(|state| &state.service)
    }

    /// The service that a client in `client_namespace` reaches at `ip`.
    ///
    /// An exact address wins over a network, a longer prefix over a shorter; of several claims, the one of the
    /// client's namespace, then a Kubernetes Service, then the oldest (ztunnel `src/state/service.rs`).
    pub fn service_by_address(&self, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        self.vips.get(ip.to_canonical(), client_namespace)
    }

    /// The services of this host name, the preferred first.
    pub fn services_by_hostname(&self, hostname: &str) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.hostnames.get(hostname).map(|claims| claims.as_slice()).unwrap_or_default().iter()
    }

    /// Who is behind a service, in the order of their names.
    pub fn endpoints(&self, key: &ServiceKey) -> impl Iterator<Item = &Endpoint> {
        self.services.get(key).into_iter().flat_map(|state| state.endpoints.values())
    }

    /// The AuthorizationPolicies that apply to `workload`: the mesh's, its namespace's, and those that select it.
    ///
    /// Sorted by name and namespace, so that an explanation names the same one every time.
    pub fn policies_for(&self, workload: &Workload) -> SmallVec<[Arc<AuthorizationPolicy>; 4]> {
        let mut policies: SmallVec<[Arc<AuthorizationPolicy>; 4]> = self.policies.of(workload).cloned().collect();
        policies.sort_unstable_by(|a, b| (&a.name.name, &a.name.namespace).cmp(&(&b.name.name, &b.name.namespace)));
        policies
    }

    /// The AuthorizationPolicies that apply to what a waypoint is asked for.
    ///
    /// Sorted by name and namespace, as those of [`Self::policies_for`].
    pub fn policies_at(&self, target: RequestTarget<'_>) -> SmallVec<[Arc<AuthorizationPolicy>; 4]> {
        let mut policies: SmallVec<[_; 4]> = self.policies.at(target).into_iter().cloned().collect();
        policies.sort_unstable_by(|a: &Arc<AuthorizationPolicy>, b| {
            (&a.name.name, &a.name.namespace).cmp(&(&b.name.name, &b.name.namespace))
        });
        policies
    }

    /// The RequestAuthentications that apply to what a waypoint is asked for, in the order of their names.
    pub fn request_authentications_at(&self, target: RequestTarget<'_>) -> SmallVec<[Arc<RequestAuthentication>; 4]> {
        let mut found: SmallVec<[_; 4]> = self.request_authentications.at(target).into_iter().cloned().collect();
        found.sort_unstable_by(|a: &Arc<RequestAuthentication>, b| {
            (&a.name.name, &a.name.namespace).cmp(&(&b.name.name, &b.name.namespace))
        });
        found
    }

    /// Every RequestAuthentication that waypoints enforce, in no particular order.
    pub fn request_authentications(&self) -> impl ExactSizeIterator<Item = &Arc<RequestAuthentication>> {
        self.request_authentications.all()
    }

    /// Whether `workload` accepts plaintext, and which PeerAuthentication says so.
    pub fn peer_authentication_for(&self, workload: &Workload) -> EffectivePeerAuthentication {
        let objects = self.peer_authentications.of(workload).map(|object| &**object);
        EffectivePeerAuthentication::resolve(objects, workload)
    }

    /// The waypoint of this name.
    pub fn waypoint(&self, gateway: &NamespacedName) -> Option<&Arc<Waypoint>> {
        self.waypoints.get(gateway)
    }

    /// Whether `waypoint` may be bound by objects of `namespace`.
    pub fn may_bind(&self, waypoint: &Waypoint, namespace: &str) -> bool {
        let labels = self.namespaces.get(namespace).map(|labels| &**labels);
        waypoint.allowed_routes.allow(&waypoint.gateway.namespace, namespace, labels)
    }

    /// The pods of a node that belong to the mesh, in the order of their UIDs.
    pub fn enrolled_pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<PodEnrolment>> {
        self.nodes.get(node).into_iter().flat_map(|pods| pods.values())
    }

    /// Whether the pod of a sandbox belongs to the mesh; `None` if [`super::Mesh::set_sandbox`] was told of none.
    pub fn sandbox(&self, pod: &NamespacedName) -> Option<&SandboxVerdict> {
        self.sandboxes.get(&WorkloadUid::pod(&self.options.cluster, &pod.namespace, &pod.name))
    }

    /// The labels of a namespace that is known.
    pub fn namespace_labels(&self, name: &str) -> Option<&Arc<Labels>> {
        self.namespaces.get(name)
    }

    /// Every namespace that is known, and its labels.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Labels>)> {
        self.namespaces.iter()
    }

    /// The routes of what is addressed to a service; `None` if everything goes to itself.
    pub fn routes(&self, key: &ServiceKey) -> Option<&Arc<ServiceRoutes>> {
        self.routes.get(key)
    }

    /// What was found in the objects of the mesh, in each and in several together, and what their source says of those
    /// that it cannot read.
    pub fn findings(&self) -> impl Iterator<Item = (&ObjectRef, &Finding)> {
        let each = self.findings.values().flat_map(|findings| findings.iter());
        let together = self.route_findings.values().flat_map(|findings| findings.iter());
        let unread = self.unread.values().flat_map(|findings| findings.iter());
        each.chain(together).chain(unread).map(|finding| (&finding.object, finding))
    }
}
