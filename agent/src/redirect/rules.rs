//! What the programs know of destinations, and the rules by which some are not captured.
//!
//! An update that stops half-way leaves more captured than wanted, never less: what bypasses is removed first and added
//! last, and nothing is decided by a destination that is missing from its map before the map is said to be complete.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use culvert_core::address::NetnsCookie;
use culvert_core::bypass::{Action, Destination, Rules};
use culvert_ebpf_common::{Destination as Class, Ip, PortKey, RuleKey, Settings};
use ipnet::IpNet;
use serde::Serialize;

use super::error::WriteError;
use super::pods::Shared;
use super::programs::Maps;
use super::record::to_key;
use super::steps::{absent_is_fine, map_error};

/// What every pod's connections are subject to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OutboundReport {
    /// Whether the programs know every destination of the mesh: without that, only namespaces are bypassed.
    pub complete: bool,
    /// Whether they refuse what nobody knows (`outboundTrafficPolicy` `REGISTRY_ONLY`).
    pub registry_only: bool,
    /// The rules for every pod, one line each.
    pub rules: Vec<String>,
}

impl Shared {
    pub(super) fn update_destinations(
        &self,
        changes: &mut dyn Iterator<Item = (IpNet, Option<Destination>)>,
    ) -> Result<(), WriteError> {
        let mut maps = self.lock_in_charge()?;
        for (network, destination) in changes {
            match destination {
                Some(destination) => insert(&mut maps, network, destination)?,
                None => absent_is_fine(maps.destinations.remove(&network_key(network)))?,
            }
        }
        Ok(())
    }

    pub(super) fn replace_destinations(
        &self,
        all: &mut dyn Iterator<Item = (IpNet, Destination)>,
    ) -> Result<(), WriteError> {
        let mut maps = self.lock_in_charge()?;
        let mut stale: HashSet<(u32, Ip)> =
            maps.destinations.keys().filter_map(Result::ok).map(|key| (key.prefix_len(), key.data())).collect();
        for (network, destination) in all {
            let key = network_key(network);
            stale.remove(&(key.prefix_len(), key.data()));
            insert(&mut maps, network, destination)?;
        }
        for (length, ip) in stale {
            absent_is_fine(maps.destinations.remove(&Key::new(length, ip)))?;
        }
        Ok(())
    }

    pub(super) fn set_outbound(&self, complete: bool, registry_only: bool) -> Result<(), WriteError> {
        let mut maps = self.lock_in_charge()?;
        let kept = settings(&maps).flags & Settings::RULES;
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = kept | flag(complete, Settings::COMPLETE) | flag(registry_only, Settings::REGISTRY_ONLY);
        Ok(maps.settings.set(0, Settings { flags }, 0).map_err(map_error)?)
    }

    pub(super) fn set_mesh_rules(&self, rules: &Rules) -> Result<(), WriteError> {
        let mut maps = self.lock_in_charge()?;
        set_rules(&mut maps, RuleKey::EVERYONE, rules)?;
        let others = settings(&maps).flags & !Settings::RULES;
        let flags = if rules.is_empty() { others } else { others | Settings::RULES };
        Ok(maps.settings.set(0, Settings { flags }, 0).map_err(map_error)?)
    }

    pub(super) fn outbound(&self) -> OutboundReport {
        let maps = self.lock();
        let flags = settings(&maps).flags;
        OutboundReport {
            complete: flags & Settings::COMPLETE != 0,
            registry_only: flags & Settings::REGISTRY_ONLY != 0,
            rules: describe(&maps, NetnsCookie(RuleKey::EVERYONE)),
        }
    }
}

