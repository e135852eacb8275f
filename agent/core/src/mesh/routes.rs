//! Routes, put together for each service.
//!
//! A service is routed by the VirtualServices of its own namespace and of its waypoint's: nobody else's may say where
//! its requests go, whatever hosts they name (ISTIO-SECURITY-2026-002).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use culvert_api::ObjectRef;
use culvert_api::networking::VirtualService;

use super::{Mesh, name_of};
use crate::route::l4::HostPattern;
use crate::route::table::{HttpTable, ServiceRoutes};
use crate::service::{Service, ServiceKey};
use crate::translate::virtual_service::{self, VirtualServiceFacts};
use crate::translate::{Finding, Findings};
use crate::workload::NamespacedName;

/// What the writer keeps of routes.
#[derive(Debug, Default)]
pub(super) struct RouteStore {
    virtual_services: BTreeMap<NamespacedName, VirtualServiceState>,
    /// The VirtualServices of an exact host.
    by_host: HashMap<Box<str>, BTreeSet<NamespacedName>>,
    /// Those of `*.example.com`.
    below: BTreeSet<(HostPattern, NamespacedName)>,
    /// Those that are filled in from a delegate.
    roots: HashMap<NamespacedName, BTreeSet<NamespacedName>>,
}

#[derive(Debug)]
struct VirtualServiceState {
    /// As it came: what it means depends on the options, and on delegates.
    object: Box<VirtualService>,
    facts: Option<Arc<VirtualServiceFacts>>,
}

impl RouteStore {
    fn is_empty(&self) -> bool {
        self.virtual_services.is_empty()
    }

    /// The VirtualServices that name `host`: an exact name before a pattern, a longer pattern before a shorter; then
    /// the oldest.
    fn naming(&self, host: &str) -> Vec<&Arc<VirtualServiceFacts>> {
        let exact = self.by_host.get(host).into_iter().flatten();
        let below = self.below.iter().filter(|(pattern, _)| pattern.matches(host)).map(|(_, name)| name);
        let mut names: Vec<_> = exact.chain(below).collect();
        names.sort_unstable();
        names.dedup();
        let facts = names.into_iter().filter_map(|name| self.virtual_services.get(name)?.facts.as_ref());
        let mut facts: Vec<_> = facts.collect();
        facts.sort_by_key(|facts| {
            let specificity = facts.hosts.iter().filter(|pattern| pattern.matches(host)).map(HostPattern::specificity);
            let name = &facts.name;
            (std::cmp::Reverse(specificity.max()), facts.created, name.name.clone(), name.namespace.clone())
        });
        facts
    }
}

impl Mesh {
    /// Puts a VirtualService in the place of the one of this name.
    pub(super) fn set_virtual_service(
        &mut self,
        reference: &ObjectRef,
        object: Option<Box<VirtualService>>,
        findings: &mut Vec<Finding>,
    ) {
        let name = name_of(reference);
        self.unlink_virtual_service(&name);
        match object {
            Some(object) => {
                self.routes.virtual_services.insert(name.clone(), VirtualServiceState { object, facts: None });
                self.read_virtual_service(&name, findings);
            }
            None => {
                self.routes.virtual_services.remove(&name);
            }
        }
        for root in self.routes.roots.get(&name).cloned().unwrap_or_default() {
            if root == name {
                continue;
            }
            let mut list = Vec::new();
            self.unlink_virtual_service(&root);
            self.read_virtual_service(&root, &mut list);
            self.set_findings(virtual_service::reference(&root), list);
        }
    }

    fn read_virtual_service(&mut self, name: &NamespacedName, findings: &mut Vec<Finding>) {
        let all = &self.routes.virtual_services;
        let Some(state) = all.get(name) else { return };
        let delegate = |name: &NamespacedName| Some(&*all.get(name)?.object);
        let mut findings = Findings { object: virtual_service::reference(name), list: findings };
        let domain = &self.current.options.cluster_domain;
        let facts = Arc::new(virtual_service::translate(&state.object, domain, &delegate, &mut findings));
        for host in &facts.hosts {
            match host {
                HostPattern::Exact(host) => {
                    self.routes.by_host.entry(host.clone()).or_default().insert(name.clone());
                }
                pattern => {
                    self.routes.below.insert((pattern.clone(), name.clone()));
                }
            }
        }
        for delegate in &facts.delegates {
            self.routes.roots.entry(delegate.clone()).or_default().insert(name.clone());
        }
        self.touch_routes(&facts.hosts);
        if let Some(state) = self.routes.virtual_services.get_mut(name) {
            state.facts = Some(facts);
        }
    }

