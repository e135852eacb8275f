//! What is there, and what is to be written now (`due`). No I/O, no clock of its own.

mod backoff;
mod due;
mod found;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use culvert_api::Gateway;
use culvert_api::names::WAYPOINT_GATEWAY_CLASS;
use culvert_core::workload::NamespacedName;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::Value;

use self::backoff::Backoff;
pub(super) use self::found::{Found, owner, tell};
use super::objects::{CONTROLLER, Settings, Versions, is_managed};
use super::parameters;
use super::part::Part;
use crate::controller::follow::Seen;

/// On a ConfigMap of the root namespace: the class whose waypoints it has parameters for (Istio).
pub(super) const DEFAULTS_LABEL: &str = "gateway.istio.io/defaults-for-class";

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Watched {
    Gateways,
    Class,
    /// The ConfigMaps with the class's parameters.
    Defaults,
    /// The ConfigMap with a Gateway's.
    Parameters(Arc<NamespacedName>),
    Part(Part),
    /// The binding of the waypoints' role.
    Binding,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Act {
    /// Makes the class.
    MakeClass,
    /// Says who has the waypoints' role: service accounts.
    Bind(BTreeSet<NamespacedName>),
    /// Makes or changes an object of a waypoint.
    Apply { gateway: NamespacedName, part: Part, object: Value },
    /// Removes one that is not wanted any more.
    Delete { gateway: NamespacedName, part: Part, uid: String },
}

/// A Gateway of the class.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) object: DynamicObject,
    pub(super) gateway: Gateway,
    /// Why one of its objects is not as it should be.
    pub(super) problems: BTreeMap<Part, String>,
    /// Whether it is not known yet what it asks for.
    pub(super) waits: bool,
    /// Why its parameters are not in force.
    pub(super) bad_parameters: Option<String>,
    backoff: Backoff,
}