/// Makes `rules` those of `netns`, or of everyone.
pub(super) fn set_rules(maps: &mut Maps, netns: u64, rules: &Rules) -> io::Result<()> {
    let wanted = |key: &Key<RuleKey>| {
        rules.addresses.iter().any(|(network, action)| {
            let wanted = rule_key(netns, *network);
            same(&wanted, key) && maps.address_rules.get(key, 0).is_ok_and(|value| value == value_of(*action))
        })
    };
    let stale: Vec<_> = addresses_of(maps, netns).into_iter().filter(|key| !wanted(key)).collect();
    for key in stale {
        absent_is_fine(maps.address_rules.remove(&key))?;
    }
    for key in ports_of(maps, netns).into_iter().filter(|key| !rules.ports.contains(&key.port())) {
        absent_is_fine(maps.port_rules.remove(&key))?;
    }
    // What captures before what bypasses around it.
    for action in [Action::Capture, Action::Bypass] {
        for (network, _) in rules.addresses.iter().filter(|(_, known)| *known == action) {
            maps.address_rules.insert(&rule_key(netns, *network), value_of(action), 0).map_err(map_error)?;
        }
    }
    rules.ports.iter().try_for_each(|port| maps.port_rules.insert(PortKey::new(netns, *port), 1, 0).map_err(map_error))
}

/// The rules of a network namespace, one line each.
pub(super) fn describe(maps: &Maps, netns: NetnsCookie) -> Vec<String> {
    let mut lines: Vec<String> = addresses_of(maps, netns.0)
        .iter()
        .map(|key| {
            let value = maps.address_rules.get(key, 0).unwrap_or(RuleKey::CAPTURE);
            let verb = if value == RuleKey::BYPASS { "bypass" } else { "capture" };
            format!("{verb} {}", network(key))
        })
        .collect();
    lines.sort();
    let mut ports: Vec<u16> = ports_of(maps, netns.0).iter().map(PortKey::port).collect();
    ports.sort_unstable();
    lines.extend(ports.into_iter().map(|port| format!("bypass port {port}")));
    lines
}

fn settings(maps: &Maps) -> Settings {
    maps.settings.get(&0, 0).unwrap_or_default()
}

fn insert(maps: &mut Maps, network: IpNet, destination: Destination) -> io::Result<()> {
    let class = match destination {
        Destination::Mesh => Class::Mesh,
        Destination::Known => Class::Known,
        Destination::Named => Class::Named,
    };
    maps.destinations.insert(&network_key(network), class as u8, 0).map_err(map_error)
}

fn addresses_of(maps: &Maps, netns: u64) -> Vec<Key<RuleKey>> {
    maps.address_rules.keys().filter_map(Result::ok).filter(|key| key.data().netns == netns).collect()
}

fn ports_of(maps: &Maps, netns: u64) -> Vec<PortKey> {
    maps.port_rules.keys().filter_map(Result::ok).filter(|key| key.netns == netns).collect()
}

fn value_of(action: Action) -> u8 {
    match action {
        Action::Bypass => RuleKey::BYPASS,
        Action::Capture => RuleKey::CAPTURE,
    }
}

fn network_key(network: IpNet) -> Key<Ip> {
    Key::new(length(network), to_key(network.trunc().addr()))
}

fn rule_key(netns: u64, network: IpNet) -> Key<RuleKey> {
    Key::new(64 + length(network), RuleKey { netns, ip: to_key(network.trunc().addr()) })
}

/// The length of a prefix of an address as maps hold it.
fn length(network: IpNet) -> u32 {
    let mapped = if network.addr().is_ipv4() { 96 } else { 0 };
    mapped + u32::from(network.prefix_len())
}

fn same(a: &Key<RuleKey>, b: &Key<RuleKey>) -> bool {
    (a.prefix_len(), a.data()) == (b.prefix_len(), b.data())
}

fn network(key: &Key<RuleKey>) -> String {
    let (length, ip) = (key.prefix_len().saturating_sub(64), IpAddr::from(key.data().ip).to_canonical());
    format!("{ip}/{}", if ip.is_ipv4() { length.saturating_sub(96) } else { length })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_both_families_are_of_mapped_addresses() {
        for (text, length) in [("10.0.0.0/8", 104), ("192.0.2.1/32", 128), ("0.0.0.0/0", 96), ("fd00::/16", 16)] {
            let parsed: IpNet = text.parse().unwrap();
            assert_eq!(network_key(parsed).prefix_len(), length, "{text}");
            assert_eq!(network(&rule_key(7, parsed)), text);
        }
        assert_eq!(rule_key(7, "192.0.2.1/32".parse().unwrap()).prefix_len(), RuleKey::WHOLE);
    }
}
