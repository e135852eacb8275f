//! Workloads: from what their objects say, the namespace, the node and the options, to what readers see.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::names::label;
use ipnet::IpNet;
use smallvec::SmallVec;

use super::{Mesh, PodEnrolment};
use crate::enrolment::{Enrol, Why, eligibility};
use crate::identity::Identity;
use crate::service::ServiceKey;
use crate::translate::facts::{NamespaceFacts, PodFacts, WaypointLabel, WaypointWords, WorkloadFacts, WorkloadSource};
use crate::waypoint::WaypointBinding;
use crate::workload::{NetworkMode, Protocol, Template, Workload, WorkloadUid};

/// A workload as the writer keeps it.
#[derive(Debug, Default)]
pub(super) struct WorkloadState {
    /// `None` once its object is gone, until what depended on it has been seen to.
    pub(super) facts: Option<Box<WorkloadFacts>>,
    pub(super) built: Option<Arc<Workload>>,
    enrolment: Option<Arc<PodEnrolment>>,
    /// The services that it is behind.
    pub(super) services: SmallVec<[ServiceKey; 1]>,
}

/// Indexes that only the writer needs.
#[derive(Debug, Default)]
pub(super) struct WorkloadIndexes {
    /// Workloads by node, for when a node's locality changes.
    nodes: HashMap<Arc<str>, HashSet<WorkloadUid>>,
    /// The addresses that more than one workload claims, and which do.
    clashes: HashMap<IpAddr, BTreeSet<WorkloadUid>>,
}

impl WorkloadFacts {
    /// The workload's UID in `cluster`.
    pub(super) fn uid(&self, cluster: &str) -> WorkloadUid {
        let (namespace, name) = (&self.namespace, &self.name);
        match &self.source {
            WorkloadSource::Pod(_) => WorkloadUid::pod(cluster, namespace, name),
            WorkloadSource::WorkloadEntry { .. } => workload_entry_uid(cluster, namespace, name),
            WorkloadSource::ServiceEntry { suffix } => {
                WorkloadUid(format!("{cluster}/networking.istio.io/ServiceEntry/{namespace}/{name}/{suffix}").into())
            }
            WorkloadSource::EndpointSlice { suffix } => {
                WorkloadUid(format!("{cluster}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{suffix}").into())
            }
        }
    }

    /// Whether it is a pod that says where its network namespace is.
    pub(super) fn names_netns(&self) -> bool {
        matches!(&self.source, WorkloadSource::Pod(pod) if pod.netns.is_some())
    }

    /// Whether it has addresses of its own, by which it can be found.
    fn is_addressable(&self) -> bool {
        !self.host_network && !matches!(self.source, WorkloadSource::EndpointSlice { .. })
    }
}

/// The UID of a WorkloadEntry.
pub(super) fn workload_entry_uid(cluster: &str, namespace: &str, name: &str) -> WorkloadUid {
    WorkloadUid(format!("{cluster}/networking.istio.io/WorkloadEntry/{namespace}/{name}").into())
}

impl Mesh {
    /// Puts `facts` in the place of what was known of the workload; `None` when it is gone.
    pub(super) fn set_workload(&mut self, uid: WorkloadUid, facts: Option<WorkloadFacts>) {
        let state = match self.workloads.get_mut(&uid) {
            Some(state) => state,
            None if facts.is_none() => return,
            None => self.workloads.or_default(uid.clone()),
        };
        if state.facts.as_deref() == facts.as_ref() {
            return;
        }
        let old = std::mem::replace(&mut state.facts, facts.map(Box::new));
        let new = state.facts.as_deref();
        let place = |facts: &WorkloadFacts| (facts.namespace.clone(), facts.labels.clone(), facts.node.clone());
        let (old, new) = (old.as_deref().map(place), new.map(place));
        if old != new {
            if let Some((namespace, labels, node)) = old {
                self.namespace(&namespace).labels.remove(&labels, &uid);
                self.namespaces.forget_if_empty(&namespace);
                if let Some(on_node) = self.indexes.nodes.get_mut(&node) {
                    on_node.remove(&uid);
                    if on_node.is_empty() {
                        self.indexes.nodes.remove(&node);
                    }
                }
            }
            if let Some((namespace, labels, node)) = new {
                self.namespace(&namespace).labels.insert(&labels, uid.clone());
                if !node.is_empty() {
                    self.indexes.nodes.entry(node).or_default().insert(uid.clone());
                }
            }
        }
        self.dirty.workloads.insert(uid, true);
    }

