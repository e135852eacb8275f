//! The statuses of the class and of its Gateways (Gateway API), written only when they change.

use culvert_api::Gateway;
use culvert_api::names::WAYPOINT_PROTOCOL;
use culvert_core::workload::NamespacedName;
use futures_util::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::objects::is_managed;
use super::part::Part;
use super::state::{Entry, State};
use super::{AT_ONCE, CLASS, GATEWAYS};
use crate::controller::metrics::Metrics;
use crate::controller::status::condition::{Condition, rendered};
use crate::controller::status::write::{merge, patch};

/// Writes every status that is not as it should be.
pub(super) async fn write(client: &kube::Client, state: &State, metrics: &Metrics) {
    let write = |(told, api, name, wanted): (String, Api<DynamicObject>, String, Value)| async move {
        let done = patch(&api, &name, &wanted, "gateways/status").await;
        (told, done)
    };
    let due = due(state, Timestamp::now()).into_iter().map(|due| {
        let (told, api, name) = match due.gateway {
            Some(gateway) => {
                let api = Api::namespaced_with(client.clone(), &gateway.namespace, &GATEWAYS.at("v1"));
                (format!("Gateway {gateway}"), api, gateway.name.to_string())
            }
            None => {
                let name = culvert_api::names::WAYPOINT_GATEWAY_CLASS.to_owned();
                (format!("GatewayClass {name}"), Api::all_with(client.clone(), &CLASS.at("v1")), name)
            }
        };
        (told, api, name, due.patch)
    });
    let mut done = stream::iter(due).map(write).buffer_unordered(AT_ONCE);
    while let Some((told, result)) = done.next().await {
        metrics.wrote("status", result.is_ok());
        match result {
            Ok(()) => tracing::debug!("{told}: status written"),
            Err(error) => tracing::warn!("{told}: {error}"),
        }
    }
}

/// A status to be written; the class's, where there is no Gateway.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) gateway: Option<NamespacedName>,
    pub(super) patch: Value,
}

/// The statuses that are not as they should be. None before everything is known, or of somebody else's class.
pub(super) fn due(state: &State, now: Timestamp) -> Vec<Due> {
    let Some(class) = state.class.as_ref().filter(|_| state.is_complete() && state.is_class_ours()) else {
        return Vec::new();
    };
    let accepted = vec![Condition::holds("Accepted", "Accepted", "waypoints of this class are run by Culvert")];
    let of_class = merge(class, json!({"conditions": rendered(class, &class.data["status"], accepted, now)}));
    let mut due: Vec<_> = of_class.into_iter().map(|patch| Due { gateway: None, patch }).collect();
    for (name, entry) in state.gateways.iter().filter(|(_, entry)| !entry.waits) {
        let wanted = Waypoint::of(state, name, entry).status(now);
        due.extend(merge(&entry.object, wanted).map(|patch| Due { gateway: Some(name.clone()), patch }));
    }
    due
}

/// What there is of a waypoint.
struct Waypoint<'a> {
    entry: &'a Entry,
    /// Addresses of its Service, or those that its Gateway names.
    addresses: Vec<Value>,
    /// What keeps it from serving.
    unready: Option<(&'static str, String)>,
}

