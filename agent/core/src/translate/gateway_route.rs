//! What the routes of Gateway API have in common: parents, backends, and which of two rules comes first.
//!
//! In a mesh the parent of a route is a Service, or a ServiceEntry of Istio's (GEP-1426). It has to be of the route's
//! own namespace: at a waypoint a route of another one would decide for everybody's requests.

pub(crate) mod filters;

use std::cmp::Reverse;
use std::sync::Arc;

use culvert_api::gateway_api::experimental::grpcroutes::GrpcRouteParentRefs;
use culvert_api::gateway_api::experimental::httproutes::HttpRouteParentRefs;
use culvert_api::gateway_api::experimental::tcproutes::TcpRouteParentRefs;
use culvert_api::gateway_api::tlsroutes::TlsRouteParentRefs;
use culvert_api::{Kind, ObjectRef};

use super::values;
use crate::route::gateway_api::{Condition, ParentRef, ParentStatus};
use crate::route::http::{Backend, HttpRule, ServiceRef};
use crate::route::l4::L4Rule;
use crate::service::{Service, ServiceKey};
use crate::workload::{Created, NamespacedName};

/// The group of Istio's kinds.
pub(crate) const ISTIO: &str = "networking.istio.io";
/// The group of routes.
pub(crate) const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// What a route says, where the rest of the mesh is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct GatewayRouteFacts {
    /// The services whose requests it routes, and the port, where it is for one only.
    pub(crate) attached: Vec<(ServiceKey, Option<u16>)>,
    pub(crate) http: Vec<(Precedence, Arc<HttpRule>)>,
    pub(crate) tls: Vec<Arc<L4Rule>>,
    pub(crate) tcp: Vec<Arc<L4Rule>>,
    pub(crate) statuses: Vec<ParentStatus>,
    /// The Services and ServiceEntries that it names, there or not.
    pub(crate) names: Vec<ObjectRef>,
    /// When the object was made, by which rules for connections are put in order.
    pub(crate) created: Created,
}

/// Which of two rules comes first: the less does (Gateway API, `HTTPRouteRule.matches`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Precedence {
    /// An exact path, a prefix, an expression.
    pub(crate) path: u8,
    pub(crate) path_length: Reverse<usize>,
    pub(crate) method: Reverse<bool>,
    pub(crate) headers: Reverse<usize>,
    pub(crate) parameters: Reverse<usize>,
    pub(crate) created: Created,
    pub(crate) name: NamespacedName,
    pub(crate) rule: usize,
    pub(crate) matched: usize,
}

/// The mesh, as far as a route looks at it.
pub(crate) struct Surroundings<'a> {
    pub(crate) cluster_domain: &'a str,
    /// Whether a ReferenceGrant lets routes of a kind and a namespace name a Service.
    pub(crate) permits: &'a dyn Fn(Kind, &str, &NamespacedName) -> bool,
    pub(crate) service: &'a dyn Fn(&ServiceKey) -> Option<Arc<Service>>,
    /// The hosts of a ServiceEntry.
    pub(crate) service_entry: &'a dyn Fn(&NamespacedName) -> Vec<ServiceKey>,
}

/// The most rules, the most matches of one, and the most parents, by the CRDs.
pub(crate) const MAX_RULES: usize = 16;
pub(crate) const MAX_MATCHES: usize = 64;
const MAX_PARENTS: usize = 64;

/// Reads one route.
pub(crate) struct RouteReader<'a> {
    pub(crate) object: ObjectRef,
    pub(crate) created: Created,
    pub(crate) around: &'a Surroundings<'a>,
    pub(crate) facts: GatewayRouteFacts,
    /// What is wrong with what it names, the first of it.
    pub(crate) unresolved: Option<Condition>,
    /// What is wrong with what it says, the first of it.
    pub(crate) unsupported: Option<Condition>,
}

/// A backend, as any route names it.
pub(crate) struct BackendRef<'r> {
    pub(crate) group: Option<&'r str>,
    pub(crate) kind: Option<&'r str>,
    pub(crate) namespace: Option<&'r str>,
    pub(crate) name: &'r str,
    pub(crate) port: Option<i32>,
}

