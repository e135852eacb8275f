//! Policies by what they apply to.

use std::sync::Arc;

use imbl::HashMap;
use smallvec::SmallVec;

use super::selectors::SelectorIndex;
use crate::authentication::RequestAuthentication;
use crate::policy::{
    AuthorizationPolicy, PeerAuthentication, PeerAuthenticationScope, PolicyTarget, RequestTarget, Scope,
};
use crate::workload::{Labels, NamespacedName, Workload};

/// What a policy applies to.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Mesh,
    Namespace,
    Selector(Arc<Labels>),
    MeshSelector(Arc<Labels>),
    /// Objects of the policy's namespace.
    Objects(Box<[PolicyTarget]>),
}

/// A policy that says what it applies to.
pub(super) trait Targets: PartialEq {
    fn name(&self) -> &NamespacedName;
    fn target(&self) -> Target;
}

impl Targets for AuthorizationPolicy {
    fn name(&self) -> &NamespacedName {
        &self.name
    }

    fn target(&self) -> Target {
        match &self.scope {
            Scope::Mesh => Target::Mesh,
            Scope::Namespace => Target::Namespace,
            Scope::Selector(labels) => Target::Selector(Arc::new(labels.clone())),
            Scope::MeshSelector(labels) => Target::MeshSelector(Arc::new(labels.clone())),
            Scope::Targets(targets) => Target::Objects(targets.clone()),
        }
    }
}

impl Targets for PeerAuthentication {
    fn name(&self) -> &NamespacedName {
        &self.name
    }

    fn target(&self) -> Target {
        match &self.scope {
            PeerAuthenticationScope::Mesh => Target::Mesh,
            PeerAuthenticationScope::Namespace => Target::Namespace,
            PeerAuthenticationScope::Selector(labels) => Target::Selector(Arc::new(labels.clone())),
        }
    }
}

impl Targets for RequestAuthentication {
    fn name(&self) -> &NamespacedName {
        &self.name
    }

    fn target(&self) -> Target {
        Target::Objects(self.targets.clone())
    }
}

/// What policies are attached to, with its namespace; none for every waypoint.
type Place = (Arc<str>, PolicyTarget);

/// Policies by what they apply to: finding a workload's costs one lookup for each of its labels.
#[derive(Clone, Debug)]
pub(super) struct PolicyIndex<T> {
    all: HashMap<NamespacedName, Arc<T>>,
    mesh: Arc<Vec<Arc<T>>>,
    namespaces: HashMap<Arc<str>, Arc<Vec<Arc<T>>>>,
    mesh_selected: SelectorIndex<Arc<T>>,
    selected: HashMap<Arc<str>, SelectorIndex<Arc<T>>>,
    /// Those of waypoints, by the namespace and the object that they are attached to.
    attached: HashMap<Place, Arc<Vec<Arc<T>>>>,
}

impl<T> Default for PolicyIndex<T> {
    fn default() -> Self {
        Self {
            all: HashMap::new(),
            mesh: Arc::default(),
            namespaces: HashMap::new(),
            mesh_selected: SelectorIndex::default(),
            selected: HashMap::new(),
            attached: HashMap::new(),
        }
    }
}

impl<T: Targets> PolicyIndex<T> {
    /// Every policy, in no particular order.
    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = &Arc<T>> {
        self.all.values()
    }

    /// Puts `policy` in the place of the one of this name; `None` removes it.
    pub(super) fn set(&mut self, name: &NamespacedName, policy: Option<T>) {
        let old = self.all.get(name).cloned();
        if old.as_deref() == policy.as_ref() {
            return;
        }
        if let Some(old) = old {
            self.all.remove(name);
            self.unlink(&old);
        }
        if let Some(policy) = policy.map(Arc::new) {
            self.all.insert(name.clone(), policy.clone());
            self.link(policy);
        }
    }

    fn link(&mut self, policy: Arc<T>) {
        let namespace = policy.name().namespace.clone();
        match policy.target() {
            Target::Mesh => Arc::make_mut(&mut self.mesh).push(policy),
            Target::Namespace => Arc::make_mut(self.namespaces.entry(namespace).or_default()).push(policy),
            Target::Selector(labels) => self.selected.entry(namespace).or_default().insert(&labels, policy),
            Target::MeshSelector(labels) => self.mesh_selected.insert(&labels, policy),
            Target::Objects(objects) => {
                for object in objects {
                    Arc::make_mut(self.attached.entry(place(&namespace, object)).or_default()).push(policy.clone());
                }
            }
        }
    }

    fn unlink(&mut self, policy: &Arc<T>) {
        let namespace = &policy.name().namespace;
        match policy.target() {
            Target::Mesh => Arc::make_mut(&mut self.mesh).retain(|known| known != policy),
            Target::Namespace => {
                if let Some(policies) = self.namespaces.get_mut(namespace) {
                    Arc::make_mut(policies).retain(|known| known != policy);
                    if policies.is_empty() {
                        self.namespaces.remove(namespace);
                    }
                }
            }
            Target::Selector(labels) => {
                if let Some(index) = self.selected.get_mut(namespace) {
                    index.remove(&labels, policy);
                    if index.is_empty() {
                        self.selected.remove(namespace);
                    }
                }
            }
            Target::MeshSelector(labels) => self.mesh_selected.remove(&labels, policy),
            Target::Objects(objects) => {
                for place in objects.into_iter().map(|object| place(namespace, object)) {
                    let Some(policies) = self.attached.get_mut(&place) else { continue };
                    Arc::make_mut(policies).retain(|known| known != policy);
                    if policies.is_empty() {
                        self.attached.remove(&place);
                    }
                }
            }
        }
    }

    /// The policies that are attached to what a waypoint is asked for, each once, in no particular order: to every
    /// waypoint, to this one, and to the service.
    pub(super) fn at<'a>(&'a self, target: RequestTarget<'_>) -> SmallVec<[&'a Arc<T>; 4]> {
        let mut found: SmallVec<[&'a Arc<T>; 4]> = SmallVec::new();
        if self.attached.is_empty() {
            return found;
        }
        let gateway = target.gateway;
        let everywhere = ("".into(), PolicyTarget::Waypoints);
        let here = (gateway.namespace.clone(), PolicyTarget::Gateway(gateway.name.clone()));
        let service = target.service.map(|service| {
            let name = service.name.clone();
            let object = if service.canonical { PolicyTarget::Service(name) } else { PolicyTarget::ServiceEntry(name) };
            (service.key.namespace.clone(), object)
        });
        for place in [Some(everywhere), Some(here), service].into_iter().flatten() {
            for policy in self.attached.get(&place).into_iter().flat_map(|policies| policies.iter()) {
                // One policy may name both the service and its waypoint.
                if !found.iter().any(|known| Arc::ptr_eq(known, policy)) {
                    found.push(policy);
                }
            }
        }
        found
    }

    /// The policies that apply to `workload`, in no particular order.
    pub(super) fn of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<T>> {
        let namespace = self.namespaces.get(&workload.namespace).into_iter().flat_map(|policies| policies.iter());
        let selected = self.selected.get(&workload.namespace).into_iter();
        let selected = selected.chain([&self.mesh_selected]).flat_map(|index| index.matching(&workload.labels));
        self.mesh.iter().chain(namespace).chain(selected)
    }
}

/// Where policies of `namespace` that are attached to `object` are kept: those of every waypoint under no namespace.
fn place(namespace: &Arc<str>, object: PolicyTarget) -> Place {
    match object {
        PolicyTarget::Waypoints => ("".into(), object),
        object => (namespace.clone(), object),
    }
}
