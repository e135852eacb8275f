//! The state of the mesh: object changes in, snapshots out.
//!
//! [`Mesh`] is the one writer. It keeps what each object says, and works out what that means for the objects that
//! depend on it; the cost of a change follows the size of the change. [`Snapshot`] is what readers hold: immutable,
//! cheap to take, sharing its structure with the snapshots before and after it. The same objects give the same
//! snapshot, in whatever order they came.

mod allocate;
mod bindings;
mod bound;
mod destination_rules;
mod destinations;
mod gateway_routes;
mod namespaces;
mod routes;
mod sandboxes;
mod scoped;
mod selectors;
mod services;
mod snapshot;
#[cfg(test)]
pub(crate) mod tests;
mod vips;
mod workloads;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::k8s_openapi::api::core::v1::ConfigMap;
use culvert_api::names::annotation;
use culvert_api::security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication};
use culvert_api::{Kind, Object, ObjectRef};
use imbl::OrdMap;

pub use destinations::Touched;
pub use sandboxes::{Sandbox, SandboxVerdict};
pub use snapshot::{Endpoint, PodEnrolment, Snapshot};

use self::destination_rules::DestinationRuleStore;
use self::gateway_routes::{GatewayRoute, GatewayRouteStore};
use self::namespaces::{NamespaceState, Namespaces};
use self::routes::RouteStore;
use self::sandboxes::SandboxState;
use self::services::ServiceStore;
use self::workloads::{WorkloadIndexes, WorkloadState, workload_entry_uid};
use crate::enrolment::EnrolmentRules;
use crate::options::{self, MeshOptions};
use crate::service::ServiceKey;
use crate::sharded::ShardedMap;
use crate::translate::facts::{ServiceEntryFacts, WaypointFacts, WorkloadFacts, WorkloadSource};
use crate::translate::{self, Finding, Findings, Interner, Severity};
use crate::waypoint::Waypoint;
use crate::workload::{Locality, NamespacedName, WorkloadUid};

/// A change to one object.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is there, and looks like this.
    Upsert(Object),
    /// It is gone.
    Remove(ObjectRef),
    /// What its source has to say of it, in the place of what it said before: that it cannot be read, say. The object
    /// itself stays as it is.
    Report(ObjectRef, Vec<Finding>),
}

/// The state of the mesh.
#[derive(Debug, Default)]
pub struct Mesh {
    current: Snapshot,
    rules: Arc<EnrolmentRules>,
    /// The node whose pods are enrolled; `None` for every node.
    own_node: Option<Arc<str>>,
    /// Whether it is no affair of a pod's object where its network namespace is.
    ignores_named_netns: bool,
    /// What readers see; behind `current` while a step is staged.
    published: Arc<Snapshot>,
    interner: Interner,
    namespaces: Namespaces,
    nodes: HashMap<Arc<str>, Arc<Locality>>,
    /// Boxed, so that a table that grows moves little.
    workloads: ShardedMap<WorkloadUid, Box<WorkloadState>>,
    indexes: WorkloadIndexes,
    services: ServiceStore,
    gateways: HashMap<NamespacedName, WaypointFacts>,
    routes: RouteStore,
    destination_rules: DestinationRuleStore,
    gateway_routes: GatewayRouteStore,
    /// As they came: what they mean depends on the options.
    policies: HashMap<NamespacedName, Box<AuthorizationPolicy>>,
    peer_authentications: HashMap<NamespacedName, Box<PeerAuthentication>>,
    request_authentications: HashMap<NamespacedName, Box<RequestAuthentication>>,
    /// The ConfigMaps that hold options, by name.
    config_maps: BTreeMap<Arc<str>, ConfigMap>,
    sandboxes: HashMap<WorkloadUid, SandboxState>,
    dirty: Dirty,
    touched: Touched,
}

/// What has to be worked out again.
#[derive(Debug, Default)]
struct Dirty {
    /// And whether what the workload's own object says has changed.
    workloads: HashMap<WorkloadUid, bool>,
    addresses: HashSet<IpAddr>,
    services: HashSet<ServiceKey>,
    members: HashSet<(ServiceKey, WorkloadUid)>,
    /// The services whose routes have to be put together again.
    routes: HashSet<ServiceKey>,
    /// The routes of Gateway API that have to be read again.
    gateway_routes: HashSet<ObjectRef>,
    options: bool,
}