/// Everything there is.
#[derive(Debug)]
pub(super) struct State {
    settings: Settings,
    root_namespace: Option<Arc<str>>,
    versions: Versions,
    /// Whether the API server knows classes at all.
    knows_classes: bool,
    pub(super) class: Option<DynamicObject>,
    class_backoff: Backoff,
    pub(super) gateways: BTreeMap<NamespacedName, Entry>,
    pub(super) found: HashMap<(Part, NamespacedName), Found>,
    /// The ConfigMaps that may hold parameters, and what is in them.
    maps: BTreeMap<NamespacedName, BTreeMap<String, String>>,
    defaults: BTreeMap<NamespacedName, BTreeMap<String, String>>,
    bound: Option<BTreeSet<NamespacedName>>,
    binding_backoff: Backoff,
    listed: HashSet<Watched>,
    /// What a list in progress has not shown yet.
    unlisted: HashMap<Watched, HashSet<NamespacedName>>,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            root_namespace: None,
            versions: Versions::new(),
            knows_classes: false,
            class: None,
            class_backoff: Backoff::default(),
            gateways: BTreeMap::new(),
            found: HashMap::new(),
            maps: BTreeMap::new(),
            defaults: BTreeMap::new(),
            bound: None,
            binding_backoff: Backoff::default(),
            listed: HashSet::new(),
            unlisted: HashMap::new(),
        }
    }

    /// Where the class's parameters are.
    pub(super) fn set_root_namespace(&mut self, name: &Arc<str>) {
        self.root_namespace = Some(name.clone());
    }

    /// The ConfigMaps that Gateways name, to be watched.
    pub(super) fn parameters(&self) -> BTreeSet<Arc<NamespacedName>> {
        let named = self.gateways.iter().filter(|(_, entry)| is_managed(&entry.gateway)).filter_map(|(name, entry)| {
            let map = parameters::reference(&entry.gateway).ok().flatten()?;
            Some(Arc::new(NamespacedName::new(&*name.namespace, map)))
        });
        named.collect()
    }

    /// A ConfigMap is not watched any more.
    pub(super) fn forget_parameters(&mut self, map: &Arc<NamespacedName>) {
        self.maps.remove(map);
        self.listed.remove(&Watched::Parameters(map.clone()));
        self.unlisted.remove(&Watched::Parameters(map.clone()));
    }

    /// Takes in one thing that a watch said.
    pub(super) fn take(&mut self, seen: Seen<Watched>) {
        if let Watched::Parameters(map) = seen.watched()
            && !self.parameters().contains(map)
        {
            // The last words of a watch that has been ended.
            return;
        }
        match seen {
            Seen::Listing(watched, version) => {
                match (&watched, version) {
                    (Watched::Part(part), Some(version)) => {
                        self.versions.insert(*part, version);
                    }
                    (Watched::Part(part), None) => {
                        self.versions.remove(part);
                    }
                    (Watched::Class, version) => self.knows_classes = version.is_some(),
                    _ => {}
                }
                self.unlisted.insert(watched.clone(), self.known(&watched));
            }
            Seen::Listed(watched) => {
                for gone in self.unlisted.remove(&watched).unwrap_or_default() {
                    self.remove(&watched, &gone);
                }
                self.listed.insert(watched);
            }
            Seen::Applied(watched, _, object) => {
                let name = name_of(&object);
                if let Some(unlisted) = self.unlisted.get_mut(&watched) {
                    unlisted.remove(&name);
                }
                self.insert(watched, name, *object);
            }
            Seen::Deleted(watched, _, object) => self.remove(&watched, &name_of(&object)),
        }
    }

    fn known(&self, watched: &Watched) -> HashSet<NamespacedName> {
        match watched {
            Watched::Gateways => self.gateways.keys().cloned().collect(),
            Watched::Class => self.class.iter().map(name_of).collect(),
            Watched::Defaults => self.defaults.keys().cloned().collect(),
            Watched::Parameters(name) => self.maps.keys().filter(|known| *known == &**name).cloned().collect(),
            Watched::Part(part) => {
                self.found.keys().filter(|(known, _)| known == part).map(|(_, name)| name.clone()).collect()
            }
            Watched::Binding => HashSet::from([NamespacedName::new("", super::ROLE)]),
        }
    }

    fn insert(&mut self, watched: Watched, name: NamespacedName, object: DynamicObject) {
        match watched {
            Watched::Gateways => self.set_gateway(name, object),
            Watched::Class => self.class = Some(object),
            Watched::Defaults => {
                self.defaults.insert(name, data(&object));
            }
            Watched::Parameters(_) => {
                self.maps.insert(name, data(&object));
            }
            Watched::Part(part) => {
                let before = self.found.get(&(part, name.clone()));
                if before.is_some_and(|before| before.is_newer_than(&object)) {
                    return;
                }
                let found = Found::new(part, &object, before);
                if let (Found { is_changed: true, .. }, Some(entry)) = (&found, self.gateways.get_mut(&name)) {
                    entry.backoff.disturbed();
                }
                self.found.insert((part, name), found);
            }
            Watched::Binding => self.bound = Some(accounts(&object)),
        }
    }

    fn remove(&mut self, watched: &Watched, name: &NamespacedName) {
        match watched {
            Watched::Gateways => {
                self.gateways.remove(name);
            }
            Watched::Class => self.class = None,
            Watched::Defaults => {
                self.defaults.remove(name);
            }
            Watched::Parameters(_) => {
                self.maps.remove(name);
            }
            Watched::Part(part) => {
                self.found.remove(&(*part, name.clone()));
            }
            Watched::Binding => self.bound = None,
        }
    }

    fn set_gateway(&mut self, name: NamespacedName, object: DynamicObject) {
        let read = serde_json::to_value(&object).and_then(serde_json::from_value::<Gateway>);
        // One that the API server's schema would not take is nobody's waypoint.
        let gateway = read.ok().filter(|gateway| gateway.spec.gateway_class_name == WAYPOINT_GATEWAY_CLASS);
        let Some(gateway) = gateway else {
            self.gateways.remove(&name);
            return;
        };
        let known = self.gateways.remove(&name).filter(|known| known.gateway.uid() == gateway.uid());
        let is_same = known.as_ref().is_some_and(|known| known.gateway.spec == gateway.spec);
        let (problems, backoff) = match known {
            Some(known) if is_same => (known.problems, known.backoff),
            // What is wanted now may well work.
            _ => (BTreeMap::new(), Backoff::default()),
        };
        self.gateways.insert(name, Entry { object, gateway, problems, waits: true, bad_parameters: None, backoff });
    }

    /// Whether everything has been listed once, so that what is not here is not there.
    pub(super) fn is_complete(&self) -> bool {
        let always = [Watched::Gateways, Watched::Class, Watched::Defaults, Watched::Binding];
        let parts = Part::ALL.map(Watched::Part);
        self.root_namespace.is_some() && always.iter().chain(&parts).all(|watched| self.listed.contains(watched))
    }

    /// Whether the class is one that is served here: else its Gateways are somebody else's.
    pub(super) fn is_class_ours(&self) -> bool {
        self.class.as_ref().is_some_and(|class| class.data["spec"]["controllerName"] == CONTROLLER)
    }
}

fn name_of(object: &DynamicObject) -> NamespacedName {
    NamespacedName::new(object.namespace().unwrap_or_default(), object.name_any())
}

fn data(map: &DynamicObject) -> BTreeMap<String, String> {
    serde_json::from_value(map.data["data"].clone()).unwrap_or_default()
}

/// The service accounts that a binding is for.
fn accounts(binding: &DynamicObject) -> BTreeSet<NamespacedName> {
    let subjects = binding.data["subjects"].as_array().map(Vec::as_slice).unwrap_or_default();
    let account = |subject: &Value| {
        let text = |field: &str| subject[field].as_str().unwrap_or_default();
        NamespacedName::new(text("namespace"), text("name"))
    };
    subjects.iter().map(account).collect()
}

#[cfg(test)]
mod tests;
