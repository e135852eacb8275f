//! Which services claim an address.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::HashMap;
use ipnet::IpNet;
use smallvec::SmallVec;

use crate::service::{Service, ServiceKey};

/// The services that claim one address or name, the preferred first.
pub(super) type Claims = SmallVec<[Arc<Service>; 1]>;

/// Services by virtual address.
///
/// A lookup costs one hash per prefix length in use, and nearly every virtual address is a single one.
#[derive(Clone, Debug, Default)]
pub(super) struct VipIndex {
    claims: HashMap<IpNet, Claims>,
    /// How many networks there are of each prefix length, longest first.
    v4: Lengths,
    v6: Lengths,
}

type Lengths = SmallVec<[(u8, u32); 2]>;

impl VipIndex {
    /// The services that claim the longest network that holds `ip`.
    pub(super) fn holding(&self, ip: IpAddr) -> Option<&Claims> {
        let lengths = if ip.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().find_map(|(length, _)| self.claims.get(&IpNet::new(ip, *length).ok()?.trunc()))
    }

    /// The services that claim `network` itself.
    pub(super) fn exactly(&self, network: IpNet) -> Option<&Claims> {
        self.claims.get(&network)
    }

    /// Every network that is claimed.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNet> {
        self.claims.keys().copied()
    }

    /// The service that a client in `client_namespace` reaches at `ip`: of the longest prefix, the one of its own
    /// namespace, or else the preferred.
    pub(super) fn get(&self, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        let claims = self.holding(ip)?;
        claims.iter().find(|service| &*service.key.namespace == client_namespace).or_else(|| claims.first())
    }

    pub(super) fn insert(&mut self, service: &Arc<Service>) {
        for vip in &service.vips {
            let vip = vip.trunc();
            let mut claims = self.claims.get(&vip).cloned().unwrap_or_default();
            if claims.is_empty() {
                self.count(vip, true);
            }
            insert_claim(&mut claims, service);
            self.claims.insert(vip, claims);
        }
    }

    pub(super) fn remove(&mut self, service: &Service) {
        for vip in &service.vips {
            let vip = vip.trunc();
            let Some(mut claims) = self.claims.get(&vip).cloned() else { continue };
            remove_claim(&mut claims, &service.key);
            if claims.is_empty() {
                self.claims.remove(&vip);
                self.count(vip, false);
            } else {
                self.claims.insert(vip, claims);
            }
        }
    }

    fn count(&mut self, vip: IpNet, more: bool) {
        let lengths = if vip.addr().is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        let length = vip.prefix_len();
        match (lengths.binary_search_by(|(known, _)| length.cmp(known)), more) {
            (Ok(at), true) => lengths[at].1 += 1,
            (Ok(at), false) if lengths[at].1 > 1 => lengths[at].1 -= 1,
            (Ok(at), false) => {
                lengths.remove(at);
            }
            (Err(at), true) => lengths.insert(at, (length, 1)),
            (Err(_), false) => {}
        }
    }
}

/// Puts `service` among those that claim the same address or name: Kubernetes Services first, then the oldest, then
/// by name and namespace.
pub(super) fn insert_claim(claims: &mut Claims, service: &Arc<Service>) {
    remove_claim(claims, &service.key);
    let at = claims.partition_point(|known| precedence(known) < precedence(service));
    claims.insert(at, service.clone());
}

pub(super) fn remove_claim(claims: &mut Claims, key: &ServiceKey) {
    claims.retain(|known| known.key != *key);
}

fn precedence(service: &Service) -> impl Ord {
    (!service.canonical, service.created, &*service.name, &*service.key.namespace, &*service.key.hostname)
}
