//! Gateways: those of class `istio-waypoint` are waypoints, the others are none of the mesh's business.

use culvert_api::Gateway;
use culvert_api::gateway_api::gateways::{GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as From};
use culvert_api::names::{WAYPOINT_GATEWAY_CLASS, WAYPOINT_PROTOCOL, annotation, label};

use super::facts::WaypointFacts;
use super::{Findings, Interner, metadata};
use crate::address::HBONE_PORT;
use crate::waypoint::{AllowedRoutes, WaypointFor};
use crate::workload::NamespacedName;

pub(crate) fn translate(
    gateway: &Gateway,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> Option<WaypointFacts> {
    if gateway.spec.gateway_class_name != WAYPOINT_GATEWAY_CLASS {
        return None;
    }
    let serves = match metadata::label(&gateway.metadata, label::WAYPOINT_FOR) {
        None | Some("" | "service") => WaypointFor::Service,
        Some("workload") => WaypointFor::Workload,
        Some("all") => WaypointFor::All,
        Some("none") => WaypointFor::None,
        Some(other) => {
            findings.error(
                format!("metadata.labels[{}]", label::WAYPOINT_FOR),
                format!("{other:?} is none of service, workload, all, none: read as service"),
            );
            WaypointFor::Service
        }
    };
    let position = gateway.spec.listeners.iter().position(|listener| listener.protocol == WAYPOINT_PROTOCOL);
    if position.is_none() {
        findings.error("spec.listeners", "a waypoint has a listener of protocol HBONE, port 15008: add one");
    }
    let listener = position.and_then(|at| gateway.spec.listeners.get(at));
    Some(WaypointFacts {
        gateway: NamespacedName {
            namespace: findings.object.namespace.clone(),
            name: interner.string(&findings.object.name.clone()),
        },
        serves,
        port: listener.and_then(|l| u16::try_from(l.port).ok()).filter(|port| *port != 0).unwrap_or(HBONE_PORT),
        allowed_routes: match (listener, position) {
            (Some(listener), Some(at)) => allowed_routes(listener, at, interner, findings),
            _ => AllowedRoutes::default(),
        },
        tells_client: metadata::annotation(&gateway.metadata, annotation::XFCC_CLIENT_IDENTITY) == Some("true"),
    })
}

fn allowed_routes(
    listener: &GatewayListeners,
    at: usize,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> AllowedRoutes {
    let Some(namespaces) = listener.allowed_routes.as_ref().and_then(|routes| routes.namespaces.as_ref()) else {
        return AllowedRoutes::Same;
    };
    match &namespaces.from {
        None | Some(From::Same) => AllowedRoutes::Same,
        Some(From::All) => AllowedRoutes::All,
        Some(From::Selector) => {
            let selector = namespaces.selector.as_ref();
            if selector.is_some_and(|selector| selector.match_expressions.as_ref().is_some_and(|e| !e.is_empty())) {
                // Narrower than asked for: leaving the expressions out would let more namespaces in.
                findings.error(
                    format!("spec.listeners[{at}].allowedRoutes.namespaces.selector.matchExpressions"),
                    "not supported: only the waypoint's own namespace may use it; write matchLabels",
                );
                return AllowedRoutes::Same;
            }
            AllowedRoutes::Selector((*interner.labels(selector.and_then(|s| s.match_labels.as_ref()))).clone())
        }
    }
}
