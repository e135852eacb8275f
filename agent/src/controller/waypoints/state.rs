//! What is there, and what is to be written now. No I/O, no clock of its own.

mod backoff;
mod found;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use culvert_api::Gateway;
use culvert_api::names::WAYPOINT_GATEWAY_CLASS;
use culvert_core::workload::NamespacedName;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use serde_json::Value;
use tokio::time::Instant;

use self::backoff::Backoff;
pub(super) use self::found::{Found, owner, tell};
use super::objects::{CONTROLLER, Settings, Versions, desired, is_managed};
use super::parameters::{self, Overlays};
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
                if let Watched::Part(part) = watched {
                    match version {
                        Some(version) => self.versions.insert(part, version),
                        None => self.versions.remove(&part),
                    };
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
        self.gateways.insert(name, Entry { object, gateway, problems, bad_parameters: None, backoff });
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

    /// What is to be written at `now`; nothing before everything has been listed.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Act> {
        if !self.is_complete() {
            return Vec::new();
        }
        if self.class.is_none() {
            return if self.class_backoff.is_due(now) { vec![Act::MakeClass] } else { Vec::new() };
        }
        if !self.is_class_ours() {
            return Vec::new();
        }
        let mut acts = Vec::new();
        let names: Vec<_> = self.gateways.keys().cloned().collect();
        let accounts: BTreeSet<_> = names.iter().filter(|name| self.runs(name)).cloned().collect();
        let is_bound = self.bound.as_ref().is_none_or(|bound| *bound == accounts);
        if !is_bound && self.binding_backoff.is_due(now) {
            acts.push(Act::Bind(accounts));
        }
        for name in names {
            acts.extend(self.due_for(&name, now));
        }
        acts
    }

    /// Whether the waypoint of this Gateway is run here.
    fn runs(&self, name: &NamespacedName) -> bool {
        let entry = self.gateways.get(name);
        entry.is_some_and(|entry| is_managed(&entry.gateway) && entry.object.metadata.deletion_timestamp.is_none())
    }

    fn due_for(&mut self, name: &NamespacedName, now: Instant) -> Vec<Act> {
        if !self.runs(name) {
            return Vec::new();
        }
        let overlays = self.overlays(name);
        let Some(entry) = self.gateways.get_mut(name) else { return Vec::new() };
        let overlays = match overlays {
            Ok(Some(overlays)) => overlays,
            Ok(None) => return Vec::new(),
            // What runs goes on as it is; what does not is not made of half of what was asked for.
            Err(problem) => {
                entry.bad_parameters = Some(problem);
                return Vec::new();
            }
        };
        entry.bad_parameters = None;
        if !entry.backoff.is_due(now) {
            return Vec::new();
        }
        let wanted = desired(&entry.gateway, &self.settings, &overlays.iter().collect::<Vec<_>>(), &self.versions);
        let uid = entry.gateway.uid().unwrap_or_default();
        let mut acts = Vec::new();
        for part in Part::ALL {
            let found = self.found.get(&(part, name.clone()));
            let owned = found.filter(|found| found.owner.as_deref() == Some(&*uid));
            match (wanted.get(&part), owned) {
                (Some(object), found) if found.is_none_or(|found| !found.is_as(object)) => {
                    let object = found::marked(object.clone());
                    acts.push(Act::Apply { gateway: name.clone(), part, object });
                }
                (None, Some(found)) if found.applied.is_some() => {
                    acts.push(Act::Delete { gateway: name.clone(), part, uid: found.uid.clone() });
                    entry.problems.remove(&part);
                }
                _ => {
                    entry.problems.remove(&part);
                }
            }
        }
        acts
    }

    /// The parameters of the class and of this Gateway, in the order in which they are merged; none before they have
    /// been read.
    fn overlays(&self, name: &NamespacedName) -> Result<Option<Vec<Overlays>>, String> {
        let Some(entry) = self.gateways.get(name) else { return Ok(None) };
        let mut overlays = Vec::new();
        let of_root = |map: &&NamespacedName| Some(&map.namespace) == self.root_namespace.as_ref();
        for map in self.defaults.keys().filter(of_root) {
            overlays.push(parameters::read(&map.to_string(), &self.defaults[map])?);
        }
        if let Some(map) = parameters::reference(&entry.gateway)? {
            let map = NamespacedName::new(&*name.namespace, map);
            if !self.listed.contains(&Watched::Parameters(Arc::new(map.clone()))) {
                return Ok(None);
            }
            let Some(data) = self.maps.get(&map) else {
                return Err(format!(
                    "ConfigMap {map}, which spec.infrastructure.parametersRef names, is not there: create it"
                ));
            };
            overlays.push(parameters::read(&map.to_string(), data)?);
        }
        Ok(Some(overlays))
    }

    /// It was done: the object as it is now, where there is one.
    pub(super) fn done(&mut self, act: &Act, result: Result<Option<DynamicObject>, String>, now: Instant) {
        match act {
            Act::MakeClass => self.class_backoff.tried(result.is_ok(), now),
            Act::Bind(accounts) => {
                self.binding_backoff.tried(result.is_ok(), now);
                if result.is_ok() {
                    self.bound = Some(accounts.clone());
                }
            }
            Act::Apply { gateway, part, .. } | Act::Delete { gateway, part, .. } => {
                if let Some(entry) = self.gateways.get_mut(gateway) {
                    entry.backoff.tried(result.is_ok(), now);
                    match &result {
                        Ok(_) => entry.problems.remove(part),
                        Err(problem) => entry.problems.insert(*part, problem.clone()),
                    };
                }
                let key = (*part, gateway.clone());
                match result {
                    Ok(Some(object)) => {
                        self.found.insert(key, Found::as_applied(*part, &object));
                    }
                    Ok(None) => {
                        self.found.remove(&key);
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// When something put off is due.
    pub(super) fn next_look(&self, now: Instant) -> Instant {
        let own = [&self.class_backoff, &self.binding_backoff];
        let all = own.into_iter().chain(self.gateways.values().map(|entry| &entry.backoff));
        all.filter_map(|backoff| backoff.not_before(now)).min().unwrap_or(now + backoff::LONG)
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
