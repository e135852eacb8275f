//! The routes of Gateway API: what they mean depends on the services and ReferenceGrants that are there, so they are
//! read again when those change.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use culvert_api::{GRPCRoute, HTTPRoute, Kind, ObjectRef, ReferenceGrant, TCPRoute, TLSRoute};

use super::{Mesh, Snapshot, name_of};
use crate::route::gateway_api::ParentStatus;
use crate::route::http::HttpRule;
use crate::route::l4::L4Rule;
use crate::route::table::ServiceRoutes;
use crate::service::ServiceKey;
use crate::translate::gateway_route::{GATEWAY_API, GatewayRouteFacts, Surroundings};
use crate::translate::{Finding, grpc_route, http_route, l4_route};
use crate::workload::NamespacedName;

/// What the writer keeps of them.
#[derive(Debug, Default)]
pub(super) struct GatewayRouteStore {
    routes: BTreeMap<ObjectRef, (GatewayRoute, Option<Arc<GatewayRouteFacts>>)>,
    grants: BTreeMap<NamespacedName, Box<ReferenceGrant>>,
    by_service: HashMap<ServiceKey, BTreeSet<ObjectRef>>,
    /// The routes that name a Service or ServiceEntry, there or not.
    naming: HashMap<ObjectRef, BTreeSet<ObjectRef>>,
}

/// A route, as it came.
#[derive(Debug)]
pub(super) enum GatewayRoute {
    Http(Box<HTTPRoute>),
    Grpc(Box<GRPCRoute>),
    Tcp(Box<TCPRoute>),
    Tls(Box<TLSRoute>),
}

impl GatewayRouteStore {
    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Whether a ReferenceGrant lets routes of `kind` in `namespace` name the Service `to`.
    fn permits(&self, kind: Kind, namespace: &str, to: &NamespacedName) -> bool {
        let grants = self.grants.iter().filter(|(name, _)| name.namespace == to.namespace);
        grants.map(|(_, grant)| &grant.spec).any(|spec| {
            let from = spec
                .from
                .iter()
                .any(|from| from.group == GATEWAY_API && from.kind == kind.as_str() && from.namespace == namespace);
            let is_to = |name: &Option<String>| name.as_ref().is_none_or(|name| name.is_empty() || **name == *to.name);
            let to = spec
                .to
                .iter()
                .any(|to| matches!(to.group.as_str(), "" | "core") && to.kind == "Service" && is_to(&to.name));
            from && to
        })
    }
}

impl Snapshot {
    /// What the parents of each route of Gateway API think of it.
    pub fn route_statuses(&self) -> impl Iterator<Item = (&ObjectRef, &Arc<[ParentStatus]>)> {
        self.route_statuses.iter()
    }
}

impl Mesh {
    /// Puts a route in the place of the one of this name; it is read once the services are known.
    pub(super) fn set_gateway_route(&mut self, reference: &ObjectRef, object: Option<GatewayRoute>) {
        self.unlink_gateway_route(reference);
        match object {
            Some(object) => {
                self.gateway_routes.routes.insert(reference.clone(), (object, None));
                self.dirty.gateway_routes.insert(reference.clone());
            }
            None => {
                self.gateway_routes.routes.remove(reference);
                self.current.route_statuses.remove(reference);
            }
        }
    }

    /// Puts a ReferenceGrant in the place of the one of this name.
    pub(super) fn set_reference_grant(&mut self, reference: &ObjectRef, object: Option<Box<ReferenceGrant>>) {
        let name = name_of(reference);
        match object {
            Some(object) => self.gateway_routes.grants.insert(name, object),
            None => self.gateway_routes.grants.remove(&name),
        };
        // Whoever names a service of that namespace from another one.
        let named = self.gateway_routes.naming.iter().filter(|(to, _)| to.namespace == reference.namespace);
        let routes = named.flat_map(|(_, routes)| routes).filter(|route| route.namespace != reference.namespace);
        let routes: Vec<_> = routes.cloned().collect();
        self.dirty.gateway_routes.extend(routes);
    }

    /// Has the routes read again that name a Service or ServiceEntry.
    pub(super) fn touch_gateway_routes(&mut self, named: &ObjectRef) {
        if let Some(routes) = self.gateway_routes.naming.get(named) {
            self.dirty.gateway_routes.extend(routes.iter().cloned());
        }
    }

    /// Reads the routes that have changed, and those about whose services something has.
    pub(super) fn settle_gateway_routes(&mut self) {
        for reference in std::mem::take(&mut self.dirty.gateway_routes) {
            self.unlink_gateway_route(&reference);
            let Some(facts) = self.read_gateway_route(&reference).map(Arc::new) else { continue };
            for (key, _) in &facts.attached {
                self.gateway_routes.by_service.entry(key.clone()).or_default().insert(reference.clone());
                self.dirty.routes.insert(key.clone());
            }
            for name in &facts.names {
                self.gateway_routes.naming.entry(name.clone()).or_default().insert(reference.clone());
            }
            match facts.statuses.is_empty() {
                true => self.current.route_statuses.remove(&reference),
                false => self.current.route_statuses.insert(reference.clone(), facts.statuses.clone().into()),
            };
            self.set_findings(reference.clone(), findings(&reference, &facts.statuses));
            if let Some((_, known)) = self.gateway_routes.routes.get_mut(&reference) {
                *known = Some(facts);
            }
        }
    }

