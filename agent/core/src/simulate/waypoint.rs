//! What becomes of a call at a waypoint: whether its policies let the request pass, which rule takes it, and where it
//! may go from there.

use std::net::SocketAddr;
use std::sync::Arc;

use culvert_api::names::label;

use super::asked::Asked;
use super::l7::{self, HttpRequest};
use super::{Arrival, Arrivals, AtWaypoint, Check, InputError, Layer, Transport, Verdict, direct, requests};
use crate::identity::Identity;
use crate::mesh::Snapshot;
use crate::policy::{Call, RequestFacts, RequestTarget};
use crate::service::{Resolution, Service};
use crate::workload::{NamespacedName, Workload};

/// A call that has come to a waypoint.
pub(super) struct Through<'a> {
    pub(super) snapshot: &'a Snapshot,
    /// Who calls.
    pub(super) source: &'a Arc<Workload>,
    /// The client's side of the path.
    pub(super) path: Vec<String>,
    /// The pod of the waypoint, and where it is.
    pub(super) waypoint: &'a Workload,
    pub(super) peer: SocketAddr,
    /// As what it goes on.
    pub(super) identity: Option<Arc<Identity>>,
    /// What it is asked for: the address, and the service where it is one's.
    pub(super) dialled: SocketAddr,
    pub(super) service: Option<Arc<Service>>,
}

impl Through<'_> {
    /// Where the call may arrive.
    pub(super) fn follow(mut self, http: Option<&HttpRequest>) -> Result<Arrivals, InputError> {
        let name = self.waypoint.labels.get(label::GATEWAY_NAME).unwrap_or(&self.waypoint.name).clone();
        let gateway = NamespacedName { namespace: self.waypoint.namespace.clone(), name };
        self.path.push(format!("waypoint/{gateway}"));
        let known = self.snapshot.workload_by_address(self.dialled.ip()).cloned();
        let Some(http) = http else {
            return Ok(match &self.service {
                Some(service) if service.resolution == Resolution::Endpoints => {
                    direct::endpoints(self.snapshot, &service.key, self.dialled.port(), None)
                        .map(|ends| ends.into_iter().map(|end| self.arrive(Some(end), None)).collect())
                }
                _ => Ok(vec![self.arrive(Some((self.dialled, known)), None)]),
            });
        };
        let host = match &self.service {
            Some(service) => service.key.hostname.to_string(),
            None => self.dialled.ip().to_string(),
        };
        let asked = Asked::read(self.snapshot, &host, self.dialled.port(), http)?;
        let checks = self.ask(&gateway, &asked);
        let is_denied = checks.iter().any(|check| check.decision == Verdict::Deny && !check.dry_run);
        let routed =
            self.service.as_ref().map(|service| l7::route(self.snapshot, service, self.source, self.dialled, &asked));
        let at = |unroutable: Option<String>| AtWaypoint {
            route: routed.as_ref().filter(|_| !is_denied).map(|routed| Box::new(routed.report.clone())),
            checks: checks.clone(),
            unroutable,
        };
        // What is denied is not routed.
        let Some(routed) = routed.as_ref().filter(|_| !is_denied) else {
            let end = (!is_denied).then_some((self.dialled, known));
            return Ok(Ok(vec![self.arrive(end, Some(at(None)))]));
        };
        if routed.unroutable.is_some() || routed.ends.is_empty() {
            return Ok(Ok(vec![self.arrive(None, Some(at(routed.unroutable.clone())))]));
        }
        let mut arrivals = Vec::new();
        for (service, port, subset) in &routed.ends {
            match direct::destination(self.snapshot, service, *port, subset.as_deref(), &gateway.namespace) {
                Ok(ends) => arrivals.extend(ends.into_iter().map(|end| self.arrive(Some(end), Some(at(None))))),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        Ok(Ok(arrivals))
    }

    /// What the waypoint's policies say to the request.
    fn ask(&self, gateway: &NamespacedName, asked: &Asked) -> Vec<Check> {
        let source_ip = super::address_towards(&self.source.addresses, self.dialled.ip());
        let facts = RequestFacts {
            call: Call { principal: Some(&self.source.identity), source_ip, destination: self.dialled },
            remote_ip: source_ip,
            sni: None,
            http: Some(asked.facts()),
            authenticated: None,
            agreed: &[],
        };
        let target = RequestTarget { gateway, service: self.service.as_deref() };
        requests::at_waypoint(self.snapshot, target, &facts, asked.query())
    }

    /// From here on the waypoint calls, under its own name and address, on behalf of its client.
    fn arrive(&self, end: Option<direct::End>, l7: Option<AtWaypoint>) -> Arrival {
        Arrival {
            path: self.path.clone(),
            transport: Transport::Hbone,
            principal: self.identity.clone(),
            client: Some(self.source.identity.clone()),
            source_ip: self.peer.ip(),
            destination: end.as_ref().map_or(self.dialled, |(destination, _)| *destination),
            workload: end.and_then(|(_, workload)| workload),
            l7,
        }
    }
}

/// Why a request goes nowhere, as a check of the waypoint at the end of `path`.
pub(super) fn refused(path: &[String], reason: String) -> Check {
    Check {
        at: path.last().cloned().unwrap_or_default(),
        layer: Layer::L7,
        decision: Verdict::Deny,
        policy: None,
        rule: None,
        reason,
        dry_run: false,
    }
}
