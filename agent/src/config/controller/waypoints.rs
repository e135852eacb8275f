//! How the controller runs waypoints.

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::config::ConfigError;

/// The flags that say how waypoints are run.
#[derive(Clone, Debug, Args)]
pub struct WaypointsConfig {
    /// The image of the waypoints that the controller runs: as a rule its own. Without it the controller runs none.
    #[arg(long, env = "CULVERT_WAYPOINT_IMAGE", value_name = "IMAGE")]
    pub waypoint_image: Option<String>,

    /// The CA service that waypoints get their certificates from; by default this controller.
    #[arg(long, env = "CULVERT_WAYPOINT_CA_ADDRESS", value_name = "HOST:PORT")]
    pub waypoint_ca_address: Option<String>,

    /// When that image is pulled: Always, IfNotPresent or Never.
    #[arg(long, env = "CULVERT_WAYPOINT_PULL_POLICY", value_name = "POLICY")]
    pub waypoint_pull_policy: Option<String>,

    /// Secrets to pull it with, separated by commas: they have to be in the namespace of each waypoint.
    #[arg(long, env = "CULVERT_WAYPOINT_PULL_SECRETS", value_name = "NAME,…", value_delimiter = ',')]
    pub waypoint_pull_secrets: Vec<String>,

    /// What every waypoint has unless parameters say otherwise, as JSON: the chart's value `waypoint.defaults`.
    #[arg(long, env = "CULVERT_WAYPOINT_DEFAULTS", value_name = "JSON", default_value = "{}", value_parser = defaults)]
    pub waypoint_defaults: WaypointDefaults,
}

/// What every waypoint has unless its Gateway says otherwise.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct WaypointDefaults {
    /// Pods, where no HorizontalPodAutoscaler says how many. 1 leaves the field to whoever scales by hand.
    pub replicas: u16,
    /// Whether a HorizontalPodAutoscaler is made for each.
    pub autoscaling: Autoscaling,
    /// Whether a PodDisruptionBudget is made for each.
    pub pod_disruption_budget: Switch,
    /// CPU and memory.
    pub resources: Map<String, Value>,
    /// How long connections have to finish, in seconds.
    pub drain_seconds: u16,
    /// What it logs.
    pub log_level: String,
    /// How: text or json.
    pub log_format: String,
    /// Whether it logs each request.
    pub access_log: bool,
    /// Nodes that it may run on.
    pub node_selector: Map<String, Value>,
    /// Taints that it runs in spite of.
    pub tolerations: Vec<Value>,
}

/// Whether, and between what, the number of pods follows the load.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Autoscaling {
    /// Whether it does.
    pub enabled: bool,
    /// The fewest.
    pub min_replicas: u16,
    /// The most.
    pub max_replicas: u16,
    /// The CPU to keep to, in per cent of what is requested.
    pub cpu_utilization: u16,
}

/// On or off.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Switch {
    /// On.
    pub enabled: bool,
}

impl Default for WaypointDefaults {
    fn default() -> Self {
        Self {
            replicas: 1,
            autoscaling: Autoscaling::default(),
            pod_disruption_budget: Switch::default(),
            resources: Map::new(),
            drain_seconds: 25,
            log_level: "info".to_owned(),
            log_format: "text".to_owned(),
            access_log: true,
            node_selector: Map::new(),
            tolerations: Vec::new(),
        }
    }
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self { enabled: false, min_replicas: 1, max_replicas: 5, cpu_utilization: 80 }
    }
}

impl Default for Switch {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl WaypointsConfig {
    /// Checks what clap cannot.
    ///
    /// # Errors
    /// The first flag that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.waypoint_image.as_deref().is_some_and(str::is_empty) {
            return Err(ConfigError("--waypoint-image: empty; name the image, or leave the flag out".to_owned()));
        }
        if self.waypoint_ca_address.as_deref().is_some_and(|address| !address.contains(':')) {
            return Err(ConfigError("--waypoint-ca-address: not HOST:PORT; add the port, 15012 as a rule".to_owned()));
        }
        let scaling = &self.waypoint_defaults.autoscaling;
        if scaling.enabled && !(1..=scaling.max_replicas).contains(&scaling.min_replicas) {
            return Err(ConfigError(
                "--waypoint-defaults: autoscaling.minReplicas: 1 at the least, and no more than maxReplicas".to_owned(),
            ));
        }
        Ok(())
    }
}

fn defaults(json: &str) -> Result<WaypointDefaults, String> {
    serde_json::from_str(json).map_err(|error| format!("{error} (Helm: waypoint.defaults)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_read_from_the_charts_values_and_a_field_of_another_name_is_refused() {
        let read = defaults(r#"{"replicas": 2, "autoscaling": {"enabled": true}}"#).unwrap();
        assert_eq!((read.replicas, read.autoscaling.enabled, read.autoscaling.max_replicas), (2, true, 5));
        assert_eq!(defaults("{}").unwrap(), WaypointDefaults::default());
        let line = defaults(r#"{"autoscaling": {"replicas": 2}}"#).unwrap_err();
        assert!(line.contains("unknown field `replicas`") && line.contains("Helm: waypoint.defaults"), "{line}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_flag() {
        let config = |image: &str, ca: &str, defaults: WaypointDefaults| WaypointsConfig {
            waypoint_image: Some(image.to_owned()),
            waypoint_ca_address: Some(ca.to_owned()),
            waypoint_pull_policy: None,
            waypoint_pull_secrets: Vec::new(),
            waypoint_defaults: defaults,
        };
        let none = WaypointDefaults::default;
        config("i", "ca:1", none()).check().unwrap();
        let autoscaling = Autoscaling { enabled: true, min_replicas: 6, ..Autoscaling::default() };
        for (bad, flag) in [
            (config("", "ca:1", none()), "--waypoint-image: "),
            (config("i", "ca", none()), "--waypoint-ca-address: "),
            (config("i", "ca:1", WaypointDefaults { autoscaling, ..none() }), "--waypoint-defaults: "),
        ] {
            let line = bad.check().unwrap_err().to_string();
            assert!(line.starts_with(flag), "{line}");
        }
    }
}
