//! What the mesh answers to a question of DNS, and what is left to the server that the pod asked.
//!
//! A pod's resolver sends names as it composes them: absolute, or with the search domains of the pod's
//! `/etc/resolv.conf` appended. The rules are ztunnel's (`src/dns/server.rs`):
//!
//! - A name is a service's host, or what a Service may be called within the client's namespace (`cart`, `cart.shop`,
//!   `cart.shop.svc`).
//! - A ServiceEntry's host is found behind a search domain too (`api.example.com.shop.svc.cluster.local`): the client is
//!   spared the questions in between. A Service's is not, because a pod of a headless service may have that very name.
//! - `*.example.com` is every name below `example.com` that has no host of its own; the longest counts.
//! - Of several services of one name, the one of the client's namespace counts, then a Kubernetes Service, then the
//!   oldest.
//!
//! - A pod that asks for a name of its own below a headless Service (`db-0.db.shop.svc.cluster.local`, as those of a
//!   StatefulSet do) has it, while it is ready.
//!
//! A service answers with its virtual addresses, a headless one with those of its ready endpoints. A family that it has
//! no address of, or the client has none of, gets an empty answer, not another server's.

pub mod message;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::mesh::{Endpoint, Snapshot};
use crate::service::{Resolution, Service};
use crate::workload::Workload;

/// How long an answer may be kept, in seconds, as ztunnel says.
pub const TTL: u32 = 30;
/// Addresses in one answer; a headless service may have more pods.
pub const MAX_ADDRESSES: usize = 1024;
/// Labels of a name for which wildcards are looked up; DNS allows 127.
const MAX_LABELS: usize = 32;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    fn holds(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It goes to the server that was asked.
    Forward,
    /// The mesh knows.
    Known {
        /// The name that it is an alias of: the one that was asked for without its search domain.
        alias_of: Option<Arc<str>>,
        /// The addresses; none where there are only others of the other family.
        addresses: SmallVec<[IpAddr; 2]>,
    },
}

/// Answers for the addresses of `name`, in lower case and without the final dot, that `client` asks for.
pub fn resolve(snapshot: &Snapshot, client: &Workload, name: &str, family: Family) -> Answer {
    let (all, alias_of) = match find(snapshot, client, name) {
        Some(Found::Service(service, alias_of)) => (addresses(snapshot, service), alias_of),
        Some(Found::Pod(pod)) => (Some(pod.addresses.to_vec()), None),
        None => (None, None),
    };
    let Some(all) = all else { return Answer::Forward };
    let reachable = client.addresses.is_empty() || client.addresses.iter().any(|ip| family.holds(*ip));
    let addresses = all.into_iter().filter(|ip| reachable && family.holds(*ip)).take(MAX_ADDRESSES).collect();
    Answer::Known { alias_of, addresses }
}

/// What a name means.
enum Found<'s> {
    /// A service, and the name without its search domain, where it has one.
    Service(&'s Arc<Service>, Option<Arc<str>>),
    /// One pod of a headless service.
    Pod(&'s Arc<Workload>),
}

/// What `name` means to `client`.
fn find<'s>(snapshot: &'s Snapshot, client: &Workload, name: &str) -> Option<Found<'s>> {
    let (namespace, domain) = (&*client.namespace, &*snapshot.options().cluster_domain);
    let exactly = |host: &str| prefer(snapshot, host, namespace);
    let in_cluster = |host: &str| exactly(host).or_else(|| exactly(&in_cluster(host, namespace, domain)?));
    if let Some(service) = in_cluster(name) {
        return Some(Found::Service(service, None));
    }
    if let Some((hostname, rest)) = name.split_once('.')
        && let Some(pod) = in_cluster(rest).and_then(|service| pod_of(snapshot, service, hostname))
    {
        return Some(Found::Pod(pod));
    }
    let search = [format!(".{namespace}.svc.{domain}"), format!(".svc.{domain}"), format!(".{domain}")];
    let bare = search.iter().find_map(|suffix| name.strip_suffix(suffix.as_str())).filter(|bare| !bare.is_empty());
    let entry = |service: &&Arc<Service>| !service.canonical;
    let behind =
        |bare: &str, found: Option<&'s Arc<Service>>| Some(Found::Service(found.filter(entry)?, Some(Arc::from(bare))));
    bare.and_then(|bare| behind(bare, exactly(bare)))
        .or_else(|| Some(Found::Service(wildcard(snapshot, name, namespace)?, None)))
        .or_else(|| bare.and_then(|bare| behind(bare, wildcard(snapshot, bare, namespace))))
}

/// The full name of the Service that `name` may be short for.
fn in_cluster(name: &str, namespace: &str, domain: &str) -> Option<String> {
    let mut labels = name.split('.');
    match (labels.next()?, labels.next(), labels.next(), labels.next()) {
        (service, None, ..) => Some(format!("{service}.{namespace}.svc.{domain}")),
        (_, Some(_), None, _) => Some(format!("{name}.svc.{domain}")),
        (_, Some(_), Some("svc"), None) => Some(format!("{name}.{domain}")),
        _ => None,
    }
}

/// The service of the longest `*.` host that holds `name`.
fn wildcard<'s>(snapshot: &'s Snapshot, name: &str, namespace: &str) -> Option<&'s Arc<Service>> {
    let dots = name.match_indices('.').take(MAX_LABELS);
    dots.map(|(at, _)| format!("*{}", &name[at..])).find_map(|host| prefer(snapshot, &host, namespace))
}

fn prefer<'s>(snapshot: &'s Snapshot, host: &str, namespace: &str) -> Option<&'s Arc<Service>> {
    let claims = || snapshot.services_by_hostname(host);
    claims().find(|service| *service.key.namespace == *namespace).or_else(|| claims().next())
}

/// The ready pod that a headless service has under this name.
fn pod_of<'s>(snapshot: &'s Snapshot, service: &Service, hostname: &str) -> Option<&'s Arc<Workload>> {
    if !service.canonical || !service.vips.is_empty() {
        return None;
    }
    let is_it = |workload: &Workload| {
        let name = workload.pod_name.as_ref();
        name.is_some_and(|name| *name.hostname == *hostname && name.subdomain == service.name)
    };
    let mut pods = ready(snapshot, service).map(|endpoint| &endpoint.workload);
    pods.find(|pod| pod.namespace == service.key.namespace && is_it(pod))
}

fn ready<'s>(snapshot: &'s Snapshot, service: &Service) -> impl Iterator<Item = &'s Endpoint> {
    let allow_unhealthy = service.load_balancing.allow_unhealthy;
    snapshot.endpoints(&service.key).filter(move |endpoint| endpoint.ready || allow_unhealthy)
}

/// Every address of a service; `None` where only another server can tell.
fn addresses(snapshot: &Snapshot, service: &Service) -> Option<Vec<IpAddr>> {
    if !service.vips.is_empty() {
        // A network is no address to answer with.
        let vips = service.vips.iter().filter(|vip| vip.prefix_len() == vip.max_prefix_len());
        return Some(vips.map(ipnet::IpNet::addr).collect()).filter(|vips: &Vec<_>| !vips.is_empty());
    }
    if service.resolution != Resolution::Endpoints {
        return None;
    }
    let mut addresses: Vec<IpAddr> =
        ready(snapshot, service).flat_map(|endpoint| endpoint.workload.addresses.iter().copied()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    // Whether there is such a name at all is the cluster's DNS to say.
    (!addresses.is_empty()).then_some(addresses)
}
