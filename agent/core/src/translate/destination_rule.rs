//! DestinationRule into traffic policies (Istio `pilot/pkg/networking/core/cluster_traffic_policy.go`).

mod blocks;
mod load_balancer;

use std::sync::Arc;

use culvert_api::networking::DestinationRule as Written;
use culvert_api::networking::destination_rule::{PortTrafficPolicy, TrafficPolicy as WrittenPolicy};

use super::values::{self, ExportTo, shown};
use super::{Findings, metadata};
use crate::route::l4::HostPattern;
use crate::traffic::policy::{Layer, Subset, TrafficPolicy};
use crate::workload::{Created, Labels, NamespacedName};

/// The most subsets of an object, and the most ports of a policy.
const MAX_SUBSETS: usize = 4096;
const MAX_PORTS: usize = 4096;

/// What a DestinationRule says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DestinationRuleFacts {
    pub(crate) name: NamespacedName,
    pub(crate) created: Created,
    pub(crate) host: HostPattern,
    pub(crate) export_to: ExportTo,
    /// The clients that it is for; `None` for all.
    pub(crate) selector: Option<Arc<Labels>>,
    pub(crate) policy: Layer,
    pub(crate) subsets: Vec<Subset>,
}

/// Reads `object`; `None` if it is for no host.
pub(crate) fn translate(
    object: &Written,
    cluster_domain: &str,
    findings: &mut Findings<'_>,
) -> Option<DestinationRuleFacts> {
    let spec = &object.spec;
    let namespace = findings.object.namespace.clone();
    let name = NamespacedName { namespace: namespace.clone(), name: findings.object.name.clone() };
    let Some(host) = HostPattern::parse(&values::host(&spec.host, &namespace, cluster_domain)) else {
        findings.error("spec.host", format!("{} is no host: the object has no effect", shown(&spec.host)));
        return None;
    };
    let policy = spec.traffic_policy.as_ref().map(|policy| layer("spec.trafficPolicy", policy, findings));
    let mut subsets: Vec<Subset> = Vec::new();
    if spec.subsets.len() > MAX_SUBSETS {
        findings.error("spec.subsets", format!("more than {MAX_SUBSETS}: the rest has no effect"));
    }
    for (at, subset) in spec.subsets.iter().take(MAX_SUBSETS).enumerate() {
        let field = format!("spec.subsets[{at}]");
        if subset.name.is_empty() {
            findings.error(format!("{field}.name"), "is empty: the subset has no effect; name it");
            continue;
        }
        if subsets.iter().any(|known| *known.name == *subset.name) {
            findings
                .error(format!("{field}.name"), format!("{} is there twice: the first counts", shown(&subset.name)));
            continue;
        }
        if subset.labels.is_empty() {
            findings.warning(format!("{field}.labels"), "is empty: the subset is all of the host");
        }
        let policy = subset.traffic_policy.as_ref();
        let policy = policy.map(|policy| layer(&format!("{field}.trafficPolicy"), policy, findings));
        subsets.push(Subset {
            name: subset.name.as_str().into(),
            labels: subset.labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect(),
            policy: policy.unwrap_or_default(),
        });
    }
    let selector = spec.workload_selector.as_ref().map(|selector| {
        let labels = selector.match_labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into()));
        Arc::new(labels.collect::<Labels>())
    });
    Some(DestinationRuleFacts {
        name,
        created: metadata::created(&object.metadata),
        host,
        export_to: ExportTo::new(&spec.export_to, &namespace),
        selector: selector.filter(|labels| !labels.is_empty()),
        policy: policy.unwrap_or_default(),
        subsets,
    })
}

fn layer(field: &str, written: &WrittenPolicy, findings: &mut Findings<'_>) -> Layer {
    if *written == WrittenPolicy::default() {
        findings.warning(field, "says nothing: remove it, or set a field");
    }
    let mut ports: Vec<(u16, TrafficPolicy)> = Vec::new();
    for (at, settings) in written.port_level_settings.iter().take(MAX_PORTS).enumerate() {
        let field = format!("{field}.portLevelSettings[{at}]");
        let Some(port) = settings.port.as_ref().and_then(|port| values::port(port.number)) else {
            findings.error(format!("{field}.port"), "is no port from 1 to 65535: the settings have no effect");
            continue;
        };
        if ports.iter().any(|(known, _)| *known == port) {
            findings.error(format!("{field}.port"), format!("{port} is there twice: the first counts"));
            continue;
        }
        ports.push((port, of_port(&field, settings, findings)));
    }
    if written.tunnel.is_some() {
        findings.error(format!("{field}.tunnel"), "is not supported, and has no effect: use a waypoint's HBONE");
    }
    Layer { all: of_all(field, written, findings), ports }
}

fn of_all(field: &str, written: &WrittenPolicy, findings: &mut Findings<'_>) -> TrafficPolicy {
    let whole = PortTrafficPolicy {
        port: None,
        load_balancer: written.load_balancer.clone(),
        connection_pool: written.connection_pool.clone(),
        outlier_detection: written.outlier_detection.clone(),
        tls: written.tls.clone(),
    };
    let budget = written.retry_budget.as_ref();
    TrafficPolicy {
        retry_budget: budget.and_then(|budget| blocks::retry_budget(&format!("{field}.retryBudget"), budget, findings)),
        proxy_protocol: written.proxy_protocol.as_ref().map(blocks::proxy_protocol),
        ..of_port(field, &whole, findings)
    }
}

fn of_port(field: &str, written: &PortTrafficPolicy, findings: &mut Findings<'_>) -> TrafficPolicy {
    let PortTrafficPolicy { port: _, load_balancer, connection_pool, outlier_detection, tls } = written;
    let outliers = outlier_detection
        .as_ref()
        .map(|outliers| blocks::outliers(&format!("{field}.outlierDetection"), outliers, findings));
    let load_balancer = load_balancer.as_ref().map(|written| {
        let field = format!("{field}.loadBalancer");
        Arc::new(load_balancer::read(&field, written, findings))
    });
    let needs_outliers = load_balancer.as_ref().is_some_and(|balancer| load_balancer::fails_over(balancer));
    if needs_outliers && outliers.is_none() {
        findings.warning(
            format!("{field}.loadBalancer.localityLbSetting"),
            "fails over only from endpoints that are found to fail: set outlierDetection beside it",
        );
    }
    TrafficPolicy {
        load_balancer,
        pool: connection_pool
            .as_ref()
            .map(|pool| Arc::new(blocks::pool(&format!("{field}.connectionPool"), pool, findings))),
        outliers,
        tls: tls.as_ref().and_then(|tls| blocks::tls(&format!("{field}.tls"), tls, findings)).map(Arc::new),
        retry_budget: None,
        proxy_protocol: None,
    }
}
