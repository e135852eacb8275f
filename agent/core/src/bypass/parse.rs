//! What pods' annotations say about destinations that are not captured: ours, or else Istio's for sidecars.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use culvert_api::names::annotation;
use ipnet::IpNet;

use super::{Action, MAX_RULES, Rules};
use crate::translate::Findings;
use crate::translate::metadata;

/// The rules of a pod; `None` if it says nothing. Ours count before Istio's, for addresses and for ports each.
pub(crate) fn of_pod(meta: &ObjectMeta, findings: &mut Findings<'_>) -> Option<Arc<Rules>> {
    let mut rules =
        Rules { sources: [annotation::BYPASS_OUTBOUND_CIDRS, annotation::BYPASS_OUTBOUND_PORTS], ..Rules::default() };
    let read = |key: &'static str| Some((key, metadata::annotation(meta, key)?));
    let ours = read(annotation::BYPASS_OUTBOUND_CIDRS);
    let excluded = read(annotation::EXCLUDE_OUTBOUND_IP_RANGES);
    let included = read(annotation::INCLUDE_OUTBOUND_IP_RANGES);
    let our_ports = read(annotation::BYPASS_OUTBOUND_PORTS);
    let excluded_ports = read(annotation::EXCLUDE_OUTBOUND_PORTS);
    let included_ports = read(annotation::INCLUDE_OUTBOUND_PORTS);

    let unused = [ours.and(excluded), ours.and(included), our_ports.and(excluded_ports), our_ports.and(included_ports)];
    for (key, _) in unused.into_iter().flatten() {
        findings.warning(field(key), "has no effect beside the annotation culvert.dev/bypass-outbound-…, which counts");
    }
    if let Some((key, text)) = ours {
        let list = networks(items(text), &field(key), findings);
        rules.addresses = list.into_iter().map(|network| (network, Action::Bypass)).collect();
    } else {
        let mut list = |(key, text): (&'static str, &str)| networks(items(text), &field(key), findings);
        let excluded = excluded.map(|found| (found.0, list(found)));
        let included = included.filter(|(_, text)| text.trim() != "*").map(|found| (found.0, list(found)));
        rules.sources[0] = excluded.as_ref().or(included.as_ref()).map_or(rules.sources[0], |(key, _)| key);
        rules.addresses = ranges(excluded.map(|(_, list)| list), included.map(|(_, list)| list));
    }
    if let Some((key, text)) = our_ports.or(excluded_ports) {
        rules.sources[1] = key;
        rules.ports = ports(items(text), &field(key), findings);
    }
    if let Some((key, _)) = included_ports.filter(|_| our_ports.is_none()) {
        findings.warning(field(key), "has no effect: every port is captured that no other annotation bypasses");
    }
    (!rules.is_empty()).then(|| Arc::new(rules))
}

/// Istio's two lists as one, in which the longest network counts. There, what is excluded is so before anything that is
/// included, and where something is included all else is bypassed.
fn ranges(excluded: Option<Vec<IpNet>>, included: Option<Vec<IpNet>>) -> Vec<(IpNet, Action)> {
    let excluded = excluded.unwrap_or_default();
    let mut rules: Vec<_> = excluded.iter().map(|network| (*network, Action::Bypass)).collect();
    let Some(included) = included else { return rules };
    let within_excluded = |network: &IpNet| excluded.iter().any(|excluded| excluded.contains(network));
    rules.extend(included.into_iter().filter(|n| !within_excluded(n)).map(|network| (network, Action::Capture)));
    for everything in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
        let everything = IpNet::new_assert(everything, 0);
        if !rules.iter().any(|(known, _)| *known == everything) {
            rules.push((everything, Action::Bypass));
        }
    }
    rules
}

/// Reads addresses and networks, without repetitions; what cannot be read is reported, and captured.
pub(crate) fn networks<'a>(
    items: impl Iterator<Item = &'a str>,
    field: &str,
    findings: &mut Findings<'_>,
) -> Vec<IpNet> {
    let parse = |text: &str| match text.parse::<IpAddr>() {
        Ok(ip) => Some(IpNet::from(ip.to_canonical())),
        Err(_) => text.parse::<IpNet>().ok().map(|network| unmapped(network.trunc())),
    };
    list(items, field, "neither an IP address nor a CIDR", findings, parse)
}

/// Reads ports, likewise.
pub(crate) fn ports<'a>(items: impl Iterator<Item = &'a str>, field: &str, findings: &mut Findings<'_>) -> Vec<u16> {
    list(items, field, "not a port", findings, |text| text.parse().ok().filter(|port| *port != 0))
}

fn list<'a, T: PartialEq>(
    items: impl Iterator<Item = &'a str>,
    field: &str,
    what: &str,
    findings: &mut Findings<'_>,
    parse: impl Fn(&str) -> Option<T>,
) -> Vec<T> {
    let mut read = Vec::new();
    for (at, text) in items.enumerate() {
        if at == MAX_RULES {
            findings.error(field, format!("more than {MAX_RULES}: the rest is ignored, and captured"));
            break;
        }
        match parse(text) {
            Some(value) if read.contains(&value) => {}
            Some(value) => read.push(value),
            None => {
                let text: String = text.chars().take(100).collect();
                findings.error(field, format!("{text:?} is {what}: ignored, and captured"));
            }
        }
    }
    read
}

/// A network of IPv4-mapped addresses as one of IPv4 addresses.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.prefix_len().checked_sub(96).zip(v6.addr().to_ipv4_mapped());
    v4.and_then(|(length, ip)| IpNet::new(ip.into(), length).ok()).unwrap_or(network)
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn field(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}
