//! The maps, shared by every program of one agent through their pins, and the constants it is loaded with.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_map_lookup_elem, bpf_sk_release};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, SockHash};
use culvert_ebpf_common::{
    AddressKey, Counter, Destination, Ip, ListenerKey, MAX_AGENTS, MAX_DESTINATIONS, MAX_PODS, MAX_RULES, Pod,
    PodRecord, PortKey, Probe, Role, RuleKey, Settings,
};

/// The cookie of the node's network namespace.
#[unsafe(no_mangle)]
pub static HOST_NETNS: Global<u64> = Global::new(0);

/// The cookie of the network namespace that this instance of `sk_lookup` is attached to: the helper for it is not
/// there in such programs.
#[unsafe(no_mangle)]
pub static POD_NETNS: Global<u64> = Global::new(0);

/// The ids of the agents' cgroups, which no pod shares: their sockets are not steered. More than one while an agent is
/// replaced. The value is the agent's turn, which the programs do not read.
#[map]
pub static AGENTS: HashMap<u64, u64> = HashMap::pinned(MAX_AGENTS, BPF_F_NO_PREALLOC);

/// The captured pods, by the cookie of their network namespace.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::pinned(MAX_PODS, BPF_F_NO_PREALLOC);

/// The addresses of each pod's namespace, and of all pods together.
#[map]
pub static ADDRESSES: HashMap<AddressKey, u8> = HashMap::pinned(MAX_PODS * 16, BPF_F_NO_PREALLOC);

/// The agent's listeners. The kernel removes them when the agent dies.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::pinned(MAX_PODS * Role::ALL.len() as u32, 0);

/// Connections of host sockets to pods.
#[map]
pub static PROBES: LruHashMap<Probe, u8> = LruHashMap::pinned(16384, 0);

/// `Counter`s.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::ALL.len() as u32, 0);

/// The agent's memory of what it did to pods, kept beside what it did.
#[map]
pub static RECORDS: HashMap<u64, PodRecord> = HashMap::pinned(MAX_PODS, BPF_F_NO_PREALLOC);

/// What holds for every pod.
#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// What is known of destinations.
#[map]
pub static DESTINATIONS: LpmTrie<Ip, u8> = LpmTrie::pinned(MAX_DESTINATIONS, 0);

/// Outbound rules about addresses, of each pod and of all.
#[map]
pub static ADDRESS_RULES: LpmTrie<RuleKey, u8> = LpmTrie::pinned(MAX_RULES, 0);

/// Outbound rules about ports, of each pod and of all.
#[map]
pub static PORT_RULES: HashMap<PortKey, u8> = HashMap::pinned(MAX_RULES, BPF_F_NO_PREALLOC);

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map has returned a valid slot of this CPU, on which nothing else of ours runs meanwhile.
        unsafe { *value += 1 };
    }
}

/// Whether it is an agent whose call this program runs in.
#[inline(always)]
pub fn is_agent() -> bool {
    // SAFETY: no arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    AGENTS.get_ptr(&cgroup).is_some()
}

/// Whether the agent has this listener.
#[inline(always)]
pub fn is_listening(key: &ListenerKey) -> bool {
    // SAFETY: the map and the key are what the helper wants; what it finds is given back at once.
    unsafe {
        let listener =
            bpf_map_lookup_elem((&raw const LISTENERS).cast_mut().cast(), (&raw const *key).cast::<c_void>());
        !listener.is_null() && {
            bpf_sk_release(listener);
            true
        }
    }
}

/// The pod in the network namespace with this cookie.
#[inline(always)]
pub fn pod(netns: u64) -> Option<Pod> {
    // SAFETY: rows are replaced whole and freed only after a grace period.
    unsafe { PODS.get(&netns) }.copied()
}

/// What holds for every pod.
#[inline(always)]
pub fn settings() -> Settings {
    SETTINGS.get(0).copied().unwrap_or_default()
}

/// What is known of `ip`.
#[inline(always)]
pub fn destination(ip: &Ip) -> Option<Destination> {
    DESTINATIONS.get(Key::new(128, *ip)).copied().map(Destination::from_value)
}

/// Whether a rule of the pod, or else of everyone, bypasses `port`.
#[inline(always)]
pub fn bypasses_port(netns: u64, pod: &Pod, settings: &Settings, port: u16) -> bool {
    let is_there = |netns| {
        let key = PortKey::new(netns, port);
        PORT_RULES.get_ptr(&key).is_some()
    };
    (pod.has_rules() && is_there(netns)) || (settings.flags & Settings::RULES != 0 && is_there(RuleKey::EVERYONE))
}

/// Whether the longest rule of the pod, or else of everyone, bypasses `ip`.
#[inline(always)]
pub fn bypasses_address(netns: u64, pod: &Pod, settings: &Settings, ip: &Ip) -> bool {
    let rule = |netns| ADDRESS_RULES.get(Key::new(RuleKey::WHOLE, RuleKey { netns, ip: *ip })).copied();
    let own = if pod.has_rules() { rule(netns) } else { None };
    let found = match own {
        None if settings.flags & Settings::RULES != 0 => rule(RuleKey::EVERYONE),
        own => own,
    };
    found == Some(RuleKey::BYPASS)
}
