//! The maps, shared by every program of one agent through their pins, and the constants it is loaded with.

use core::ffi::c_void;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::helpers::generated::{bpf_map_lookup_elem, bpf_sk_release};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray, SockHash};
use culvert_ebpf_common::{AddressKey, Counter, ListenerKey, MAX_PODS, Pod, PodRecord, Probe};

/// The id of the agent's own cgroup, which no pod shares: its sockets are not steered.
#[unsafe(no_mangle)]
pub static AGENT_CGROUP: Global<u64> = Global::new(0);

/// The cookie of the node's network namespace.
#[unsafe(no_mangle)]
pub static HOST_NETNS: Global<u64> = Global::new(0);

/// The cookie of the network namespace that this instance of `sk_lookup` is attached to: the helper for it is not
/// there in such programs.
#[unsafe(no_mangle)]
pub static POD_NETNS: Global<u64> = Global::new(0);

/// The captured pods, by the cookie of their network namespace.
#[map]
pub static PODS: HashMap<u64, Pod> = HashMap::pinned(MAX_PODS, BPF_F_NO_PREALLOC);

/// The addresses of each pod's namespace, and of all pods together.
#[map]
pub static ADDRESSES: HashMap<AddressKey, u8> = HashMap::pinned(MAX_PODS * 16, BPF_F_NO_PREALLOC);

/// The agent's listeners. The kernel removes them when the agent dies.
#[map]
pub static LISTENERS: SockHash<ListenerKey> = SockHash::pinned(MAX_PODS * 3, 0);

/// Connections of host sockets to pods.
#[map]
pub static PROBES: LruHashMap<Probe, u8> = LruHashMap::pinned(16384, 0);

/// `Counter`s.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(Counter::ALL.len() as u32, 0);

/// The agent's memory of what it did to pods, kept beside what it did.
#[map]
pub static RECORDS: HashMap<u64, PodRecord> = HashMap::pinned(MAX_PODS, BPF_F_NO_PREALLOC);

/// Adds one.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the map has returned a valid slot of this CPU, on which nothing else of ours runs meanwhile.
        unsafe { *value += 1 };
    }
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
