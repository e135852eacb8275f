//! Kubernetes Services.

use std::sync::Arc;

use culvert_api::k8s_openapi::api::core::v1::{Service, ServicePort as ApiPort, ServiceSpec};
use culvert_api::k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use culvert_api::names::label;
use ipnet::IpNet;

use super::facts::ServiceFacts;
use super::{Findings, Interner, metadata};
use crate::service::{Resolution, ServicePort, TargetPort};

/// A Service; `None` for one of type ExternalName, which is a DNS record and has no traffic of its own.
pub(crate) fn translate(
    service: &Service,
    interner: &mut Interner,
    findings: &mut Findings<'_>,
) -> Option<ServiceFacts> {
    let meta = &service.metadata;
    let default = ServiceSpec::default();
    let spec = service.spec.as_ref().unwrap_or(&default);
    if spec.type_.as_deref() == Some("ExternalName") {
        findings.warning(
            "spec.type",
            "an ExternalName Service is a DNS alias: its traffic is decided by the address that the name resolves to",
        );
        return None;
    }
    let namespace = findings.object.namespace.clone();
    let traffic_distribution = match spec.traffic_distribution.as_deref() {
        Some(name) => {
            let known = metadata::distribution(name);
            if known.is_none() {
                findings.error("spec.trafficDistribution", format!("{name:?} is not known: ignored"));
            }
            known
        }
        None => metadata::traffic_distribution(meta, findings),
    };
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        findings.warning("spec.sessionAffinity", "ClientIP has no effect: each connection chooses an endpoint anew");
    }
    Some(ServiceFacts {
        object: findings.object.clone(),
        host: None,
        created: metadata::created(meta),
        vips: vips(spec, findings),
        auto_vips: false,
        ports: ports(spec, interner, findings),
        resolution: Resolution::Endpoints,
        node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        traffic_distribution,
        allow_unhealthy: spec.publish_not_ready_addresses.unwrap_or(false),
        waypoint: metadata::waypoint(meta, &namespace, interner, findings),
        is_gateway: metadata::label(meta, label::GATEWAY_NAME).is_some(),
        subject_alt_names: Vec::new(),
        selector: spec.selector.as_ref().filter(|s| !s.is_empty()).map(|s| interner.labels(Some(s))),
    })
}

/// The cluster IPs. Addresses of a load balancer and `externalIPs` are not among them, as in Istio: they are dialled
/// from outside, and from inside lead where the network takes them.
fn vips(spec: &ServiceSpec, findings: &mut Findings<'_>) -> Vec<IpNet> {
    let mut vips: Vec<IpNet> = Vec::new();
    let mut add = |field: String, text: &str| match text.parse::<std::net::IpAddr>() {
        Ok(ip) => {
            let vip = IpNet::from(ip.to_canonical());
            if !vips.contains(&vip) {
                vips.push(vip);
            }
        }
        Err(_) => findings.error(field, format!("{text:?} is not an IP address: ignored")),
    };
    let cluster_ips = spec.cluster_ips.as_deref().unwrap_or_default();
    for (at, ip) in cluster_ips.iter().enumerate().filter(|(_, ip)| *ip != "None" && !ip.is_empty()) {
        add(format!("spec.clusterIPs[{at}]"), ip);
    }
    if let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| *ip != "None" && !ip.is_empty()) {
        add("spec.clusterIP".to_owned(), ip);
    }
    vips
}

fn ports(spec: &ServiceSpec, interner: &mut Interner, findings: &mut Findings<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (at, port) in spec.ports.iter().flatten().enumerate() {
        if !matches!(port.protocol.as_deref(), None | Some("" | "TCP")) {
            // UDP and SCTP never enter the mesh; a Service commonly has such ports beside TCP ones.
            continue;
        }
        match to_port(port, interner) {
            Ok(port) if ports.iter().any(|known| known.port == port.port) => {
                findings.error(format!("spec.ports[{at}].port"), format!("{} is there twice: ignored", port.port));
            }
            Ok(port) => ports.push(port),
            Err((field, message)) => findings.error(format!("spec.ports[{at}].{field}"), message),
        }
    }
    ports
}

fn to_port(port: &ApiPort, interner: &mut Interner) -> Result<ServicePort, (&'static str, String)> {
    let number = |field, number: i32| match u16::try_from(number) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err((field, format!("{number} is not a port: ignored"))),
    };
    let listen = number("port", port.port)?;
    let target = match &port.target_port {
        None => TargetPort::Number(listen),
        Some(IntOrString::Int(target)) => TargetPort::Number(number("targetPort", *target)?),
        // A number in quotes is a number to Kubernetes, too.
        Some(IntOrString::String(target)) => match target.parse::<u16>() {
            Ok(target) if target != 0 => TargetPort::Number(target),
            Ok(_) => return Err(("targetPort", format!("{target:?} is not a port: ignored"))),
            Err(_) if target.is_empty() => TargetPort::Number(listen),
            Err(_) => TargetPort::Named(interner.string(target)),
        },
    };
    let name = interner.string(port.name.as_deref().unwrap_or_default());
    Ok(ServicePort {
        port: listen,
        app_protocol: app_protocol(port.app_protocol.as_deref(), &name, interner),
        name,
        target,
    })
}

/// The application protocol: as declared, or else by the prefix of the port's name (`http-web`).
fn app_protocol(declared: Option<&str>, name: &str, interner: &mut Interner) -> Option<Arc<str>> {
    const PREFIXES: [&str; 9] = ["http", "https", "http2", "grpc", "grpc-web", "mongo", "mysql", "redis", "tls"];
    let by_name = || {
        let mut prefixes = PREFIXES
            .iter()
            .chain(&["tcp"])
            .filter(|prefix| name.strip_prefix(**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('-')));
        // `grpc-web` before `grpc`: the longest.
        let mut best = *prefixes.next()?;
        for prefix in prefixes {
            best = if prefix.len() > best.len() { prefix } else { best };
        }
        Some(best)
    };
    declared.filter(|declared| !declared.is_empty()).or_else(by_name).map(|protocol| interner.string(protocol))
}
