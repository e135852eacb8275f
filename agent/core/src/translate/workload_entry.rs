//! WorkloadEntries, and the inline endpoints of ServiceEntries, which have the same fields.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::names::{annotation, label};
use culvert_api::networking::{WorkloadEntry, WorkloadEntrySpec};
use smallvec::SmallVec;

use super::facts::{TemplateFacts, WaypointWords, WorkloadFacts, WorkloadSource};
use super::{Findings, Interner, metadata, pod};
use crate::workload::{Created, Health, Locality, WorkloadType};

/// A WorkloadEntry as a workload.
pub(crate) fn translate(
    entry: &WorkloadEntry,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> Option<WorkloadFacts> {
    let meta = &entry.metadata;
    let hbone = metadata::annotation(meta, annotation::REDIRECTION) == Some("enabled")
        || [metadata::label(meta, label::TUNNEL), entry.spec.labels.get(label::TUNNEL).map(String::as_str)]
            .contains(&Some("http"));
    let (namespace, name) = (findings.object.namespace.clone(), findings.object.name.clone());
    let waypoint = metadata::waypoint(meta, &namespace, interner, findings);
    let created = metadata::created(meta);
    let source = WorkloadSource::WorkloadEntry { hbone };
    // Istio selects a WorkloadEntry by the labels of its spec and its metadata alike.
    let mut spec = entry.spec.clone();
    for (key, value) in meta.labels.iter().flatten() {
        spec.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    let facts = endpoint(&spec, source, waypoint, name, "spec", interner, findings)?;
    Some(WorkloadFacts { created, ..facts })
}

/// `spec`, found at `path`, as a workload; `None` where it cannot be reached by TCP.
pub(crate) fn endpoint(
    spec: &WorkloadEntrySpec,
    source: WorkloadSource,
    waypoint: WaypointWords,
    name: Arc<str>,
    path: &str,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> Option<WorkloadFacts> {
    let field = |name: &str| format!("{path}.{name}");
    let address = spec.address.trim();
    let mut addresses = SmallVec::new();
    let mut hostname = None;
    if address.starts_with("unix://") {
        findings.error(field("address"), "Unix sockets are not reachable from other workloads: ignored");
        return None;
    } else if let Ok(ip) = address.parse::<IpAddr>() {
        addresses.push(ip.to_canonical());
    } else if address.is_empty() && spec.network.is_empty() {
        findings.error(field("address"), "missing: write an IP address or a host name");
        return None;
    } else if address.is_empty() {
        findings.error(field("network"), "endpoints behind a network gateway are not supported: ignored");
        return None;
    } else if is_hostname(address) {
        hostname = Some(interner.string(address));
    } else {
        findings.error(field("address"), format!("{address:?} is neither an IP address nor a host name: ignored"));
        return None;
    }

    let mut ports: SmallVec<[(Arc<str>, u16); 4]> = SmallVec::new();
    for (port_name, number) in &spec.ports {
        match u16::try_from(*number) {
            Ok(number) if number != 0 => ports.push((interner.string(port_name), number)),
            _ => findings.error(field(&format!("ports.{port_name}")), format!("{number} is not a port: ignored")),
        }
    }
    let labels = interner.labels(Some(&spec.labels));
    let workload_name = labels.get(label::WORKLOAD_NAME).unwrap_or(&name).clone();
    let (canonical_name, canonical_revision) = pod::canonical(&labels, &workload_name, interner);
    let account = if spec.service_account.is_empty() { "default" } else { &spec.service_account };
    let template = TemplateFacts {
        source,
        namespace: findings.object.namespace.clone(),
        service_account: interner.string(account),
        hostname,
        host_network: false,
        workload_name,
        workload_type: WorkloadType::Pod,
        canonical_name,
        canonical_revision,
        network: match (&spec.network, labels.get(label::NETWORK)) {
            (network, _) if !network.is_empty() => Some(interner.string(network)),
            (_, from_label) => from_label.cloned(),
        },
        locality: Some(locality(&spec.locality, interner)),
        // A weight of 0 is unset in protobuf JSON, and so means the default of 1.
        capacity: spec.weight.filter(|weight| *weight != 0).unwrap_or(1),
        waypoint,
        named_ports: interner.ports(&ports),
        labels,
    };
    Some(WorkloadFacts {
        name,
        created: Created::default(),
        addresses,
        node: interner.string(""),
        terminating: false,
        health: Health::Healthy,
        template: interner.template_facts(template),
    })
}

fn locality(text: &str, interner: &mut Interner) -> Arc<Locality> {
    let mut parts = text.splitn(3, '/');
    let mut next = || interner.string(parts.next().unwrap_or_default());
    let locality = Locality { region: next(), zone: next(), subzone: next() };
    interner.locality(locality)
}

/// Whether `text` is a DNS name, not a wildcard.
pub(crate) fn is_hostname(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.len() <= 253 && !text.is_empty() && text.strip_suffix('.').unwrap_or(text).split('.').all(is_label)
}
