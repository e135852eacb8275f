//! Gateways: those of class `istio-waypoint` are waypoints, the others are none of the mesh's business.

use culvert_api::Gateway;
use culvert_api::gateway_api::gateways::{GatewayListeners, GatewayListenersAllowedRoutesNamespacesFrom as From};
use culvert_api::names::{WAYPOINT_GATEWAY_CLASS, WAYPOINT_PROTOCOL, annotation, label};

use super::facts::WaypointFacts;
use super::{Findings, Interner, metadata};
use crate::address::HBONE_PORT;
use crate::waypoint::{AllowedRoutes, Requirement, WaypointFor};
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
            let field = format!("spec.listeners[{at}].allowedRoutes.namespaces.selector");
            let Some(selector) = &namespaces.selector else {
                findings.error(field, "is missing: only the waypoint's own namespace may use it");
                return AllowedRoutes::Same;
            };
            let labels = selector.match_labels.iter().flatten();
            let mut requirements: Vec<_> = labels
                .map(|(key, value)| Requirement::In(interner.string(key), Box::new([interner.string(value)])))
                .collect();
            for (i, written) in selector.match_expressions.iter().flatten().enumerate() {
                let key = interner.string(&written.key);
                let values = written.values.iter().flatten().map(|value| interner.string(value)).collect();
                requirements.push(match written.operator.as_str() {
                    "In" => Requirement::In(key, values),
                    "NotIn" => Requirement::NotIn(key, values),
                    "Exists" => Requirement::Exists(key),
                    "DoesNotExist" => Requirement::DoesNotExist(key),
                    other => {
                        // Leaving it out would let more namespaces in.
                        findings.error(
                            format!("{field}.matchExpressions[{i}].operator"),
                            format!(
                                "{other:?} is none of In, NotIn, Exists, DoesNotExist: only the waypoint's own \
                                 namespace may use it"
                            ),
                        );
                        return AllowedRoutes::Same;
                    }
                });
            }
            AllowedRoutes::Selector(requirements.into())
        }
    }
}