/// The [`BackendRef`] of any type that has its fields.
macro_rules! backend_ref {
    ($from:expr) => {
        $crate::translate::gateway_route::BackendRef {
            group: $from.group.as_deref(),
            kind: $from.kind.as_deref(),
            namespace: $from.namespace.as_deref(),
            name: &$from.name,
            port: $from.port,
        }
    };
}
pub(crate) use backend_ref;

macro_rules! parents {
    ($($type:ty),*) => {
        $(impl From<&$type> for ParentRef {
            fn from(from: &$type) -> Self {
                Self {
                    group: from.group.clone().unwrap_or_else(|| GATEWAY_API.to_owned()),
                    kind: from.kind.clone().unwrap_or_else(|| "Gateway".to_owned()),
                    namespace: from.namespace.clone(),
                    name: from.name.clone(),
                    section_name: from.section_name.clone(),
                    port: from.port,
                }
            }
        })*
    };
}
parents!(HttpRouteParentRefs, GrpcRouteParentRefs, TcpRouteParentRefs, TlsRouteParentRefs);

/// A share, 1 where it is not said.
pub(crate) fn weight(written: Option<i32>) -> u32 {
    u32::try_from(written.unwrap_or(1)).unwrap_or(0)
}

impl<'a> RouteReader<'a> {
    pub(crate) fn new(object: ObjectRef, created: Created, around: &'a Surroundings<'a>) -> Self {
        let facts = GatewayRouteFacts { created, ..GatewayRouteFacts::default() };
        Self { object, created, around, facts, unresolved: None, unsupported: None }
    }

    pub(crate) fn name(&self) -> NamespacedName {
        NamespacedName { namespace: self.object.namespace.clone(), name: self.object.name.clone() }
    }

    /// Notes that something named is not there, or must not be named.
    pub(crate) fn unresolved(&mut self, reason: &'static str, message: String) -> Backend {
        let backend = Backend::Invalid(message.as_str().into());
        self.unresolved.get_or_insert_with(|| Condition::fails(reason, message));
        backend
    }

    /// Notes that something is not supported, or goes not with something else.
    pub(crate) fn unsupported(&mut self, reason: &'static str, message: String) -> Box<str> {
        let text = message.as_str().into();
        self.unsupported.get_or_insert_with(|| Condition::fails(reason, message));
        text
    }

