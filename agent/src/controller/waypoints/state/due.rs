//! What is to be written now, and what becomes of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use culvert_core::workload::NamespacedName;
use kube::ResourceExt as _;
use kube::api::DynamicObject;
use tokio::time::Instant;

use super::found::{Found, marked};
use super::{Act, State, Watched, backoff};
use crate::controller::waypoints::objects::{desired, is_managed};
use crate::controller::waypoints::parameters::{self, Overlays};
use crate::controller::waypoints::part::Part;

impl State {
    /// What is to be written at `now`; nothing before everything has been listed.
    pub(in crate::controller::waypoints) fn due(&mut self, now: Instant) -> Vec<Act> {
        if !self.is_complete() {
            return Vec::new();
        }
        if self.class.is_none() {
            let is_due = self.knows_classes && self.class_backoff.is_due(now);
            return if is_due { vec![Act::MakeClass] } else { Vec::new() };
        }
        if !self.is_class_ours() {
            return Vec::new();
        }
        let mut acts = Vec::new();
        let names: Vec<_> = self.gateways.keys().cloned().collect();
        let accounts = self.accounts();
        let is_bound = self.bound.as_ref().is_none_or(|bound| *bound == accounts);
        if !is_bound && self.binding_backoff.is_due(now) {
            acts.push(Act::Bind(accounts));
        }
        for name in names {
            acts.extend(self.due_for(&name, now));
        }
        acts
    }

    /// The service accounts of the waypoints that are run here.
    fn accounts(&self) -> BTreeSet<NamespacedName> {
        self.gateways.keys().filter(|name| self.runs(name)).cloned().collect()
    }

    /// Whether there are waypoints, and nothing that lets them read what they have to.
    pub(in crate::controller::waypoints) fn lacks_binding(&self) -> bool {
        self.is_complete() && self.is_class_ours() && self.bound.is_none() && !self.accounts().is_empty()
    }

    /// Whether the waypoint of this Gateway is run here.
    fn runs(&self, name: &NamespacedName) -> bool {
        let entry = self.gateways.get(name);
        entry.is_some_and(|entry| is_managed(&entry.gateway) && entry.object.metadata.deletion_timestamp.is_none())
    }

    fn due_for(&mut self, name: &NamespacedName, now: Instant) -> Vec<Act> {
        let (runs, overlays) = (self.runs(name), self.overlays(name));
        let Some(entry) = self.gateways.get_mut(name) else { return Vec::new() };
        entry.waits = runs && matches!(overlays, Ok(None));
        if !runs {
            return Vec::new();
        }
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
                    let object = marked(object.clone());
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
    pub(in crate::controller::waypoints) fn done(
        &mut self,
        act: &Act,
        result: Result<Option<DynamicObject>, String>,
        now: Instant,
    ) {
        match act {
            Act::MakeClass => {
                self.class_backoff.tried(result.is_ok(), now);
                // The watch may be behind: what is there is not made again.
                self.class = result.ok().flatten();
            }
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
    pub(in crate::controller::waypoints) fn next_look(&self, now: Instant) -> Instant {
        let own = [&self.class_backoff, &self.binding_backoff];
        let all = own.into_iter().chain(self.gateways.values().map(|entry| &entry.backoff));
        all.filter_map(|backoff| backoff.not_before(now)).min().unwrap_or(now + backoff::LONG)
    }
}
