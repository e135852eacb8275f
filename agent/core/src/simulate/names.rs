//! What people write for a caller and a destination, into addresses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Caller;
use crate::mesh::Snapshot;
use crate::service::Service;
use crate::workload::Workload;

/// Why a request cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InputError {
    /// The request of HTTP is none.
    #[error("{0}")]
    Http(String),
    /// `--from` is neither a pod nor an address.
    #[error("{0:?} is neither NAMESPACE/POD nor an address")]
    From(String),
    /// There is no such pod.
    #[error("no pod {namespace}/{name} in the configuration{}", suggestion(.known))]
    NoPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Some pods of that namespace.
        known: Vec<String>,
    },
    /// `--to` is not `HOST:PORT`.
    #[error("{0:?} is not HOST:PORT with a port from 1 to 65535 (an IPv6 address goes in brackets)")]
    To(String),
    /// The host is nothing that the mesh knows.
    #[error("no service, pod or address {host:?} seen from namespace {namespace}{}", suggestion(.known))]
    NoHost {
        /// The host.
        host: String,
        /// Where its short name was looked up.
        namespace: String,
        /// Some services there.
        known: Vec<String>,
    },
    /// The caller has no address yet.
    #[error("pod {0} has no address: check status.podIPs")]
    NoAddress(String),
}

/// At most this many names are suggested.
const MAX_SUGGESTIONS: usize = 5;

fn suggestion(known: &[String]) -> String {
    if known.is_empty() { String::new() } else { format!(": there are {}", known.join(", ")) }
}

fn suggestions(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.dedup();
    let more = names.len().saturating_sub(MAX_SUGGESTIONS);
    names.truncate(MAX_SUGGESTIONS);
    names.extend((more > 0).then(|| format!("{more} more")));
    names
}

/// Reads `NAMESPACE/POD` or an address. The address of a pod is the pod.
pub(super) fn caller(snapshot: &Snapshot, from: &str) -> Result<Caller, InputError> {
    if let Ok(ip) = from.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        return Ok(snapshot.workload_by_address(ip).map_or(Caller::Outside(ip), |w| Caller::Workload(w.clone())));
    }
    let Some((namespace, name)) = from.split_once('/').filter(|(ns, name)| !ns.is_empty() && !name.is_empty()) else {
        return Err(InputError::From(from.to_owned()));
    };
    let workload = pod(snapshot, namespace, name)?;
    if workload.addresses.is_empty() {
        return Err(InputError::NoAddress(from.to_owned()));
    }
    Ok(Caller::Workload(workload.clone()))
}

fn pod<'s>(snapshot: &'s Snapshot, namespace: &str, name: &str) -> Result<&'s Arc<Workload>, InputError> {
    snapshot.pod(namespace, name).ok_or_else(|| {
        let siblings = snapshot.workloads().filter(|workload| *workload.namespace == *namespace);
        InputError::NoPod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            known: suggestions(siblings.map(|workload| workload.namespaced_name().to_string())),
        }
    })
}

/// The address that a client dials at first; or why it finds none.
pub(super) type Dialled = Result<SocketAddr, String>;

/// Reads `HOST:PORT` as `caller` would resolve it.
pub(super) fn target(snapshot: &Snapshot, caller: &Caller, to: &str) -> Result<Dialled, InputError> {
    let (host, port) = split(to).ok_or_else(|| InputError::To(to.to_owned()))?;
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Ok(SocketAddr::new(ip.to_canonical(), port)));
    }
    if let Some((namespace, name)) = host.split_once('/') {
        return Ok(pod_address(pod(snapshot, namespace, name)?, caller, port));
    }
    if let Some(service) = service(snapshot, caller.namespace(), host) {
        return Ok(service_address(snapshot, service, caller, port));
    }
    if let Some(workload) = snapshot.pod(caller.namespace(), host) {
        return Ok(pod_address(workload, caller, port));
    }
    let near = snapshot.services().filter(|service| *service.key.namespace == *caller.namespace());
    Err(InputError::NoHost {
        host: host.to_owned(),
        namespace: caller.namespace().to_owned(),
        known: suggestions(near.map(|service| service.name.to_string())),
    })
}

fn split(to: &str) -> Option<(&str, u16)> {
    let (host, port) = to.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    // An IPv6 address without brackets would lose its last group to the port.
    let host = bare.or((!host.contains(':')).then_some(host)).filter(|host| !host.is_empty())?;
    let port = port.bytes().all(|b| b.is_ascii_digit()).then(|| port.parse().ok()).flatten()?;
    (port != 0).then_some((host, port))
}

/// The service that `host` names in `namespace`, tried in the order of a pod's search domains.
fn service<'s>(snapshot: &'s Snapshot, namespace: &str, host: &str) -> Option<&'s Arc<Service>> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let domain = &snapshot.options().cluster_domain;
    let candidates =
        [format!("{host}.{namespace}.svc.{domain}"), format!("{host}.svc.{domain}"), format!("{host}.{domain}"), host];
    candidates.iter().find_map(|name| {
        let claims = || snapshot.services_by_hostname(name);
        claims().find(|service| *service.key.namespace == *namespace).or_else(|| claims().next())
    })
}

/// The virtual address, or, where there is none, the address of an endpoint, as DNS would answer.
fn service_address(snapshot: &Snapshot, service: &Service, caller: &Caller, port: u16) -> Dialled {
    let vips: Vec<_> = service.vips.iter().map(ipnet::IpNet::addr).collect();
    if !vips.is_empty() {
        return Ok(SocketAddr::new(towards(&vips, caller), port));
    }
    let mut ready =
        snapshot.endpoints(&service.key).filter(|endpoint| endpoint.ready || service.load_balancing.allow_unhealthy);
    match ready.find(|endpoint| !endpoint.workload.addresses.is_empty()) {
        Some(endpoint) => pod_address(&endpoint.workload, caller, port),
        None => Err(format!(
            "service {} has no virtual address and no ready endpoint with an address: check its pods",
            service.key.hostname
        )),
    }
}

fn pod_address(workload: &Workload, caller: &Caller, port: u16) -> Dialled {
    match workload.addresses.is_empty() {
        true => Err(format!("pod {} has no address: check status.podIPs", workload.namespaced_name())),
        false => Ok(SocketAddr::new(towards(&workload.addresses, caller), port)),
    }
}

/// The address of a family that the caller has.
fn towards(addresses: &[IpAddr], caller: &Caller) -> IpAddr {
    let first = caller.addresses().first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
    super::address_towards(addresses, first)
}