    fn unlink_virtual_service(&mut self, name: &NamespacedName) {
        let facts = self.routes.virtual_services.get_mut(name).and_then(|state| state.facts.take());
        let Some(facts) = facts else { return };
        for host in &facts.hosts {
            match host {
                HostPattern::Exact(host) => remove(&mut self.routes.by_host, host, name),
                pattern => {
                    self.routes.below.remove(&(pattern.clone(), name.clone()));
                }
            }
        }
        for delegate in &facts.delegates {
            remove(&mut self.routes.roots, delegate, name);
        }
        self.touch_routes(&facts.hosts);
    }

    /// Has the routes of every service of these hosts put together again.
    fn touch_routes(&mut self, hosts: &[HostPattern]) {
        for host in hosts {
            match host {
                HostPattern::Exact(host) => {
                    let services = self.current.services_by_hostname(host).map(|service| service.key.clone());
                    self.dirty.routes.extend(services);
                }
                pattern => {
                    let keys = self.current.services.keys().filter(|key| pattern.matches(&key.hostname)).cloned();
                    self.dirty.routes.extend(keys);
                }
            }
        }
    }

    /// Puts together the routes that have changed, and those of `services`, which have.
    pub(super) fn settle_routes(&mut self, services: HashSet<ServiceKey>) {
        let mut keys = std::mem::take(&mut self.dirty.routes);
        if !self.routes.is_empty()
            || !self.gateway_routes.is_empty()
            || !self.current.routes.is_empty()
            || !self.current.route_findings.is_empty()
        {
            keys.extend(services);
        }
        for key in keys {
            let mut findings = Vec::new();
            let service = self.current.service(&key).cloned();
            let routes = service.map(|service| self.routes_of(&service, &mut findings)).unwrap_or_default();
            match routes.is_empty() {
                true => self.current.routes.remove(&key),
                false => self.current.routes.insert(key.clone(), Arc::new(routes)),
            };
            match findings.is_empty() {
                true => self.current.route_findings.remove(&key),
                false => self.current.route_findings.insert(key, findings.into()),
            };
        }
    }

    fn routes_of(&self, service: &Service, findings: &mut Vec<Finding>) -> ServiceRoutes {
        let key = &service.key;
        let waypoint = service.waypoint.as_ref().map_or(&key.namespace, |binding| &binding.gateway.namespace);
        let mut routes = ServiceRoutes::default();
        let mut rules = self.gateway_routes_of(key, &mut routes);
        let by_gateway_api = rules.first().map(|rule| rule.resource.clone());
        let mut catch_all: Option<NamespacedName> = None;
        for facts in self.routes.naming(&key.hostname) {
            let reference = || virtual_service::reference(&facts.name);
            let namespace = &facts.name.namespace;
            if *namespace != key.namespace && namespace != waypoint {
                let message = format!(
                    "{} is a host of namespace {}, whose requests only it and its waypoint's namespace route: ignored; \
                     move the VirtualService there",
                    key.hostname, key.namespace
                );
                findings.push(Finding::error(reference(), "spec.hosts", message));
                continue;
            }
            if !facts.in_mesh || !facts.export_to.includes(waypoint) {
                continue;
            }
            if let Some(route) = by_gateway_api.as_ref().filter(|_| !facts.http.is_empty()) {
                let message = format!(
                    "comes after {route} for {}: write one or the other, since Istio leaves open what both mean",
                    key.hostname
                );
                findings.push(Finding::warning(reference(), "spec.http", message));
            }
            if let Some(before) = catch_all.as_ref().filter(|_| !facts.http.is_empty()) {
                let message = format!(
                    "is never reached for {}: VirtualService {before} comes first, and takes every request; write one",
                    key.hostname
                );
                findings.push(Finding::warning(reference(), "spec.http", message));
            }
            if catch_all.is_none() && facts.http.iter().any(|rule| rule.is_catch_all()) {
                catch_all = Some(facts.name.clone());
            }
            rules.extend(facts.http.iter().cloned());
            routes.tls.extend(facts.tls.iter().cloned());
            routes.tcp.extend(facts.tcp.iter().cloned());
        }
        routes.http = HttpTable::new(rules);
        routes
    }

    /// Reads everything again, under other options.
    pub(super) fn restore_routes(&mut self, old: RouteStore) {
        for (name, state) in old.virtual_services {
            let mut findings = Vec::new();
            let reference = virtual_service::reference(&name);
            self.set_virtual_service(&reference, Some(state.object), &mut findings);
            self.set_findings(reference, findings);
        }
    }
}

pub(super) fn remove<K: std::hash::Hash + Eq, T: Ord>(index: &mut HashMap<K, BTreeSet<T>>, key: &K, name: &T) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