    fn read_gateway_route(&self, reference: &ObjectRef) -> Option<GatewayRouteFacts> {
        let (object, _) = self.gateway_routes.routes.get(reference)?;
        let around = Surroundings {
            cluster_domain: &self.current.options.cluster_domain,
            permits: &|kind, namespace, to| self.gateway_routes.permits(kind, namespace, to),
            service: &|key| self.current.service(key).cloned(),
            service_entry: &|name| {
                self.service_keys(&ObjectRef::new(Kind::ServiceEntry, name.namespace.clone(), name.name.clone()))
            },
        };
        let reference = reference.clone();
        Some(match object {
            GatewayRoute::Http(object) => http_route::translate(object, reference, &around),
            GatewayRoute::Grpc(object) => grpc_route::translate(object, reference, &around),
            GatewayRoute::Tcp(object) => l4_route::tcp(object, reference, &around),
            GatewayRoute::Tls(object) => l4_route::tls(object, reference, &around),
        })
    }

    fn unlink_gateway_route(&mut self, reference: &ObjectRef) {
        let facts = self.gateway_routes.routes.get_mut(reference).and_then(|(_, facts)| facts.take());
        let Some(facts) = facts else { return };
        for (key, _) in &facts.attached {
            super::routes::remove(&mut self.gateway_routes.by_service, key, reference);
            self.dirty.routes.insert(key.clone());
        }
        for name in &facts.names {
            super::routes::remove(&mut self.gateway_routes.naming, name, reference);
        }
    }

    /// The rules that the routes of Gateway API have for a service: requests by precedence, connections by age.
    pub(super) fn gateway_routes_of(&self, key: &ServiceKey, routes: &mut ServiceRoutes) -> Vec<Arc<HttpRule>> {
        let references = self.gateway_routes.by_service.get(key).into_iter().flatten();
        let facts = references.filter_map(|reference| self.gateway_routes.routes.get(reference)?.1.as_ref());
        let mut attached: Vec<_> = facts
            .flat_map(|facts| {
                let ports = facts.attached.iter().filter(|(attached, _)| attached == key).map(|(_, port)| *port);
                ports.map(move |port| (facts, port))
            })
            .collect();
        attached.sort_by_key(|(facts, _)| facts.created);
        let mut http = Vec::new();
        for (facts, port) in attached {
            http.extend(facts.http.iter().map(|(precedence, rule)| (precedence.clone(), of_port(rule, port))));
            routes.tls.extend(facts.tls.iter().map(|rule| l4_of_port(rule, port)));
            routes.tcp.extend(facts.tcp.iter().map(|rule| l4_of_port(rule, port)));
        }
        http.sort_by(|(a, _), (b, _)| a.cmp(b));
        http.into_iter().map(|(_, rule)| rule).collect()
    }

    /// Reads everything again, under other options.
    pub(super) fn restore_gateway_routes(&mut self, old: GatewayRouteStore) {
        self.gateway_routes.grants = old.grants;
        for (reference, (object, _)) in old.routes {
            self.set_gateway_route(&reference, Some(object));
        }
    }
}

/// What a route's parents have against it, as findings: each thing once, whatever number of parents say it.
fn findings(route: &ObjectRef, statuses: &[ParentStatus]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for (i, status) in statuses.iter().enumerate() {
        let parent = format!("spec.parentRefs[{i}]");
        for (condition, field) in [(&status.accepted, &*parent), (&status.resolved_refs, "spec.rules")] {
            if condition.status || findings.iter().any(|known| known.message == condition.message) {
                continue;
            }
            findings.push(Finding::error(route.clone(), field, condition.message.clone()));
        }
    }
    findings
}

/// The same rule, for one port of the service.
fn of_port(rule: &Arc<HttpRule>, port: Option<u16>) -> Arc<HttpRule> {
    let Some(port) = port else { return rule.clone() };
    let mut rule = HttpRule::clone(rule);
    rule.matches.iter_mut().for_each(|matched| matched.port = Some(port));
    Arc::new(rule)
}

fn l4_of_port(rule: &Arc<L4Rule>, port: Option<u16>) -> Arc<L4Rule> {
    let Some(port) = port else { return rule.clone() };
    let mut rule = L4Rule::clone(rule);
    if rule.matches.is_empty() {
        rule.matches.push(crate::route::l4::L4Match::default());
    }
    rule.matches.iter_mut().for_each(|matched| matched.port = Some(port));
    Arc::new(rule)
}
