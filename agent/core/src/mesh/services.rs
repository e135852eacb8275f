//! Services and who is behind them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use culvert_api::{Kind, ObjectRef};
use imbl::OrdMap;
use smallvec::SmallVec;

use super::allocate::Allocator;
use super::selectors::selects;
use super::snapshot::ServiceState;
use super::vips::{insert_claim, remove_claim};
use super::workloads::binding;
use super::{Endpoint, Mesh};
use crate::service::{
    LoadBalancing, LocalityMode, LocalityScope, Resolution, Service, ServiceKey, ServicePort, TargetPort,
};
use crate::sharded::ShardedMap;
use crate::translate::facts::{
    ServiceEntryFacts, ServiceFacts, SliceFacts, TrafficDistribution, WorkloadFacts, WorkloadSource,
};
use crate::workload::{Health, WorkloadUid};

/// What the writer keeps of services.
#[derive(Debug, Default)]
pub(super) struct ServiceStore {
    /// What claims a key, the preferred first: two ServiceEntries of a namespace may name one host.
    claims: ShardedMap<ServiceKey, SmallVec<[Arc<ServiceFacts>; 1]>>,
    /// What an object claims.
    pub(super) objects: ShardedMap<ObjectRef, ServiceObject>,
    /// EndpointSlices by the Service that they belong to and their own name.
    slices: ShardedMap<ServiceKey, BTreeMap<Arc<str>, SliceState>>,
    /// The key that a slice is kept under.
    pub(super) slice_objects: ShardedMap<ObjectRef, (ServiceKey, Arc<SliceFacts>)>,
    /// Virtual addresses for those that have none.
    allocator: Allocator,
    /// The services whose ServiceEntry or slices name a workload, once for each time that they do.
    naming: ShardedMap<WorkloadUid, SmallVec<[ServiceKey; 1]>>,
}

/// A Service or ServiceEntry, and what was made of it.
#[derive(Debug, Default)]
pub(super) struct ServiceObject {
    pub(super) facts: ServiceEntryFacts,
    keys: Vec<ServiceKey>,
    inline: Vec<WorkloadUid>,
}

#[derive(Debug)]
struct SliceState {
    facts: Arc<SliceFacts>,
    /// Whether each is ready.
    members: HashMap<WorkloadUid, bool>,
}

impl ServiceStore {
    fn name(&mut self, uid: &WorkloadUid, key: &ServiceKey) {
        self.naming.or_default(uid.clone()).push(key.clone());
    }

    fn unname(&mut self, uid: &WorkloadUid, key: &ServiceKey) {
        let Some(keys) = self.naming.get_mut(uid) else { return };
        if let Some(at) = keys.iter().position(|known| known == key) {
            keys.swap_remove(at);
        }
        if keys.is_empty() {
            self.naming.remove(uid);
        }
    }
}

impl Mesh {
    fn key(&self, facts: &ServiceFacts) -> ServiceKey {
        match &facts.host {
            Some(host) => ServiceKey { namespace: facts.object.namespace.clone(), hostname: host.clone() },
            None => self.kubernetes_key(&facts.object.namespace, &facts.object.name),
        }
    }

    fn kubernetes_key(&self, namespace: &Arc<str>, name: &str) -> ServiceKey {
        let hostname = format!("{name}.{namespace}.svc.{}", self.current.options.cluster_domain);
        ServiceKey { namespace: namespace.clone(), hostname: hostname.into() }
    }