impl Mesh {
    /// A mesh without objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// A mesh without objects, whose pods are enrolled by `rules`.
    pub fn with_rules(rules: EnrolmentRules) -> Self {
        Self { rules: Arc::new(rules), ..Self::default() }
    }

    /// The same, but only the pods of `node` are listed as enrolled: an agent has no use for those of others, of which
    /// there are many more.
    pub fn for_node(self, node: &str) -> Self {
        Self { own_node: Some(node.into()), ..self }
    }

    /// The same, but a pod's annotation [`annotation::NETNS`] has no effect: where anyone may write pods, a path that is
    /// opened with the agent's rights is not theirs to name.
    pub fn without_named_netns(self) -> Self {
        Self { ignores_named_netns: true, ..self }
    }

    /// Takes in `changes` as one step, and says what was found in the objects that came.
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Finding> {
        let found = self.stage(changes);
        self.publish();
        found
    }

    /// Takes in `changes`, and says what was found in the objects that came. Readers see them with the next
    /// [`Self::publish`]: a step may come in many pieces.
    pub fn stage(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Finding> {
        let mut found = Vec::new();
        for change in changes {
            match change {
                Change::Upsert(object) => self.upsert(object, &mut found),
                Change::Remove(object) => self.remove(object),
                Change::Report(object, list) => {
                    found.extend(list.iter().cloned());
                    self.note_unknown_policy(&object, &list);
                    set_findings(&mut self.current.unread, object, list);
                }
            }
        }
        if std::mem::take(&mut self.dirty.options) {
            self.read_options(&mut found);
        }
        found
    }

    /// Works out what everything that was staged means, and shows it to readers as one step.
    pub fn publish(&mut self) -> Arc<Snapshot> {
        self.settle();
        self.current.version += 1;
        self.published = Arc::new(self.current.clone());
        self.snapshot()
    }

    /// Says whether everything there is could be read, so that what is not here is gone; and why objects may be missing
    /// that never were read, if any are. Readers see it with the next [`Self::publish`].
    pub fn set_completeness(&mut self, whole: bool, incomplete: Option<Arc<str>>) {
        self.current.whole = whole;
        self.current.incomplete = incomplete;
    }

    /// The mesh as it was published last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.published.clone()
    }

    /// What a policy says that was never read is not known: it may deny anything in its namespace. One that was read
    /// before stays as it was.
    fn note_unknown_policy(&mut self, object: &ObjectRef, list: &[Finding]) {
        let name = name_of(object);
        let is_known = match object.kind {
            Kind::AuthorizationPolicy => self.policies.contains_key(&name),
            Kind::PeerAuthentication => self.peer_authentications.contains_key(&name),
            _ => true,
        };
        match list.iter().find(|finding| finding.severity == Severity::Error).filter(|_| !is_known) {
            Some(finding) => self.current.unknown_policies.insert(object.clone(), finding.to_string().into()),
            None => self.current.unknown_policies.remove(object),
        };
    }

