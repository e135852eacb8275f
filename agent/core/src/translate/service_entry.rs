//! ServiceEntries: a service for each host, and a workload for each inline endpoint.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::names::label;
use culvert_api::networking::{Resolution as ApiResolution, ServiceEntry, ServiceEntryPort};
use ipnet::IpNet;

use super::facts::{ServiceEntryFacts, ServiceFacts, WaypointWords, WorkloadFacts, WorkloadSource};
use super::{Findings, Interner, metadata, workload_entry};
use crate::service::{Resolution, ServicePort, TargetPort};

/// A ServiceEntry as services and endpoints.
pub(crate) fn translate(
    entry: &ServiceEntry,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> ServiceEntryFacts {
    let (meta, spec) = (&entry.metadata, &entry.spec);
    let resolution = match spec.resolution {
        ApiResolution::None => Resolution::Passthrough,
        ApiResolution::Static => Resolution::Endpoints,
        ApiResolution::Dns | ApiResolution::DnsRoundRobin => Resolution::Dns,
        ApiResolution::DynamicDns => {
            findings.error("spec.resolution", "DYNAMIC_DNS needs a waypoint and is not supported: ignored");
            return ServiceEntryFacts::default();
        }
    };
    if spec.export_to.iter().any(|namespace| namespace != "*") {
        findings.warning("spec.exportTo", "visible in every namespace all the same, as in Istio's ambient mode");
    }
    let namespace = findings.object.namespace.clone();
    let selector = spec.workload_selector.as_ref().filter(|selector| !selector.labels.is_empty());
    let selector = match (selector, spec.endpoints.is_empty()) {
        (Some(_), false) => {
            findings.error("spec.workloadSelector", "exclusive with spec.endpoints: ignored");
            None
        }
        (selector, _) => selector.map(|selector| interner.labels(Some(&selector.labels))),
    };
    let has_endpoints = selector.is_some() || !spec.endpoints.is_empty();
    let template = ServiceFacts {
        object: findings.object.clone(),
        host: None,
        created: metadata::created(meta),
        vips: vips(entry, resolution, findings),
        auto_vips: false,
        ports: ports(&spec.ports, interner, findings),
        resolution,
        node_local: false,
        traffic_distribution: metadata::traffic_distribution(meta, findings),
        allow_unhealthy: false,
        waypoint: metadata::waypoint(meta, &namespace, interner, findings),
        is_gateway: false,
        subject_alt_names: spec.subject_alt_names.iter().map(|name| interner.string(name)).collect(),
        selector,
    };

    let mut services: Vec<Arc<ServiceFacts>> = Vec::new();
    for (at, host) in spec.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{at}]");
        let host = host.to_ascii_lowercase();
        let below = host.strip_prefix("*.");
        if !workload_entry::is_hostname(below.unwrap_or(&host)) {
            findings.error(field, format!("neither a host name nor `*.` and one: {host:?} is ignored"));
        } else if below.is_some() && (resolution == Resolution::Passthrough || !has_endpoints) {
            // Nobody could tell which of its names is meant.
            findings.error(
                field,
                format!("a wildcard needs endpoints, with resolution STATIC or DNS: {host:?} is ignored"),
            );
        } else if services.iter().any(|known| known.host.as_deref() == Some(&*host)) {
            findings.error(field, format!("{host} is there twice: ignored"));
        } else {
            let mut vips = template.vips.clone();
            if spec.addresses.is_empty() {
                vips.extend(allocated(entry, &host));
            }
            let auto_vips = vips.is_empty() && resolution != Resolution::Passthrough && !is_opted_out(entry);
            if vips.is_empty() && !auto_vips {
                findings.warning(
                    field,
                    "no virtual address, so that connections to it are not told from others: write spec.addresses \
                     (none are allocated with resolution NONE, or where a label refuses them)",
                );
            }
            let host = Some(interner.string(&host));
            services.push(Arc::new(ServiceFacts { host, vips, auto_vips, ..template.clone() }));
        }
    }
    if spec.hosts.is_empty() {
        findings.error("spec.hosts", "missing: name at least one host");
    }
    ServiceEntryFacts { services, endpoints: endpoints(entry, resolution, interner, findings) }
}