    /// Sees to the workloads of `node` again.
    pub(super) fn touch_node(&mut self, node: &str) {
        for uid in self.indexes.nodes.get(node).into_iter().flatten() {
            self.dirty.workloads.entry(uid.clone()).or_insert(false);
        }
    }

    /// Works out what readers see of a workload, and which services have to be told.
    pub(super) fn rebuild_workload(&mut self, uid: &WorkloadUid, facts_changed: bool) {
        // Taken out of its place and put back: it is worked on beside the rest of the mesh.
        let Some(mut state) = self.workloads.get_mut(uid).map(|state| std::mem::take(&mut **state)) else {
            return self.judge_sandbox(uid, None);
        };
        let built = state.facts.as_deref().and_then(|facts| self.build(uid, facts));
        let same = built.as_ref() == state.built.as_deref();
        if !same {
            let built = built.map(Arc::new);
            self.publish_workload(uid, state.facts.as_deref(), state.built.take(), built.as_ref());
            state.built = built;
        }
        self.publish_enrolment(uid, &mut state);
        self.judge_sandbox(uid, Some(&state));
        if !same || facts_changed {
            let known = self.services_naming(uid);
            for key in state.services.iter().chain(&known) {
                self.dirty.members.insert((key.clone(), uid.clone()));
            }
            if let Some(facts) = state.facts.as_deref()
                && let Some(namespace) = self.namespaces.get(&facts.namespace)
            {
                for key in namespace.selectors.matching(&facts.labels) {
                    self.dirty.members.insert((key.clone(), uid.clone()));
                }
            }
        }
        if let Some(place) = self.workloads.get_mut(uid) {
            **place = state;
        }
    }