    fn upsert(&mut self, object: Object, found: &mut Vec<Finding>) {
        let reference = translate::metadata::reference(object.kind(), object.metadata(), &mut self.interner);
        self.current.unknown_policies.remove(&reference);
        let mut list = Vec::new();
        let mut findings = Findings { object: reference.clone(), list: &mut list };
        let interner = &mut self.interner;
        match object {
            Object::Namespace(namespace) => {
                let facts = translate::namespace::translate(&namespace, interner, &mut findings);
                self.set_namespace(reference.name.clone(), Some(facts));
            }
            Object::Node(node) => {
                let locality = translate::node::translate(&node, interner);
                self.set_node(reference.name.clone(), Some(locality));
            }
            Object::Pod(pod) => {
                let facts = translate::pod::translate(&pod, self.own_node.as_deref(), interner, &mut findings);
                if self.ignores_named_netns && facts.as_ref().is_some_and(WorkloadFacts::names_netns) {
                    findings.warning(
                        format!("metadata.annotations[{}]", annotation::NETNS),
                        "has no effect with Kubernetes, where the container runtime says it: remove it",
                    );
                }
                let uid = WorkloadUid::pod(&self.current.options.cluster, &reference.namespace, &reference.name);
                self.set_workload(uid, facts);
            }
            Object::WorkloadEntry(entry) => {
                let facts = translate::workload_entry::translate(&entry, interner, &mut findings);
                let cluster = &self.current.options.cluster;
                self.set_workload(workload_entry_uid(cluster, &reference.namespace, &reference.name), facts);
            }
            Object::Service(service) => {
                let facts = translate::service::translate(&service, interner, &mut findings);
                let facts =
                    ServiceEntryFacts { services: facts.into_iter().map(Arc::new).collect(), endpoints: Vec::new() };
                self.set_services(reference.clone(), Some(facts));
            }
            Object::ServiceEntry(entry) => {
                let facts = translate::service_entry::translate(&entry, interner, &mut findings);
                self.set_services(reference.clone(), Some(facts));
            }
            Object::EndpointSlice(slice) => {
                let facts = translate::endpoint_slice::translate(&slice, interner, &mut findings);
                self.set_slice(reference.clone(), facts);
            }
            Object::Gateway(gateway) => {
                let facts = translate::gateway::translate(&gateway, interner, &mut findings);
                self.set_gateway(name_of(&reference), facts);
            }
            Object::AuthorizationPolicy(policy) => self.set_policy(name_of(&reference), Some(policy), &mut list),
            Object::PeerAuthentication(object) => {
                self.set_peer_authentication(name_of(&reference), Some(object), &mut list);
            }
            Object::RequestAuthentication(object) => {
                self.set_request_authentication(name_of(&reference), Some(object), &mut list);
            }
            Object::HTTPRoute(object) => self.set_gateway_route(&reference, Some(GatewayRoute::Http(object))),
            Object::GRPCRoute(object) => self.set_gateway_route(&reference, Some(GatewayRoute::Grpc(object))),
            Object::TCPRoute(object) => self.set_gateway_route(&reference, Some(GatewayRoute::Tcp(object))),
            Object::TLSRoute(object) => self.set_gateway_route(&reference, Some(GatewayRoute::Tls(object))),
            Object::ReferenceGrant(object) => self.set_reference_grant(&reference, Some(object)),
            Object::DestinationRule(object) => self.set_destination_rule(&reference, Some(object), &mut list),
            Object::VirtualService(object) => self.set_virtual_service(&reference, Some(object), &mut list),
            Object::ConfigMap(config_map) => {
                if options::is_config_map(&reference) {
                    self.config_maps.insert(reference.name.clone(), *config_map);
                    self.dirty.options = true;
                }
            }
        }
        found.extend(list.iter().cloned());
        self.set_findings(reference, list);
    }

    fn remove(&mut self, object: ObjectRef) {
        let cluster = self.current.options.cluster.clone();
        match object.kind {
            Kind::Namespace => self.set_namespace(object.name.clone(), None),
            Kind::Node => self.set_node(object.name.clone(), None),
            Kind::Pod => self.set_workload(WorkloadUid::pod(&cluster, &object.namespace, &object.name), None),
            Kind::WorkloadEntry => {
                self.set_workload(workload_entry_uid(&cluster, &object.namespace, &object.name), None);
            }
            Kind::Service | Kind::ServiceEntry => self.set_services(object.clone(), None),
            Kind::EndpointSlice => self.set_slice(object.clone(), None),
            Kind::Gateway => self.set_gateway(name_of(&object), None),
            Kind::AuthorizationPolicy => self.set_policy(name_of(&object), None, &mut Vec::new()),
            Kind::PeerAuthentication => self.set_peer_authentication(name_of(&object), None, &mut Vec::new()),
            Kind::RequestAuthentication => self.set_request_authentication(name_of(&object), None, &mut Vec::new()),
            Kind::HTTPRoute | Kind::GRPCRoute | Kind::TCPRoute | Kind::TLSRoute => {
                self.set_gateway_route(&object, None);
            }
            Kind::ReferenceGrant => self.set_reference_grant(&object, None),
            Kind::DestinationRule => self.set_destination_rule(&object, None, &mut Vec::new()),
            Kind::VirtualService => self.set_virtual_service(&object, None, &mut Vec::new()),
            Kind::ConfigMap => {
                if options::is_config_map(&object) {
                    self.config_maps.remove(&object.name);
                    self.dirty.options = true;
                }
            }
        }
        self.current.unread.remove(&object);
        self.current.unknown_policies.remove(&object);
        self.set_findings(object, Vec::new());
    }