fn vips(entry: &ServiceEntry, resolution: Resolution, findings: &mut Findings<'_>) -> Vec<IpNet> {
    let mut vips = Vec::new();
    for (at, text) in entry.spec.addresses.iter().enumerate() {
        let field = format!("spec.addresses[{at}]");
        match parse_network(text) {
            Some(network) if resolution == Resolution::Dns && network.prefix_len() != network.max_prefix_len() => {
                findings.error(field, format!("{text}: networks are for resolution NONE and STATIC only: ignored"));
            }
            Some(network) if vips.contains(&network) => {}
            Some(network) => vips.push(network),
            None => findings.error(field, format!("{text:?} is neither an IP address nor a CIDR: ignored")),
        }
    }
    vips
}

/// An address or a network, with an IPv4-mapped address unmapped.
fn parse_network(text: &str) -> Option<IpNet> {
    match text.parse::<IpAddr>() {
        Ok(ip) => Some(IpNet::from(ip.to_canonical())),
        Err(_) => text.parse::<IpNet>().ok().map(|network| network.trunc()),
    }
}

/// The virtual addresses that Istio's allocator wrote for `host`.
fn allocated(entry: &ServiceEntry, host: &str) -> Vec<IpNet> {
    let addresses = entry.status.iter().filter(|_| !is_opted_out(entry)).flat_map(|status| &status.addresses);
    addresses
        .filter(|address| address.host.is_empty() || address.host.eq_ignore_ascii_case(host))
        .filter_map(|address| Some(IpNet::from(address.value.parse::<IpAddr>().ok()?.to_canonical())))
        .collect()
}

fn is_opted_out(entry: &ServiceEntry) -> bool {
    metadata::label(&entry.metadata, label::ENABLE_AUTOALLOCATE_IP) == Some("false")
}

fn ports(ports: &[ServiceEntryPort], interner: &mut Interner, findings: &mut Findings<'_>) -> Vec<ServicePort> {
    let mut known: Vec<ServicePort> = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        let mut number = |field: &str, number: u32| {
            let parsed = u16::try_from(number).ok().filter(|number| *number != 0);
            if parsed.is_none() {
                findings.error(format!("spec.ports[{at}].{field}"), format!("{number} is not a port: ignored"));
            }
            parsed
        };
        let Some(listen) = number("number", port.number) else { continue };
        let Some(target) = number("targetPort", port.target_port.unwrap_or(port.number)) else { continue };
        if known.iter().any(|other| other.port == listen) {
            findings.error(format!("spec.ports[{at}].number"), format!("{listen} is there twice: ignored"));
            continue;
        }
        let protocol = port.protocol.to_ascii_lowercase();
        known.push(ServicePort {
            port: listen,
            name: interner.string(&port.name),
            target: TargetPort::Number(target),
            app_protocol: Some(protocol).filter(|protocol| !protocol.is_empty()).map(|p| interner.string(&p)),
        });
    }
    known
}

fn endpoints(
    entry: &ServiceEntry,
    resolution: Resolution,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> Vec<WorkloadFacts> {
    if resolution == Resolution::Passthrough {
        if !entry.spec.endpoints.is_empty() {
            findings.error("spec.endpoints", "resolution NONE dials the original address: endpoints are ignored");
        }
        return Vec::new();
    }
    let mut endpoints: Vec<WorkloadFacts> = Vec::new();
    for (at, endpoint) in entry.spec.endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{at}]");
        let repeated = entry.spec.endpoints.iter().take(at).filter(|other| other.address == endpoint.address).count();
        let suffix: Arc<str> = match repeated {
            0 => endpoint.address.trim().into(),
            n => format!("{}#{n}", endpoint.address.trim()).into(),
        };
        let source = WorkloadSource::ServiceEntry { suffix };
        let name = findings.object.name.clone();
        if let Some(facts) =
            workload_entry::endpoint(endpoint, source, WaypointWords::default(), name, &path, interner, findings)
        {
            if facts.hostname.is_some() && resolution == Resolution::Endpoints {
                let field = format!("{path}.address");
                findings.error(field, "a host name needs resolution DNS: ignored; write an IP address");
                continue;
            }
            endpoints.push(facts);
        }
    }
    endpoints
}
