//! What enforces the policies that are attached to objects.

use std::sync::Arc;

use culvert_api::{Kind, ObjectRef};

use super::Snapshot;
use crate::policy::{NotBound, PolicyTarget, Scope};
use crate::service::{Service, ServiceKey};
use crate::translate::Finding;
use crate::waypoint::{CanaryProblem, WaypointFor};
use crate::workload::NamespacedName;

impl Snapshot {
    /// The waypoint that enforces policies of `namespace` for `target`; `None` for every waypoint.
    ///
    /// # Errors
    /// When nothing does, with the cure.
    pub fn binding(&self, namespace: &Arc<str>, target: &PolicyTarget) -> Result<Option<NamespacedName>, NotBound> {
        let missing = || NotBound::NoTarget(format!("{} in {namespace}", target).into());
        match target {
            PolicyTarget::Waypoints => Ok(None),
            PolicyTarget::Gateway(name) => {
                let gateway = NamespacedName { namespace: namespace.clone(), name: name.clone() };
                if self.waypoint(&gateway).is_some() { Ok(Some(gateway)) } else { Err(missing()) }
            }
            PolicyTarget::Service(name) => {
                let hostname = format!("{name}.{namespace}.svc.{}", self.options().cluster_domain);
                let key = ServiceKey { namespace: namespace.clone(), hostname: hostname.into() };
                let service = self.service(&key).filter(|service| service.canonical).ok_or_else(missing)?;
                self.waypoint_of(service, target).map(Some)
            }
            PolicyTarget::ServiceEntry(name) => {
                // It may be of several hosts; they have their waypoint by the same label.
                let of_entry = |service: &&Arc<Service>| {
                    !service.canonical && service.key.namespace == *namespace && service.name == *name
                };
                let service = self.services().find(of_entry).ok_or_else(missing)?;
                self.waypoint_of(service, target).map(Some)
            }
        }
    }

    /// The waypoint of a service; `None` for one that is to have none.
    ///
    /// # Errors
    /// When it cannot be used, with the cure.
    pub fn bound_to(&self, service: &Service) -> Option<Result<NamespacedName, NotBound>> {
        service.waypoint.as_ref()?;
        let kind = if service.canonical { PolicyTarget::Service } else { PolicyTarget::ServiceEntry };
        Some(self.waypoint_of(service, &kind(service.name.clone())))
    }

    /// Why the waypoint that is to take a share of a service's connections takes none, if that is so.
    pub fn canary_problem(&self, service: &Service) -> Option<CanaryProblem> {
        let canary = service.waypoint.as_ref()?.canary.as_deref()?;
        let gateway = match &canary.share {
            Err(problem) => return Some(problem.clone()),
            Ok(_) => canary.gateway.clone(),
        };
        match self.waypoint(&gateway) {
            None => Some(CanaryProblem::Missing(gateway)),
            Some(waypoint) if !self.may_bind(waypoint, &service.key.namespace) => {
                Some(CanaryProblem::NotAllowed(gateway))
            }
            Some(waypoint) if !matches!(waypoint.serves, WaypointFor::Service | WaypointFor::All) => {
                Some(CanaryProblem::NotServed(gateway))
            }
            Some(_) => None,
        }
    }

    /// What nothing enforces, as findings: targets of policies and parents of routes without a waypoint, and services
    /// that name one which they cannot use.
    pub fn unbound(&self) -> impl Iterator<Item = Finding> {
        let policies = self.authorization_policies().map(|policy| match &policy.scope {
            Scope::Targets(targets) => (Kind::AuthorizationPolicy, &policy.name, &**targets),
            _ => (Kind::AuthorizationPolicy, &policy.name, [].as_slice()),
        });
        let authentications =
            self.request_authentications().map(|object| (Kind::RequestAuthentication, &object.name, &*object.targets));
        let policies =
            policies.chain(authentications).flat_map(|(kind, name, targets)| self.unbound_targets(kind, name, targets));
        policies.chain(self.unserved_routes()).chain(self.unbound_services())
    }

    /// Routes whose parents have no waypoint, which alone would apply them.
    fn unserved_routes(&self) -> impl Iterator<Item = Finding> {
        let accepted = self.route_statuses().flat_map(|(route, parents)| {
            parents.iter().filter(|parent| parent.accepted.status).map(move |parent| (route, &parent.parent))
        });
        accepted.filter_map(|(route, parent)| {
            let name = parent.name.as_str().into();
            let is_entry = parent.kind == Kind::ServiceEntry.as_str();
            let target = if is_entry { PolicyTarget::ServiceEntry(name) } else { PolicyTarget::Service(name) };
            let problem = self.binding(&route.namespace, &target).err()?;
            Some(Finding::error(route.clone(), "spec.parentRefs", format!("has no effect: {problem}")))
        })
    }

    /// Services that name a waypoint which is not there, or does not take them.
    fn unbound_services(&self) -> impl Iterator<Item = Finding> {
        self.services().filter_map(|service| {
            let problem = match self.bound_to(service)? {
                // Its namespace's waypoint may well be for workloads only.
                Ok(_) | Err(NotBound::NotServed { .. }) => self.canary_problem(service)?.to_string(),
                Err(problem) => problem.to_string(),
            };
            let kind = if service.canonical { Kind::Service } else { Kind::ServiceEntry };
            let object = ObjectRef::new(kind, service.key.namespace.clone(), service.name.clone());
            Some(Finding::error(object, "metadata.labels[istio.io/use-waypoint]", problem))
        })
    }

    fn unbound_targets(&self, kind: Kind, name: &NamespacedName, targets: &[PolicyTarget]) -> Vec<Finding> {
        let NamespacedName { namespace, name } = name;
        let object = ObjectRef::new(kind, namespace.clone(), name.clone());
        let problems = targets.iter().filter_map(|target| self.binding(namespace, target).err());
        problems
            .map(|problem| {
                Finding::error(object.clone(), "spec.targetRefs", format!("not enforced for a target: {problem}"))
            })
            .collect()
    }

    fn waypoint_of(&self, service: &Service, target: &PolicyTarget) -> Result<NamespacedName, NotBound> {
        let namespace = &service.key.namespace;
        let target: Box<str> = format!("{target} in {namespace}").into();
        let Some(binding) = &service.waypoint else { return Err(NotBound::NoWaypoint(target)) };
        let gateway = binding.gateway.clone();
        match self.waypoint(&gateway) {
            None => Err(NotBound::WaypointMissing { target, gateway }),
            Some(waypoint) if !self.may_bind(waypoint, namespace) => Err(NotBound::NotAllowed { target, gateway }),
            Some(waypoint) if !matches!(waypoint.serves, WaypointFor::Service | WaypointFor::All) => {
                Err(NotBound::NotServed { target, gateway })
            }
            Some(_) => Ok(gateway),
        }
    }
}
