//! What a waypoint is to be made of, from its Gateway (Istio: `files/waypoint.yaml`). Names and labels are Istio's, and
//! so is the container's, since people's parameters name them.

mod pod;

use std::collections::BTreeMap;

use culvert_api::Gateway;
use culvert_api::names::{WAYPOINT_GATEWAY_CLASS, WAYPOINT_PROTOCOL, label};
use culvert_core::address::HBONE_PORT;
use kube::ResourceExt as _;
use serde_json::{Map, Value, json};

use super::merge::merge;
use super::parameters::Overlays;
use super::part::Part;
use crate::config::WaypointDefaults;

/// By whom the class is, and by whom objects are managed, as Istio names itself.
pub(in crate::controller) const CONTROLLER: &str = "istio.io/mesh-controller";
/// The label by which Istio knows what it made of Gateways, and its value for waypoints.
pub(super) const MANAGED: (&str, &str) = ("gateway.istio.io/managed", "istio.io-mesh-controller");
const CLASS_LABEL: &str = "gateway.networking.k8s.io/gateway-class-name";
/// [`label::GATEWAY_NAME`] before it had that name; dashboards know it still.
const OLD_NAME_LABEL: &str = "istio.io/gateway-name";
/// Where the kubelet asks whether a waypoint is ready.
const STATUS_PORT: u16 = 15021;
/// On a Gateway: the type of its Service.
const SERVICE_TYPE: &str = "networking.istio.io/service-type";

/// What is the same for every waypoint.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) image: String,
    pub(super) pull_policy: Option<String>,
    pub(super) pull_secrets: Vec<String>,
    pub(super) ca_address: String,
    pub(super) defaults: WaypointDefaults,
}

/// The versions in which kinds are served.
pub(super) type Versions = BTreeMap<Part, String>;

/// Whether waypoints of this Gateway are run here. One that says by a name where it is, is run by somebody else
/// (Istio: `IsManaged`).
pub(super) fn is_managed(gateway: &Gateway) -> bool {
    match gateway.spec.addresses.as_deref().unwrap_or_default() {
        [] => true,
        [only] => matches!(only.r#type.as_deref(), None | Some("IPAddress")),
        _ => false,
    }
}

/// The objects of a waypoint. What is not among them must not be there.
pub(super) fn desired(
    gateway: &Gateway,
    settings: &Settings,
    overlays: &[&Overlays],
    versions: &Versions,
) -> BTreeMap<Part, Value> {
    let subject = Subject { gateway, settings, infrastructure: Infrastructure::of(gateway) };
    let asked_for = |part| overlays.iter().any(|overlays| overlays.contains_key(&part));
    let scales = settings.defaults.autoscaling.enabled || asked_for(Part::HorizontalPodAutoscaler);
    let mut objects = BTreeMap::new();
    for part in Part::ALL {
        let Some(version) = versions.get(&part) else { continue };
        let body = match part {
            Part::ServiceAccount => json!({}),
            Part::Service => subject.service(),
            Part::Deployment => subject.deployment(scales),
            Part::HorizontalPodAutoscaler if scales => subject.autoscaler(),
            Part::PodDisruptionBudget
                if settings.defaults.pod_disruption_budget.enabled || asked_for(Part::PodDisruptionBudget) =>
            {
                json!({"spec": {"maxUnavailable": 1, "selector": {"matchLabels": subject.selector()}}})
            }
            Part::HorizontalPodAutoscaler | Part::PodDisruptionBudget => continue,
        };
        let mut object = subject.around(part, body);
        for overlay in overlays.iter().filter_map(|overlays| overlays.get(&part)) {
            if overlay.pointer("/spec/minAvailable").is_some() && part == Part::PodDisruptionBudget {
                // One of the two only.
                merge(&mut object, &json!({"spec": {"maxUnavailable": null}}));
            }
            merge(&mut object, overlay);
        }
        subject.identify(part, version, &mut object);
        objects.insert(part, object);
    }
    objects
}

/// A waypoint: all of its objects have the name of its Gateway.
struct Subject<'a> {
    gateway: &'a Gateway,
    settings: &'a Settings,
    infrastructure: Infrastructure,
}