impl<'a> Waypoint<'a> {
    fn of(state: &'a State, name: &NamespacedName, entry: &'a Entry) -> Self {
        if !is_managed(&entry.gateway) {
            let given = entry.gateway.spec.addresses.iter().flatten();
            let addresses = given.map(|address| json!({"type": address.r#type, "value": address.value})).collect();
            return Self { entry, addresses, unready: None };
        }
        let part = |part: Part| {
            let found = state.found.get(&(part, name.clone()))?;
            // One of that name which belongs to somebody else says nothing of this.
            (found.owner == entry.gateway.metadata.uid).then_some(&found.object)
        };
        let (service, deployment) = (part(Part::Service), part(Part::Deployment));
        let addresses = service.map(addresses).unwrap_or_default();
        let problem = entry.problems.values().next().cloned();
        let unready = match (problem, deployment.map(pods)) {
            (Some(problem), _) => Some(("Invalid", problem)),
            (None, _) if addresses.is_empty() => {
                Some(("AddressNotAssigned", format!("Service {name} has no address yet")))
            }
            (None, None) => Some(("Pending", format!("Deployment {name} is not there yet"))),
            (None, Some((0, wanted))) => {
                Some(("Pending", format!("no pod of Deployment {name} is ready yet, of {wanted}: see its events")))
            }
            (None, Some(_)) => None,
        };
        Self { entry, addresses, unready }
    }

    fn status(&self, now: Timestamp) -> Value {
        let Entry { object, gateway, bad_parameters, .. } = self.entry;
        let known = &object.data["status"];
        let listeners: Vec<_> = gateway.spec.listeners.iter().map(|listener| &*listener.protocol).collect();
        let accepted = match bad_parameters {
            Some(problem) => Condition::fails("Accepted", "InvalidParameters", problem.clone()),
            None if !listeners.contains(&WAYPOINT_PROTOCOL) => Condition::fails(
                "Accepted",
                "ListenersNotValid",
                format!("no listener is of protocol {WAYPOINT_PROTOCOL}: add one, port 15008"),
            ),
            None if !is_managed(gateway) => {
                Condition::holds("Accepted", "Accepted", "run by others, at the addresses of spec.addresses")
            }
            None => Condition::holds("Accepted", "Accepted", "run by Culvert"),
        };
        let programmed = match &self.unready {
            Some((reason, message)) => Condition::fails("Programmed", reason, message.clone()),
            None => Condition::holds("Programmed", "Programmed", "takes connections"),
        };
        json!({
            "addresses": self.addresses,
            "conditions": rendered(object, known, vec![accepted, programmed], now),
            "listeners": listener_statuses(gateway, object, self.unready.as_ref(), now),
        })
    }
}

/// Of each listener. Routes have Services as their parents, and none of these: none is attached, and of no kind may be.
fn listener_statuses(
    gateway: &Gateway,
    object: &DynamicObject,
    unready: Option<&(&'static str, String)>,
    now: Timestamp,
) -> Vec<Value> {
    let known = object.data["status"]["listeners"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |listener: &culvert_api::gateway_api::gateways::GatewayListeners| {
        let before = known.iter().find(|known| known["name"] == *listener.name).unwrap_or(&Value::Null);
        let conditions = if listener.protocol == WAYPOINT_PROTOCOL {
            let programmed = match unready {
                Some((_, message)) => Condition::fails("Programmed", "Pending", message.clone()),
                None => Condition::holds("Programmed", "Programmed", "takes connections"),
            };
            vec![Condition::holds("Accepted", "Accepted", "tunnels of the mesh arrive here"), programmed]
        } else {
            let message =
                format!("protocol {}: a waypoint has listeners of {WAYPOINT_PROTOCOL} only", listener.protocol);
            vec![
                Condition::fails("Accepted", "UnsupportedProtocol", message.clone()),
                Condition::fails("Programmed", "Invalid", message),
            ]
        };
        let common = [
            Condition::fails("Conflicted", "NoConflicts", "no other listener is in its way"),
            Condition::holds("ResolvedRefs", "ResolvedRefs", "it refers to nothing"),
        ];
        json!({
            "name": listener.name,
            "attachedRoutes": 0,
            "supportedKinds": [],
            "conditions": rendered(object, before, conditions.into_iter().chain(common).collect(), now),
        })
    };
    gateway.spec.listeners.iter().map(of).collect()
}

/// The addresses of a Service: a load balancer's where it has one, else its own.
fn addresses(service: &Value) -> Vec<Value> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().map(Vec::as_slice).unwrap_or_default();
    let balanced = ingress.iter().filter_map(|one| match (&one["ip"], &one["hostname"]) {
        (Value::String(ip), _) => Some(json!({"type": "IPAddress", "value": ip})),
        (_, Value::String(name)) => Some(json!({"type": "Hostname", "value": name})),
        _ => None,
    });
    let own = service["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
    // Before Kubernetes 1.20 a Service had one.
    let own = if own.is_empty() { vec![service["spec"]["clusterIP"].clone()] } else { own };
    let own = own.into_iter().filter(|ip| ip.as_str().is_some_and(|ip| !matches!(ip, "" | "None")));
    let mut addresses: Vec<_> = balanced.collect();
    if addresses.is_empty() {
        addresses.extend(own.map(|ip| json!({"type": "IPAddress", "value": ip})));
    }
    addresses
}

/// How many pods of a Deployment are ready, and how many there should be.
fn pods(deployment: &Value) -> (i64, i64) {
    let ready = deployment["status"]["availableReplicas"].as_i64().unwrap_or(0);
    (ready, deployment["spec"]["replicas"].as_i64().unwrap_or(1))
}

#[cfg(test)]
mod tests;