    /// Puts a Service or ServiceEntry in the place of what was known of `object`.
    pub(super) fn set_services(&mut self, object: ObjectRef, facts: Option<ServiceEntryFacts>) {
        let old = self.services.objects.remove(&object).unwrap_or_default();
        // Endpoints without a host to reach them by are nothing.
        let facts = facts.filter(|facts| !facts.services.is_empty()).unwrap_or_default();
        if old.facts == facts {
            if !facts.services.is_empty() {
                self.services.objects.insert(object, old);
            }
            return;
        }
        self.touch_gateway_routes(&object);
        for (key, facts) in old.keys.iter().zip(&old.facts.services) {
            self.unclaim(key, &facts.object, facts);
            for uid in &old.inline {
                self.services.unname(uid, key);
            }
        }
        let keys: Vec<ServiceKey> = facts.services.iter().map(|facts| self.key(facts)).collect();
        let cluster = self.current.options.cluster.clone();
        let inline: Vec<WorkloadUid> = facts.endpoints.iter().map(|facts| facts.uid(&cluster)).collect();
        for uid in old.inline.iter().filter(|uid| !inline.contains(uid)) {
            self.set_workload(uid.clone(), None);
        }
        for (key, facts) in keys.iter().zip(&facts.services) {
            self.claim(key, facts);
            for uid in &inline {
                self.services.name(uid, key);
            }
        }
        for (uid, facts) in inline.iter().zip(&facts.endpoints) {
            self.set_workload(uid.clone(), Some(facts.clone()));
        }
        if !keys.is_empty() {
            self.services.objects.insert(object, ServiceObject { facts, keys, inline });
        }
    }

    fn claim(&mut self, key: &ServiceKey, facts: &Arc<ServiceFacts>) {
        let claims = self.services.claims.or_default(key.clone());
        let at = claims.partition_point(|known| claim_precedence(known) < claim_precedence(facts));
        claims.insert(at, facts.clone());
        let namespace = self.namespace(&key.namespace);
        namespace.services.insert(key.clone());
        if let Some(selector) = &facts.selector {
            namespace.selectors.insert(selector, key.clone());
        }
        self.dirty.services.insert(key.clone());
    }

    fn unclaim(&mut self, key: &ServiceKey, object: &ObjectRef, facts: &ServiceFacts) {
        if let Some(claims) = self.services.claims.get_mut(key) {
            claims.retain(|known| known.object != *object);
            if claims.is_empty() {
                self.services.claims.remove(key);
                self.namespace(&key.namespace).services.remove(key);
            }
        }
        if let Some(selector) = &facts.selector {
            self.namespace(&key.namespace).selectors.remove(selector, key);
        }
        self.namespaces.forget_if_empty(&key.namespace);
        self.dirty.services.insert(key.clone());
    }

    /// Puts an EndpointSlice in the place of what was known of `object`.
    pub(super) fn set_slice(&mut self, object: ObjectRef, facts: Option<SliceFacts>) {
        let old = self.services.slice_objects.remove(&object);
        if let (Some((_, known)), Some(facts)) = (&old, &facts)
            && **known == *facts
        {
            if let Some(old) = old {
                self.services.slice_objects.insert(object, old);
            }
            return;
        }
        let mut gone: Vec<WorkloadUid> = Vec::new();
        if let Some((key, _)) = old {
            let slices = self.services.slices.or_default(key.clone());
            let state = slices.remove(&object.name);
            if slices.is_empty() {
                // Whether there are slices at all decides whether the selector counts.
                self.services.slices.remove(&key);
                self.dirty.services.insert(key.clone());
            }
            for uid in state.into_iter().flat_map(|state| state.members.into_keys()) {
                self.services.unname(&uid, &key);
                self.dirty.members.insert((key.clone(), uid.clone()));
                gone.push(uid);
            }
        }
        let Some(facts) = facts.map(Arc::new) else { return self.drop_slice_workloads(&object, gone) };
        let key = self.kubernetes_key(&object.namespace, &facts.service);
        let cluster = self.current.options.cluster.clone();
        let mut members: HashMap<WorkloadUid, bool> = HashMap::new();
        for (pod, ready) in &facts.pods {
            *members.entry(WorkloadUid::pod(&cluster, &object.namespace, pod)).or_default() |= *ready;
        }
        for other in &facts.others {
            let uid = other.uid(&cluster);
            *members.entry(uid.clone()).or_default() |= other.health == Health::Healthy;
            self.set_workload(uid, Some(other.clone()));
        }
        for uid in members.keys() {
            self.services.name(uid, &key);
            self.dirty.members.insert((key.clone(), uid.clone()));
        }
        gone.retain(|uid| !members.contains_key(uid));
        self.drop_slice_workloads(&object, gone);
        let slices = self.services.slices.or_default(key.clone());
        if slices.is_empty() {
            self.dirty.services.insert(key.clone());
        }
        slices.insert(object.name.clone(), SliceState { facts: facts.clone(), members });
        self.services.slice_objects.insert(object, (key, facts));
    }