    /// The first `most` of `list`; notes that the others are left out.
    pub(crate) fn at_most<'l, T>(&mut self, most: usize, field: &str, list: &'l [T]) -> &'l [T] {
        if list.len() > most {
            let message = format!("{field} has {} entries, of which only the first {most} count: split it", list.len());
            self.unsupported("UnsupportedValue", message);
        }
        &list[..list.len().min(most)]
    }

    /// What the route says, once its rules are read.
    pub(crate) fn finish<P>(mut self, parents: Option<&Vec<P>>) -> GatewayRouteFacts
    where
        ParentRef: for<'p> From<&'p P>,
    {
        let parents = parents.map(Vec::as_slice).unwrap_or_default();
        for parent in self.at_most(MAX_PARENTS, "spec.parentRefs", parents).iter().map(ParentRef::from) {
            let Some(found) = self.parent(&parent) else { continue };
            let accepted = match (found, &self.unsupported) {
                (Err(condition), _) => condition,
                (Ok(services), unsupported) => {
                    let port = parent.port.and_then(values::port);
                    self.facts.attached.extend(services.into_iter().map(|key| (key, port)));
                    unsupported.clone().unwrap_or_else(|| Condition::holds("Accepted"))
                }
            };
            let resolved_refs = self.unresolved.clone().unwrap_or_else(|| Condition::holds("ResolvedRefs"));
            self.facts.statuses.push(ParentStatus { parent, accepted, resolved_refs });
        }
        self.facts.names.sort_unstable();
        self.facts.names.dedup();
        self.facts
    }

    /// The services of a parent; `None` for one that is none of the mesh's business.
    fn parent(&mut self, parent: &ParentRef) -> Option<Result<Vec<ServiceKey>, Condition>> {
        let own = self.object.namespace.clone();
        let namespace = parent.namespace.as_deref().unwrap_or(&own);
        let name = NamespacedName::new(namespace, parent.name.as_str());
        let kind = match (parent.group.as_str(), parent.kind.as_str()) {
            ("" | "core", "Service") => Kind::Service,
            (ISTIO, "ServiceEntry") => Kind::ServiceEntry,
            _ => return None,
        };
        self.facts.names.push(ObjectRef::new(kind, name.namespace.clone(), name.name.clone()));
        if *namespace != *own {
            let message = format!("{kind} {name} is of another namespace: put the route there");
            return Some(Err(Condition::fails("NotAllowedByListeners", message)));
        }
        if parent.section_name.is_some() {
            let message = format!("{kind} {name} has no sections: name a port instead of sectionName");
            return Some(Err(Condition::fails("NoMatchingParent", message)));
        }
        let keys = match kind {
            Kind::Service => vec![self.service_key(&name)],
            _ => (self.around.service_entry)(&name),
        };
        let services: Vec<_> = keys.iter().filter_map(|key| (self.around.service)(key)).collect();
        if services.is_empty() {
            return Some(Err(Condition::fails("NoMatchingParent", format!("there is no {kind} {name}"))));
        }
        if let Some(port) = parent.port
            && !services.iter().any(|service| values::port(port).is_some_and(|port| service.port(port).is_some()))
        {
            return Some(Err(Condition::fails("NoMatchingParent", format!("{kind} {name} has no port {port}"))));
        }
        Some(Ok(services.iter().map(|service| service.key.clone()).collect()))
    }

    fn service_key(&self, name: &NamespacedName) -> ServiceKey {
        let hostname = format!("{}.{}.svc.{}", name.name, name.namespace, self.around.cluster_domain);
        ServiceKey { namespace: name.namespace.clone(), hostname: hostname.into() }
    }

    /// The service of a backend. One that is not there, or must not be named, answers its share with 500.
    pub(crate) fn backend(&mut self, field: &str, from: &BackendRef<'_>) -> Backend {
        let own = self.object.namespace.clone();
        let namespace = from.namespace.unwrap_or(&own);
        let port = match from.port.map(values::port) {
            None => None,
            Some(Some(port)) => Some(port),
            Some(None) => return self.unresolved("BackendNotFound", format!("{field}.port is no port")),
        };
        let (host, only_there) = match (from.group.unwrap_or_default(), from.kind.unwrap_or("Service")) {
            ("" | "core", "Service") => {
                let name = NamespacedName::new(namespace, from.name);
                self.facts.names.push(ObjectRef::new(Kind::Service, name.namespace.clone(), name.name.clone()));
                if *namespace != *own && !(self.around.permits)(self.object.kind, &own, &name) {
                    let message =
                        format!("{field}: no ReferenceGrant of {namespace} lets {own} name Service {name}: add one");
                    return self.unresolved("RefNotPermitted", message);
                }
                let key = self.service_key(&name);
                let Some(service) = (self.around.service)(&key) else {
                    return self.unresolved("BackendNotFound", format!("{field}: there is no Service {name}"));
                };
                match port {
                    None => return self.unresolved("BackendNotFound", format!("{field}.port is missing: name one")),
                    Some(port) if service.port(port).is_none() => {
                        let message = format!("{field}: Service {name} has no port {port}");
                        return self.unresolved("BackendNotFound", message);
                    }
                    Some(_) => (key.hostname, true),
                }
            }
            (ISTIO, "Hostname") => (from.name.to_ascii_lowercase().into(), false),
            (group, kind) => {
                let kind = if group.is_empty() { kind.to_owned() } else { format!("{group}/{kind}") };
                let message = format!("{field} names a {}: only Service is supported", values::shown(&kind));
                return self.unresolved("InvalidKind", message);
            }
        };
        Backend::Service(ServiceRef { host, namespace: namespace.into(), only_there, subset: None, port })
    }
}