impl Subject<'_> {
    fn name(&self) -> String {
        self.gateway.name_any()
    }

    fn namespace(&self) -> String {
        self.gateway.namespace().unwrap_or_default()
    }

    /// What selects its pods.
    fn selector(&self) -> Value {
        json!({(label::GATEWAY_NAME): self.name()})
    }

    /// The labels of each of its objects.
    fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.infrastructure.labels.clone();
        labels.extend([
            (label::GATEWAY_NAME.to_owned(), self.name()),
            (OLD_NAME_LABEL.to_owned(), self.name()),
            (CLASS_LABEL.to_owned(), WAYPOINT_GATEWAY_CLASS.to_owned()),
            (MANAGED.0.to_owned(), MANAGED.1.to_owned()),
        ]);
        labels
    }

    fn around(&self, part: Part, mut body: Value) -> Value {
        let mut annotations = self.infrastructure.annotations.clone();
        if part == Part::Service {
            // Nodes prefer waypoint pods of their own zone.
            let near = (culvert_api::names::annotation::TRAFFIC_DISTRIBUTION.to_owned(), "PreferClose".to_owned());
            annotations.entry(near.0).or_insert(near.1);
        }
        body["metadata"] = json!({"labels": self.labels(), "annotations": annotations});
        body
    }

    /// What no parameter changes: whose object it is, and which pods are meant.
    fn identify(&self, part: Part, version: &str, object: &mut Value) {
        let owner = json!([{
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "name": self.name(),
            "uid": self.gateway.uid(),
        }]);
        let mut fixed = json!({
            "apiVersion": version,
            "kind": part.resource().kind,
            "metadata": {
                "name": self.name(),
                "namespace": self.namespace(),
                "labels": self.labels(),
                "ownerReferences": owner,
            },
            "status": null,
        });
        let selector = json!({"$patch": "replace", "matchLabels": self.selector()});
        let mut service_selector = self.selector();
        service_selector["$patch"] = "replace".into();
        // A waypoint that is captured itself would be sent its own traffic.
        let mut pod_labels = self.labels();
        pod_labels.insert(label::DATAPLANE_MODE.to_owned(), "none".to_owned());
        match part {
            Part::Deployment => {
                fixed["spec"] = json!({"selector": selector, "template": {"metadata": {"labels": pod_labels}}});
            }
            Part::Service => fixed["spec"] = json!({"selector": service_selector}),
            Part::PodDisruptionBudget => fixed["spec"] = json!({"selector": selector}),
            Part::HorizontalPodAutoscaler => fixed["spec"] = json!({"scaleTargetRef": self.scale_target()}),
            Part::ServiceAccount => {}
        }
        merge(object, &fixed);
    }

    fn service(&self) -> Value {
        let mut ports = vec![json!({
            "name": "status-port", "port": STATUS_PORT, "targetPort": STATUS_PORT, "protocol": "TCP", "appProtocol": "tcp",
        })];
        let mut taken = vec![i32::from(STATUS_PORT)];
        for listener in self.gateway.spec.listeners.iter().filter(|listener| listener.protocol == WAYPOINT_PROTOCOL) {
            if !taken.contains(&listener.port) {
                taken.push(listener.port);
                ports.push(json!({
                    "name": listener.name, "port": listener.port, "targetPort": HBONE_PORT, "protocol": "TCP",
                    "appProtocol": "hbone",
                }));
            }
        }
        let kind = self.gateway.annotations().get(SERVICE_TYPE).map_or("ClusterIP", String::as_str);
        let mut spec = json!({
            "type": kind, "ipFamilyPolicy": "PreferDualStack", "ports": ports, "selector": self.selector(),
        });
        let address = self.gateway.spec.addresses.iter().flatten().next().and_then(|address| address.value.as_ref());
        if let Some(address) = address.filter(|_| kind == "LoadBalancer") {
            spec["loadBalancerIP"] = address.as_str().into();
        }
        json!({ "spec": spec })
    }

    fn deployment(&self, scales: bool) -> Value {
        let replicas = self.settings.defaults.replicas;
        let mut spec = json!({
            "selector": {"matchLabels": self.selector()},
            // The next one takes connections before the last one stops to.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": self.pod(),
        });
        // Left alone where others say how many: an autoscaler, or somebody by hand.
        if replicas != 1 && !scales {
            spec["replicas"] = replicas.into();
        }
        json!({ "spec": spec })
    }

    fn autoscaler(&self) -> Value {
        let scaling = &self.settings.defaults.autoscaling;
        let cpu = json!({"type": "Utilization", "averageUtilization": scaling.cpu_utilization});
        json!({"spec": {
            "scaleTargetRef": self.scale_target(),
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": cpu}}],
        }})
    }

    fn scale_target(&self) -> Value {
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": self.name()})
    }
}

/// Labels and annotations that a Gateway wants on what is made of it.
struct Infrastructure {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Infrastructure {
    /// Those of `spec.infrastructure`; a Gateway without that says it by its own, as with Istio.
    fn of(gateway: &Gateway) -> Self {
        let (labels, annotations) = match &gateway.spec.infrastructure {
            Some(wanted) => (wanted.labels.clone(), wanted.annotations.clone()),
            None => (gateway.metadata.labels.clone(), gateway.metadata.annotations.clone()),
        };
        // Said of the Gateway, or bound to a waypoint: the waypoint itself is bound to none.
        let is_own = |key: &str| {
            key.starts_with("gateway.istio.io/")
                || key.starts_with(label::USE_WAYPOINT)
                || key == label::WAYPOINT_FOR
                || key == "kubectl.kubernetes.io/last-applied-configuration"
                || key == SERVICE_TYPE
        };
        let kept = |map: Option<BTreeMap<String, String>>| {
            map.unwrap_or_default().into_iter().filter(|(key, _)| !is_own(key)).collect()
        };
        Self { labels: kept(labels), annotations: kept(annotations) }
    }
}

/// A mapping as it is, or nothing where it is empty.
fn unless_empty(fields: &Map<String, Value>) -> Value {
    if fields.is_empty() { Value::Null } else { Value::Object(fields.clone()) }
}

#[cfg(test)]
mod tests;