    /// Lets go of the workloads that stood for addresses of a slice.
    fn drop_slice_workloads(&mut self, slice: &ObjectRef, uids: Vec<WorkloadUid>) {
        for uid in uids {
            let facts = self.workloads.get(&uid).and_then(|state| state.facts.as_deref());
            let of_slice = |facts: &WorkloadFacts| {
                matches!(facts.source, WorkloadSource::EndpointSlice { .. }) && facts.name == slice.name
            };
            if facts.is_some_and(of_slice) {
                self.set_workload(uid, None);
            }
        }
    }

    /// The services that a Service or ServiceEntry is.
    pub(super) fn service_keys(&self, object: &ObjectRef) -> Vec<ServiceKey> {
        self.services.objects.get(object).map(|state| state.keys.clone()).unwrap_or_default()
    }

    /// The services whose ServiceEntry or slices name `uid`.
    pub(super) fn services_naming(&self, uid: &WorkloadUid) -> SmallVec<[ServiceKey; 1]> {
        self.services.naming.get(uid).cloned().unwrap_or_default()
    }

    /// Gives virtual addresses to those of `changed` that want some, and returns all services to be worked out again:
    /// one that is gone may leave its address to another.
    pub(super) fn allocate(&mut self, mut changed: HashSet<ServiceKey>) -> HashSet<ServiceKey> {
        let mut moved = Vec::new();
        for key in &changed {
            let facts = self.services.claims.get(key).and_then(|claims| claims.first());
            let created = facts.filter(|facts| facts.auto_vips).map(|facts| facts.created);
            moved.extend(self.services.allocator.set(key, created));
        }
        changed.extend(moved);
        changed
    }

    /// Works out what readers see of a service, from scratch.
    pub(super) fn rebuild_service(&mut self, key: &ServiceKey) {
        let facts = self.services.claims.get(key).and_then(|claims| claims.first()).cloned();
        let old = self.current.services.get(key).cloned();
        if let Some(old) = &old {
            for uid in old.endpoints.keys() {
                if let Some(state) = self.workloads.get_mut(uid) {
                    state.services.retain(|known| known != key);
                }
            }
        }
        let Some(facts) = facts else {
            if let Some(old) = old {
                self.publish_service(key, Some(&old.service), None);
                self.current.services.remove(key);
                self.note_members(Some(&old), None);
            }
            return;
        };
        let service = self.build_service(key, &facts);
        let service = match &old {
            Some(old) if *old.service == service => old.service.clone(),
            _ => {
                let service = Arc::new(service);
                self.publish_service(key, old.as_ref().map(|old| &old.service), Some(&service));
                service
            }
        };
        let mut endpoints = OrdMap::new();
        for uid in self.candidates(key, &facts) {
            if let Some(endpoint) = self.endpoint(key, &facts, &uid)
                && let Some(state) = self.workloads.get_mut(&uid)
            {
                if !state.services.contains(key) {
                    state.services.push(key.clone());
                }
                endpoints.insert(uid, endpoint);
            }
        }
        self.touched.add_service(&service);
        let state = ServiceState { service, endpoints };
        self.current.services.insert(key.clone(), state.clone());
        self.note_members(old.as_ref(), Some(&state));
    }

