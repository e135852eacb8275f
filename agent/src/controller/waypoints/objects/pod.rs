//! A waypoint's pod: no privilege, no host, nothing that it could write to.

use culvert_api::names::label;
use culvert_core::address::HBONE_PORT;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use super::{STATUS_PORT, Subject, unless_empty};
use crate::controller::waypoints::merge::merge;

/// As in Istio.
const CONTAINER: &str = "istio-proxy";
const METRICS_PORT: u16 = 15020;
/// What a waypoint needs beside the time that connections have: at its end it goes on for a while, for nodes that have
/// not heard that it takes nothing new. That is why it has no hook that sleeps.
const MARGIN_SECONDS: u16 = 10;
const USER: u32 = 1337;

impl Subject<'_> {
    /// The template of its pods.
    pub(super) fn pod(&self) -> Value {
        let defaults = &self.settings.defaults;
        let mut labels = json!({
            "sidecar.istio.io/inject": "false",
            (label::DATAPLANE_MODE): "none",
            (label::CANONICAL_NAME): self.name(),
            (label::CANONICAL_REVISION): "latest",
        });
        merge(&mut labels, &json!(self.labels()));
        let mut annotations = json!({
            "prometheus.io/scrape": "true",
            "prometheus.io/port": METRICS_PORT.to_string(),
        });
        merge(&mut annotations, &json!(self.infrastructure.annotations));
        let grace = u32::from(defaults.drain_seconds) + u32::from(MARGIN_SECONDS);
        let secrets: Vec<_> = self.settings.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        let mut spec = json!({
            "serviceAccountName": self.name(),
            "terminationGracePeriodSeconds": grace,
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "topologySpreadConstraints": self.spread(),
            "containers": [self.container()],
            "volumes": volumes(),
        });
        if !secrets.is_empty() {
            spec["imagePullSecrets"] = secrets.into();
        }
        if !defaults.tolerations.is_empty() {
            spec["tolerations"] = defaults.tolerations.clone().into();
        }
        merge(&mut spec, &json!({"nodeSelector": unless_empty(&defaults.node_selector)}));
        json!({"metadata": {"labels": labels, "annotations": annotations}, "spec": spec})
    }

    /// Over zones and nodes, where that is possible.
    fn spread(&self) -> Value {
        let over = ["topology.kubernetes.io/zone", "kubernetes.io/hostname"].map(|key| {
            json!({
                "topologyKey": key, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": self.selector()},
            })
        });
        json!(over)
    }

    fn container(&self) -> Value {
        let settings = self.settings;
        let defaults = &settings.defaults;
        let ready = json!({"path": "/healthz/ready", "port": STATUS_PORT});
        let mut container = json!({
            "name": CONTAINER,
            "image": settings.image,
            "args": ["waypoint", "--gateway", format!("{}/{}", self.namespace(), self.gateway.name_any())],
            "env": self.environment(),
            "ports": [
                {"name": "hbone", "containerPort": HBONE_PORT, "protocol": "TCP"},
                {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
                {"name": "status-port", "containerPort": STATUS_PORT, "protocol": "TCP"},
            ],
            // It may have a large mesh to read before it is ready; from then on, a second counts.
            "startupProbe": {"httpGet": ready, "periodSeconds": 1, "failureThreshold": 60},
            "readinessProbe": {"httpGet": ready, "periodSeconds": 2, "failureThreshold": 2},
            "securityContext": {
                "privileged": false,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [
                {"name": "istio-token", "mountPath": "/var/run/secrets/tokens", "readOnly": true},
                {"name": "istio-ca", "mountPath": "/var/run/secrets/istio", "readOnly": true},
            ],
        });
        merge(
            &mut container,
            &json!({
                "imagePullPolicy": settings.pull_policy,
                "resources": unless_empty(&defaults.resources),
            }),
        );
        container
    }

    fn environment(&self) -> Value {
        let defaults = &self.settings.defaults;
        let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
        let value = |name: &str, value: String| json!({"name": name, "value": value});
        json!([
            field("CULVERT_POD_NAME", "metadata.name"),
            field("CULVERT_SERVICE_ACCOUNT", "spec.serviceAccountName"),
            value("CULVERT_CA_ADDRESS", self.settings.ca_address.clone()),
            value("CULVERT_DRAIN_SECONDS", defaults.drain_seconds.to_string()),
            value("CULVERT_LOG_LEVEL", defaults.log_level.clone()),
            value("CULVERT_LOG_FORMAT", defaults.log_format.clone()),
            value("CULVERT_ACCESS_LOG", defaults.access_log.to_string()),
        ])
    }
}

/// A token that only the CA accepts, and the roots by which the CA and the mesh are known.
fn volumes() -> Value {
    let map = |name: &str, key: &str, path: &str| json!({"configMap": {"name": name, "optional": true, "items": [{"key": key, "path": path}]}});
    json!([
        {"name": "istio-token", "projected": {"sources": [
            {"serviceAccountToken": {"audience": "istio-ca", "expirationSeconds": 43200, "path": "istio-token"}},
        ]}},
        {"name": "istio-ca", "projected": {"sources": [
            map("istio-ca-root-cert", "root-cert.pem", "root-cert.pem"),
            map("istio-ca-crl", "ca-crl.pem", "crl/ca-crl.pem"),
        ]}},
    ])
}