    /// `None` for a pod that has no address yet.
    fn build(&mut self, uid: &WorkloadUid, facts: &WorkloadFacts) -> Option<Workload> {
        let addresses = self.addresses(uid, facts);
        if addresses.is_empty() && matches!(facts.source, WorkloadSource::Pod(_)) {
            return None;
        }
        let options = self.current.options.clone();
        let identity =
            Identity::new(options.trust_domain.clone(), facts.namespace.clone(), facts.service_account.clone());
        let namespace = self.namespaces.facts(&facts.namespace);
        let is_gateway = facts.labels.contains_key(label::GATEWAY_NAME);
        let waypoint = match facts.source {
            WorkloadSource::EndpointSlice { .. } => None,
            // A share is of the connections to a service.
            _ => binding(&facts.waypoint, namespace, is_gateway)
                .map(|binding| WaypointBinding { canary: None, ..binding }),
        };
        let speaks_hbone = match &facts.source {
            WorkloadSource::Pod(pod) => self.eligibility(facts, pod).is_ok_and(|enrol| !enrol.bypass_inbound),
            WorkloadSource::WorkloadEntry { hbone } => *hbone,
            WorkloadSource::ServiceEntry { .. } => {
                facts.labels.get(label::TUNNEL).is_some_and(|tunnel| &**tunnel == "http")
            }
            WorkloadSource::EndpointSlice { .. } => false,
        };
        let locality = facts.locality.clone().or_else(|| self.nodes.get(&facts.node).cloned());
        let template = Template {
            namespace: facts.namespace.clone(),
            identity: self.interner.identity(identity),
            hostname: facts.hostname.clone(),
            protocol: if speaks_hbone { Protocol::Hbone } else { Protocol::Tcp },
            network_mode: if facts.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard },
            waypoint,
            labels: facts.labels.clone(),
            workload_name: facts.workload_name.clone(),
            workload_type: facts.workload_type,
            canonical_name: facts.canonical_name.clone(),
            canonical_revision: facts.canonical_revision.clone(),
            cluster: options.cluster.clone(),
            network: facts.network.clone().unwrap_or_else(|| options.network.clone()),
            capacity: facts.capacity,
            outbound_rules: match &facts.source {
                WorkloadSource::Pod(pod) => pod.outbound_rules.clone(),
                _ => None,
            },
            pod_name: match &facts.source {
                WorkloadSource::Pod(pod) => pod.pod_name.clone(),
                _ => None,
            },
        };
        Some(Workload {
            uid: uid.clone(),
            name: facts.name.clone(),
            addresses,
            node: facts.node.clone(),
            health: facts.health,
            locality: locality.unwrap_or_else(|| self.interner.locality(Default::default())),
            template: self.interner.template(template),
        })
    }

    fn publish_workload(
        &mut self,
        uid: &WorkloadUid,
        facts: Option<&WorkloadFacts>,
        old: Option<Arc<Workload>>,
        new: Option<&Arc<Workload>>,
    ) {
        match new {
            Some(new) => self.current.workloads.insert(uid.clone(), new.clone()),
            None => self.current.workloads.remove(uid),
        };
        let addressable = new.filter(|_| facts.is_some_and(WorkloadFacts::is_addressable));
        let kept = addressable.map(|new| new.addresses.as_slice()).unwrap_or_default();
        for ip in old.iter().flat_map(|old| &old.addresses).filter(|ip| !kept.contains(ip)) {
            self.release_address(*ip, uid);
        }
        if let Some(new) = addressable {
            for ip in &new.addresses {
                self.claim_address(*ip, uid, new);
            }
        }
    }

    fn claim_address(&mut self, ip: IpAddr, uid: &WorkloadUid, workload: &Arc<Workload>) {
        self.touched.add(IpNet::from(ip));
        match self.current.addresses.get(&ip) {
            Some(other) if other.uid != *uid => {
                let clash = self.indexes.clashes.entry(ip).or_default();
                clash.insert(other.uid.clone());
                clash.insert(uid.clone());
                self.dirty.addresses.insert(ip);
            }
            _ => match self.indexes.clashes.get_mut(&ip) {
                Some(clash) => {
                    clash.insert(uid.clone());
                    self.dirty.addresses.insert(ip);
                }
                None => {
                    self.current.addresses.insert(ip, workload.clone());
                }
            },
        }
    }

    fn release_address(&mut self, ip: IpAddr, uid: &WorkloadUid) {
        self.touched.add(IpNet::from(ip));
        if let Some(clash) = self.indexes.clashes.get_mut(&ip) {
            clash.remove(uid);
            self.dirty.addresses.insert(ip);
        } else if self.current.addresses.get(&ip).is_some_and(|known| known.uid == *uid) {
            self.current.addresses.remove(&ip);
        }
    }

    /// Gives an address to one of those that claim it: a pod before entries, one that stays before one that is ending,
    /// the youngest, for an address is only handed out again once its former owner is gone.
    pub(super) fn settle_address(&mut self, ip: IpAddr) {
        let Some(clash) = self.indexes.clashes.get_mut(&ip) else { return };
        let workloads = &self.workloads;
        clash.retain(|uid| {
            let built = workloads.get(uid).and_then(|state| state.built.as_ref());
            built.is_some_and(|workload| workload.addresses.contains(&ip))
        });
        let precedence = |uid: &&WorkloadUid| {
            let facts = self.workloads.get(uid).and_then(|state| state.facts.as_deref());
            facts.map(|facts| {
                let is_pod = matches!(facts.source, WorkloadSource::Pod(_));
                (is_pod, !facts.terminating, facts.created, std::cmp::Reverse((*uid).clone()))
            })
        };
        let winner = clash.iter().max_by_key(precedence);
        let workload = winner.and_then(|uid| self.workloads.get(uid)).and_then(|state| state.built.clone());
        match workload {
            Some(workload) => self.current.addresses.insert(ip, workload),
            None => self.current.addresses.remove(&ip),
        };
        if clash.len() < 2 {
            self.indexes.clashes.remove(&ip);
        }
    }

    fn publish_enrolment(&mut self, uid: &WorkloadUid, state: &mut WorkloadState) {
        let enrolment = match (&state.facts, &state.built) {
            (Some(facts), Some(workload)) => self.enrolment(uid, facts, workload),
            _ => None,
        };
        if enrolment.as_ref() == state.enrolment.as_deref() {
            return;
        }
        if let Some(old) = state.enrolment.take() {
            let node = &old.workload.node;
            if let Some(pods) = self.current.nodes.get_mut(node) {
                pods.remove(&old.uid);
                if pods.is_empty() {
                    self.current.nodes.remove(node);
                }
            }
        }
        if let Some(new) = enrolment.map(Arc::new) {
            let pods = self.current.nodes.entry(new.workload.node.clone()).or_default();
            pods.insert(new.uid.clone(), new.clone());
            state.enrolment = Some(new);
        }
    }

    fn enrolment(&self, uid: &WorkloadUid, facts: &WorkloadFacts, workload: &Arc<Workload>) -> Option<PodEnrolment> {
        let WorkloadSource::Pod(pod) = &facts.source else { return None };
        if self.own_node.as_ref().is_some_and(|own| *own != facts.node) {
            return None;
        }
        let enrol = self.eligibility(facts, pod).ok()?;
        let named = pod.netns.as_ref().filter(|_| !self.ignores_named_netns);
        let netns = match (named, self.sandbox(uid, facts)) {
            (Some(annotated), _) => Some(annotated.clone()),
            // Without a network namespace there is nothing to enrol: the sandbox was taken down.
            (None, Some(sandbox)) => Some(sandbox.netns.clone()?),
            (None, None) => None,
        };
        (!facts.node.is_empty()).then(|| PodEnrolment {
            uid: pod.uid.clone().unwrap_or_else(|| workload.uid.0.clone()),
            node_uid: pod.node_uid.clone(),
            workload: workload.clone(),
            netns,
            bypass_inbound: enrol.bypass_inbound,
            dns_capture: enrol.dns_capture.unwrap_or(self.current.options.dns_capture),
            runtime_class: pod.runtime_class.clone(),
        })
    }

    /// Whether a pod is in the mesh; one whose namespace is not known yet is as in a namespace without labels.
    pub(super) fn eligibility(&self, facts: &WorkloadFacts, pod: &PodFacts) -> Result<Enrol, Why> {
        let namespace_labels = self.namespaces.facts(&facts.namespace).map(|namespace| &*namespace.labels);
        eligibility(&self.rules, &facts.namespace, &namespace_labels, &*facts.labels, pod.traits)
    }
}

/// The waypoint of an object: its own label, or else its namespace's, which does not bind waypoints to themselves.
pub(super) fn binding(
    own: &WaypointWords,
    namespace: Option<&NamespaceFacts>,
    is_gateway: bool,
) -> Option<WaypointBinding> {
    let label = match (&own.label, namespace) {
        (WaypointLabel::Unset, Some(namespace)) if !is_gateway => &namespace.waypoint.label,
        (own, _) => own,
    };
    let required = own.required.or_else(|| namespace?.waypoint.required);
    match label {
        WaypointLabel::Unset | WaypointLabel::None => None,
        WaypointLabel::Gateway(gateway, canary) => Some(WaypointBinding {
            gateway: gateway.clone(),
            canary: canary.clone(),
            bypass_if_missing: namespace.is_some_and(|namespace| namespace.bypass_missing_waypoint),
            required: required.unwrap_or(false),
        }),
    }
}