    /// Works out everything that depends on what has changed.
    fn settle(&mut self) {
        let workloads = std::mem::take(&mut self.dirty.workloads);
        for (uid, facts_changed) in &workloads {
            self.rebuild_workload(uid, *facts_changed);
        }
        for ip in std::mem::take(&mut self.dirty.addresses) {
            self.settle_address(ip);
        }
        let changed = std::mem::take(&mut self.dirty.services);
        let services = self.allocate(changed);
        for key in &services {
            self.rebuild_service(key);
        }
        for (key, uid) in std::mem::take(&mut self.dirty.members) {
            if !services.contains(&key) {
                self.rebuild_member(&key, &uid);
            }
        }
        for uid in workloads.keys() {
            if self.workloads.get(uid).is_some_and(|state| state.facts.is_none()) {
                self.workloads.remove(uid);
            }
        }
        self.settle_gateway_routes();
        self.settle_routes(services);
    }

    fn namespace(&mut self, name: &Arc<str>) -> &mut NamespaceState {
        self.namespaces.entry(name)
    }

    fn set_node(&mut self, name: Arc<str>, locality: Option<Arc<Locality>>) {
        let old = match locality.clone() {
            Some(locality) => self.nodes.insert(name.clone(), locality),
            None => self.nodes.remove(&name),
        };
        if old != locality {
            self.touch_node(&name);
        }
    }

    fn set_gateway(&mut self, name: NamespacedName, facts: Option<WaypointFacts>) {
        match facts {
            Some(facts) => {
                self.current.waypoints.insert(name.clone(), Arc::new(self.waypoint(&facts)));
                self.gateways.insert(name, facts);
            }
            None => {
                self.current.waypoints.remove(&name);
                self.gateways.remove(&name);
            }
        }
    }

    fn waypoint(&self, facts: &WaypointFacts) -> Waypoint {
        let NamespacedName { namespace, name } = &facts.gateway;
        Waypoint {
            gateway: facts.gateway.clone(),
            serves: facts.serves,
            service: format!("{name}.{namespace}.svc.{}", self.current.options.cluster_domain).into(),
            port: facts.port,
            allowed_routes: facts.allowed_routes.clone(),
            tells_client: facts.tells_client,
        }
    }

    fn set_policy(
        &mut self,
        name: NamespacedName,
        object: Option<Box<AuthorizationPolicy>>,
        findings: &mut Vec<Finding>,
    ) {
        let root = &self.current.options.root_namespace;
        let policy = object.as_deref().and_then(|object| translate::authorization_policy(object, root, findings));
        self.current.policies.set(&name, policy);
        put(&mut self.policies, name, object);
    }

    fn set_peer_authentication(
        &mut self,
        name: NamespacedName,
        object: Option<Box<PeerAuthentication>>,
        findings: &mut Vec<Finding>,
    ) {
        let root = &self.current.options.root_namespace;
        let policy = object.as_deref().and_then(|object| translate::peer_authentication(object, root, findings));
        self.current.peer_authentications.set(&name, policy);
        put(&mut self.peer_authentications, name, object);
    }

    fn set_request_authentication(
        &mut self,
        name: NamespacedName,
        object: Option<Box<RequestAuthentication>>,
        findings: &mut Vec<Finding>,
    ) {
        let root = &self.current.options.root_namespace;
        let policy = object.as_deref().and_then(|object| translate::request_authentication(object, root, findings));
        self.current.request_authentications.set(&name, policy);
        put(&mut self.request_authentications, name, object);
    }

    fn set_findings(&mut self, object: ObjectRef, findings: Vec<Finding>) {
        set_findings(&mut self.current.findings, object, findings);
    }