    /// Sees to those who are or were behind a service, if it has or had a waypoint.
    fn note_members(&mut self, old: Option<&ServiceState>, new: Option<&ServiceState>) {
        let states = || old.into_iter().chain(new);
        if states().any(|state| state.service.waypoint.is_some()) {
            states().flat_map(|state| state.endpoints.keys()).for_each(|uid| self.note_bound(uid));
        }
    }

    /// Works out whether one workload is behind a service.
    pub(super) fn rebuild_member(&mut self, key: &ServiceKey, uid: &WorkloadUid) {
        let Some(facts) = self.services.claims.get(key).and_then(|claims| claims.first()).cloned() else { return };
        let endpoint = self.endpoint(key, &facts, uid);
        let Some(state) = self.current.services.get_mut(key) else { return };
        self.touched.add_service(&state.service);
        let is_member = endpoint.is_some();
        match endpoint {
            Some(endpoint) => state.endpoints.insert(uid.clone(), endpoint),
            None => state.endpoints.remove(uid),
        };
        if let Some(workload) = self.workloads.get_mut(uid) {
            match workload.services.iter().position(|known| known == key) {
                Some(at) if !is_member => {
                    workload.services.swap_remove(at);
                }
                None if is_member => workload.services.push(key.clone()),
                _ => {}
            }
        }
        if self.current.services.get(key).is_some_and(|state| state.service.waypoint.is_some()) {
            self.note_bound(uid);
        }
    }

    fn build_service(&self, key: &ServiceKey, facts: &ServiceFacts) -> Service {
        let namespace = self.namespaces.facts(&key.namespace);
        let distribution =
            facts.traffic_distribution.or_else(|| namespace.and_then(|namespace| namespace.traffic_distribution));
        Service {
            key: key.clone(),
            name: facts.object.name.clone(),
            vips: if facts.auto_vips { self.services.allocator.addresses(key) } else { facts.vips.clone() },
            ports: facts.ports.clone(),
            resolution: facts.resolution,
            load_balancing: load_balancing(facts, distribution),
            waypoint: binding(&facts.waypoint, namespace, facts.is_gateway),
            subject_alt_names: facts.subject_alt_names.clone(),
            canonical: facts.object.kind == Kind::Service,
            created: facts.created,
        }
    }

    fn publish_service(&mut self, key: &ServiceKey, old: Option<&Arc<Service>>, new: Option<&Arc<Service>>) {
        if let Some(old) = old {
            self.touched.add_service(old);
            self.current.vips.remove(old);
        }
        let mut claims = self.current.hostnames.get(&key.hostname).cloned().unwrap_or_default();
        remove_claim(&mut claims, key);
        if let Some(new) = new {
            self.current.vips.insert(new);
            insert_claim(&mut claims, new);
        }
        match claims.is_empty() {
            true => self.current.hostnames.remove(&key.hostname),
            false => self.current.hostnames.insert(key.hostname.clone(), claims),
        };
    }

    /// The workloads that may be behind a service.
    fn candidates(&self, key: &ServiceKey, facts: &ServiceFacts) -> Vec<WorkloadUid> {
        let mut candidates: Vec<WorkloadUid> = Vec::new();
        if let Some(selector) = &facts.selector
            && let Some(namespace) = self.namespaces.get(&key.namespace)
        {
            candidates.extend(namespace.labels.matching(selector).cloned());
        }
        if let Some(slices) = self.services.slices.get(key) {
            candidates.extend(slices.values().flat_map(|slice| slice.members.keys().cloned()));
        }
        if let Some(object) = self.services.objects.get(&facts.object) {
            candidates.extend(object.inline.iter().cloned());
        }
        candidates
    }

