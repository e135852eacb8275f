//! What the programs counted, and how each pod is captured.

use std::net::IpAddr;
use std::path::PathBuf;

use culvert_core::address::NetnsCookie;
use culvert_ebpf_common::{Counter as Counted, ListenerKey, Role};
use serde::Serialize;

use super::netlink::Netlink;
use super::pods::{Shared, records};
use super::programs::Maps;
use super::record::to_spec;
use super::routes;
use super::rules;
use super::sysctls;

/// One counter of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counter {
    /// What happened: `captured`, `passed`, `refused`, `failed`.
    pub name: &'static str,
    /// Where and why.
    pub reason: &'static str,
    /// How often since the programs were first loaded on this node.
    pub value: u64,
}

/// How one pod is captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodReport {
    /// The pod.
    pub uid: String,
    /// Its network namespace.
    pub netns: PathBuf,
    /// The kernel's name for it.
    pub cookie: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its row is written.
    pub captured: bool,
    /// Whether what it receives is left alone.
    pub bypass_inbound: bool,
    /// Whether what it asks of DNS is captured.
    pub capture_dns: bool,
    /// Its own rules about destinations that are not captured, one line each.
    pub outbound_rules: Vec<String>,
    /// The programs that serve it, each with the pin of its link.
    pub programs: Vec<String>,
    /// What is listened for in its network namespace.
    pub listeners: Vec<&'static str>,
    /// The routing rules that lead what it sends to those listeners.
    pub rules: Vec<String>,
    /// What is wrong, if anything: one line each.
    pub problems: Vec<String>,
}

impl Shared {
    pub(super) fn counters(&self) -> Vec<Counter> {
        let maps = self.lock();
        let value = |counted: Counted| {
            let per_cpu = maps.counters.get(&(counted as u32), 0);
            per_cpu.map_or(0, |values| values.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value)))
        };
        let all = Counted::ALL.iter();
        all.map(|c| Counter { name: c.name(), reason: c.reason(), value: value(*c) }).collect()
    }

    /// The links that serve a pod: those of the node, and its own.
    fn programs(&self, cookie: NetnsCookie) -> Vec<String> {
        let entries = std::fs::read_dir(self.pins().links()).into_iter().flatten().flatten();
        let mut links: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        links.sort();
        let own = Some(self.pins().pod(cookie)).filter(|pin| pin.exists());
        let name = |pin: &PathBuf| {
            let file = pin.file_name().unwrap_or_default().to_string_lossy();
            format!("{file} ({})", pin.display())
        };
        links.iter().map(name).chain(own.map(|pin| format!("arrive ({})", pin.display()))).collect()
    }

    pub(super) fn report(&self) -> Vec<PodReport> {
        let maps = self.lock();
        let all = records(&maps, |_| true).into_iter();
        all.map(|(cookie, record)| {
            let spec = to_spec(&record);
            let captured = maps.pods.get(&cookie.0, 0).is_ok();
            let mut problems = Vec::new();
            let mut rules = Vec::new();
            match self.netns_of(&spec, cookie) {
                None => problems.push("its network namespace is gone".to_owned()),
                Some(netns) => match netns
                    .enter(Netlink::open)
                    .and_then(|netlink| routes::inspect(&mut netlink?, captured && spec.capture_dns))
                {
                    Ok((present, missing)) => {
                        rules = present;
                        problems.extend(missing.into_iter().map(str::to_owned));
                        for off in sysctls::off(&netns).unwrap_or_default() {
                            problems.push(format!("{off} is 0 in the pod, it should be 1"));
                        }
                    }
                    Err(error) => problems.push(format!("its routing rules cannot be read: {error}")),
                },
            }
            if !self.pins().pod(cookie).exists() {
                problems.push("the socket lookup program is not pinned: what it receives is not captured".to_owned());
            }
            let (listeners, silent) = listeners(&maps, cookie.0, spec.capture_dns);
            problems.extend(silent.into_iter().map(|role| format!("nobody listens: {role} connections are refused")));
            if !captured {
                problems.push("it is prepared but not captured yet".to_owned());
            }
            PodReport {
                uid: spec.uid,
                netns: spec.netns,
                cookie: cookie.0,
                addresses: spec.addresses,
                captured,
                bypass_inbound: spec.bypass_inbound,
                capture_dns: spec.capture_dns,
                outbound_rules: rules::describe(&maps, cookie),
                programs: self.programs(cookie),
                listeners,
                rules,
                problems,
            }
        })
        .collect()
    }
}

/// The roles that are listened for, and those that are not. Values of this map are not readable everywhere, its keys
/// are.
fn listeners(maps: &Maps, cookie: u64, dns: bool) -> (Vec<&'static str>, Vec<&'static str>) {
    let keys: Vec<ListenerKey> = maps.listeners.keys().filter_map(Result::ok).collect();
    let mut roles = vec![(Role::Outbound, "outbound"), (Role::Hbone, "HBONE"), (Role::Plaintext, "plaintext")];
    if dns {
        roles.extend([(Role::DnsUdp, "DNS over UDP"), (Role::DnsTcp, "DNS over TCP")]);
    }
    let (present, silent): (Vec<_>, Vec<_>) =
        roles.into_iter().partition(|(role, _)| keys.contains(&ListenerKey::new(cookie, *role)));
    let name = |(_, name)| name;
    (present.into_iter().map(name).collect(), silent.into_iter().map(name).collect())
}
