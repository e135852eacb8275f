//! What the mesh knows of addresses, for those who decide by address alone, and which addresses a change is about.

use std::collections::HashSet;

use ipnet::IpNet;

use super::{Mesh, Snapshot};
use crate::bypass::Destination;
use crate::service::Service;
use crate::workload::{Protocol, Workload};

/// Beyond as many addresses, looking at all of them is not dearer.
const MAX_TOUCHED: usize = 4096;

/// The addresses about which something may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// These: each is an address or a network of [`Snapshot::destinations`], or was.
    Some(HashSet<IpNet>),
    /// Any.
    All,
}

impl Default for Touched {
    fn default() -> Self {
        Self::Some(HashSet::new())
    }
}

impl Touched {
    pub(super) fn add(&mut self, network: IpNet) {
        let Self::Some(networks) = self else { return };
        // What is known of an address depends on the network around it.
        if network.prefix_len() != network.max_prefix_len() || networks.len() >= MAX_TOUCHED {
            *self = Self::All;
        } else {
            networks.insert(network);
        }
    }

    pub(super) fn add_service(&mut self, service: &Service) {
        for vip in &service.vips {
            self.add(vip.trunc());
        }
    }
}

impl Mesh {
    /// The addresses about which something may have changed since this was asked last.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }
}

impl Snapshot {
    /// What is known of `network`: an address, or a network that a service claims as it is.
    ///
    /// Where several claim it, it is in the mesh if one of them is, and bypassed by name only if all are: who is meant
    /// depends on who asks.
    pub fn destination(&self, network: IpNet) -> Option<Destination> {
        let network = network.trunc();
        let is_address = network.prefix_len() == network.max_prefix_len();
        let claims = if is_address { self.vips.holding(network.addr()) } else { self.vips.exactly(network) };
        let workload = is_address.then(|| self.addresses.get(&network.addr())).flatten();
        let services = claims.into_iter().flatten().map(|service| self.service_destination(service));
        services.chain(workload.map(|workload| self.workload_destination(workload))).reduce(either)
    }

    /// Every address and network of which anything is known.
    pub fn destinations(&self) -> impl Iterator<Item = (IpNet, Destination)> {
        let addresses = self.addresses.keys().map(|ip| IpNet::from(*ip));
        let vips = self.vips.networks().filter(|network| {
            network.prefix_len() != network.max_prefix_len() || !self.addresses.contains_key(&network.addr())
        });
        addresses.chain(vips).filter_map(|network| Some((network, self.destination(network)?)))
    }

    fn service_destination(&self, service: &Service) -> Destination {
        if self.options.outbound_bypass.namespaces.contains(&service.key.namespace) {
            return Destination::Named;
        }
        let speaks_hbone = || self.endpoints(&service.key).any(|e| e.workload.protocol == Protocol::Hbone);
        if service.waypoint.is_some() || speaks_hbone() { Destination::Mesh } else { Destination::Known }
    }

    fn workload_destination(&self, workload: &Workload) -> Destination {
        if self.options.outbound_bypass.namespaces.contains(&workload.namespace) {
            return Destination::Named;
        }
        let in_mesh = workload.waypoint.is_some() || workload.protocol == Protocol::Hbone;
        if in_mesh { Destination::Mesh } else { Destination::Known }
    }
}

fn either(a: Destination, b: Destination) -> Destination {
    match (a, b) {
        (Destination::Mesh, _) | (_, Destination::Mesh) => Destination::Mesh,
        (Destination::Named, Destination::Named) => Destination::Named,
        _ => Destination::Known,
    }
}