    fn endpoint(&mut self, key: &ServiceKey, service: &ServiceFacts, uid: &WorkloadUid) -> Option<Endpoint> {
        let state = self.workloads.get(uid)?;
        let (facts, workload) = (state.facts.as_deref()?, state.built.as_ref()?);
        let slices = match service.object.kind {
            Kind::Service => self.services.slices.get(key),
            _ => None,
        };
        let mut ports: SmallVec<[(u16, u16); 8]> = SmallVec::new();
        let ready = match (slices, &facts.source) {
            (Some(slices), WorkloadSource::Pod(_) | WorkloadSource::EndpointSlice { .. }) => {
                let mut slices = slices.values().filter_map(|slice| Some((slice, *slice.members.get(uid)?))).peekable();
                slices.peek()?;
                let mut ready = false;
                for (slice, is_ready) in slices {
                    ready |= is_ready;
                    ports.extend(service.ports.iter().filter_map(|port| {
                        let (_, target) = slice.facts.ports.iter().find(|(name, _)| *name == port.name)?;
                        Some((port.port, *target))
                    }));
                }
                // A dual-stack pod is in a slice of each family.
                ports.sort_unstable();
                ports.dedup_by_key(|(port, _)| *port);
                ready
            }
            _ => {
                let selected = service.selector.as_ref().is_some_and(|selector| {
                    let selectable = match &facts.source {
                        WorkloadSource::Pod(_) | WorkloadSource::WorkloadEntry { .. } => true,
                        WorkloadSource::ServiceEntry { .. } | WorkloadSource::EndpointSlice { .. } => false,
                    };
                    selectable && facts.namespace == key.namespace && selects(selector, &facts.labels)
                });
                let inline = || self.services.objects.get(&service.object).is_some_and(|o| o.inline.contains(uid));
                if !selected && !inline() {
                    return None;
                }
                // A workload known by a name alone is of use only where names are resolved.
                if facts.addresses.is_empty() && service.resolution != Resolution::Dns {
                    return None;
                }
                ports.extend(service.ports.iter().filter_map(|port| Some((port.port, target_port(port, facts)?))));
                facts.health == Health::Healthy
            }
        };
        let workload = workload.clone();
        Some(Endpoint { workload, ready, ports: self.interner.port_map(&ports) })
    }
}

/// The workload's port for a service's: an entry may name its own for a service port, a pod has container ports.
fn target_port(port: &ServicePort, facts: &WorkloadFacts) -> Option<u16> {
    let named = |name: &str| facts.named_ports.iter().find(|(known, _)| **known == *name).map(|(_, number)| *number);
    let own = match facts.source {
        WorkloadSource::WorkloadEntry { .. } | WorkloadSource::ServiceEntry { .. } => named(&port.name),
        WorkloadSource::Pod(_) | WorkloadSource::EndpointSlice { .. } => None,
    };
    own.or_else(|| match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Named(name) => named(name),
    })
}

/// Of several objects that claim one key: Kubernetes Services first, then the oldest, then by name.
fn claim_precedence(facts: &ServiceFacts) -> impl Ord {
    (facts.object.kind != Kind::Service, facts.created, facts.object.name.clone())
}

fn load_balancing(facts: &ServiceFacts, distribution: Option<TrafficDistribution>) -> LoadBalancing {
    use LocalityScope::{Network, Node, Region, Subzone, Zone};
    let (mode, scopes): (_, &'static [LocalityScope]) = match distribution {
        _ if facts.node_local => (LocalityMode::Strict, &[Node]),
        Some(TrafficDistribution::PreferSameZone) => (LocalityMode::Failover, &[Network, Region, Zone]),
        Some(TrafficDistribution::PreferSameNode) => (LocalityMode::Failover, &[Network, Region, Zone, Subzone, Node]),
        Some(TrafficDistribution::Any) | None => (LocalityMode::Any, &[]),
    };
    LoadBalancing { mode, scopes, allow_unhealthy: facts.allow_unhealthy }
}