    /// Reads the options from the ConfigMap `culvert`, or else from Istio's own.
    fn read_options(&mut self, found: &mut Vec<Finding>) {
        for (reference, _) in options::CONFIG_MAPS.map(|name| (options::config_map(name), ())) {
            self.current.findings.remove(&reference);
        }
        let mut list = Vec::new();
        let texts = options::CONFIG_MAPS.iter().find_map(|name| {
            let text = self.config_maps.get(*name)?.data.as_ref()?.get(options::KEY)?;
            Some((options::config_map(name), text))
        });
        let options = match texts {
            Some((reference, text)) => {
                let options = options::parse(text, &reference, &mut list);
                found.extend(list.iter().cloned());
                self.set_findings(reference, list);
                // Options that cannot be read at all must not open what was closed: the last good ones stay.
                options.unwrap_or_else(|| (*self.current.options).clone())
            }
            None => MeshOptions::default(),
        };
        if options != *self.current.options {
            self.start_over(options);
        }
    }

    /// Works everything out again, under other options: names, identities and policies may all depend on them.
    fn start_over(&mut self, options: MeshOptions) {
        let old = std::mem::take(self);
        self.touched = Touched::All;
        self.rules = old.rules;
        self.own_node = old.own_node;
        self.ignores_named_netns = old.ignores_named_netns;
        self.published = old.published;
        self.current.version = old.current.version;
        self.current.options = Arc::new(options);
        self.current.findings = old.current.findings;
        self.current.unread = old.current.unread;
        self.current.unknown_policies = old.current.unknown_policies;
        self.set_completeness(old.current.whole, old.current.incomplete);
        self.interner = old.interner;
        self.nodes = old.nodes;
        self.config_maps = old.config_maps;
        self.keep_sandboxes(old.sandboxes);
        for (name, facts) in old.namespaces.into_facts() {
            self.set_namespace(name, Some(facts));
        }
        for facts in old.workloads.into_iter().filter_map(|(_, state)| state.facts) {
            if matches!(facts.source, WorkloadSource::Pod(_) | WorkloadSource::WorkloadEntry { .. }) {
                self.set_workload(facts.uid(&self.current.options.cluster), Some(*facts));
            }
        }
        let ServiceStore { objects, slice_objects, .. } = old.services;
        for (object, state) in objects {
            self.set_services(object, Some(state.facts));
        }
        for (object, (_, facts)) in slice_objects {
            self.set_slice(object, Some((*facts).clone()));
        }
        for (name, facts) in old.gateways {
            self.set_gateway(name, Some(facts));
        }
        for (name, object) in old.policies {
            let mut findings = Vec::new();
            let reference = ObjectRef::new(Kind::AuthorizationPolicy, name.namespace.clone(), name.name.clone());
            self.set_policy(name, Some(object), &mut findings);
            self.set_findings(reference, findings);
        }
        for (name, object) in old.peer_authentications {
            let mut findings = Vec::new();
            let reference = ObjectRef::new(Kind::PeerAuthentication, name.namespace.clone(), name.name.clone());
            self.set_peer_authentication(name, Some(object), &mut findings);
            self.set_findings(reference, findings);
        }
        for (name, object) in old.request_authentications {
            let mut findings = Vec::new();
            let reference = ObjectRef::new(Kind::RequestAuthentication, name.namespace.clone(), name.name.clone());
            self.set_request_authentication(name, Some(object), &mut findings);
            self.set_findings(reference, findings);
        }
        self.restore_routes(old.routes);
        self.restore_gateway_routes(old.gateway_routes);
        self.restore_destination_rules(old.destination_rules);
    }
}

fn set_findings(of: &mut OrdMap<ObjectRef, Arc<[Finding]>>, object: ObjectRef, findings: Vec<Finding>) {
    if findings.is_empty() {
        of.remove(&object);
    } else {
        of.insert(object, findings.into());
    }
}

/// Puts `object` in the place of the one of this name; `None` removes it.
fn put<T>(objects: &mut HashMap<NamespacedName, Box<T>>, name: NamespacedName, object: Option<Box<T>>) {
    match object {
        Some(object) => objects.insert(name, object),
        None => objects.remove(&name),
    };
}

fn name_of(object: &ObjectRef) -> NamespacedName {
    NamespacedName { namespace: object.namespace.clone(), name: object.name.clone() }
}
