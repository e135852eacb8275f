//! Connections and datagrams that arrive in a pod's network namespace: hand them to the agent's listeners.
//!
//! One instance a pod, loaded with the pod's cookie. The addresses alone do not tell pods apart: where Q calls P on the
//! same node, what Q sends, seen in Q's namespace, has the same addresses and interface as what the agent sends to the
//! application, seen in P's.

use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_NO_REUSEPORT, bpf_sk_lookup, sk_action};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use culvert_ebpf_common::verdict::{self, Lookup};
use culvert_ebpf_common::{AddressKey, Counter, DNS_PORT, Ip, ListenerKey, Probe};

use crate::context::address;
use crate::maps::{ADDRESSES, LISTENERS, POD_NETNS, PROBES, count, pod};

const LOOPBACK_IFINDEX: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const PASS: u32 = sk_action::SK_PASS;
const DROP: u32 = sk_action::SK_DROP;

#[sk_lookup]
pub fn arrive(ctx: SkLookupContext) -> u32 {
    // SAFETY: the context is valid for the program's run; volatile, or reads merge into what the verifier refuses.
    let (protocol, ingress, local_port) = unsafe {
        (
            (&raw const (*ctx.lookup).protocol).read_volatile(),
            (&raw const (*ctx.lookup).ingress_ifindex).read_volatile(),
            (&raw const (*ctx.lookup).local_port).read_volatile() as u16,
        )
    };
    if protocol != IPPROTO_TCP && (protocol != IPPROTO_UDP || local_port != DNS_PORT) {
        return PASS;
    }
    let netns = POD_NETNS.load();
    let Some(pod) = pod(netns) else { return PASS };
    let local = local_ip(ctx.lookup);
    let is_own = || {
        let key = AddressKey { netns, ip: local };
        ADDRESSES.get_ptr(&key).is_some()
    };
    let is_probe = || {
        let probe = Probe {
            pod: local,
            host: remote_ip(ctx.lookup),
            pod_port: local_port,
            // SAFETY: as above.
            host_port: u16::from_be(unsafe { (&raw const (*ctx.lookup).remote_port).read_volatile() }),
        };
        PROBES.get_ptr(&probe).is_some()
    };
    let via_loopback = ingress == LOOPBACK_IFINDEX;
    let captures_dns = pod.captures_dns();
    let found = if protocol == IPPROTO_UDP {
        verdict::lookup_datagram(via_loopback, &local, local_port, captures_dns, is_own)
    } else {
        verdict::lookup(via_loopback, &local, local_port, captures_dns, pod.bypasses_inbound(), is_own, is_probe)
    };
    match found {
        Lookup::Pass(None) => PASS,
        Lookup::Pass(Some(counter)) => {
            count(counter);
            PASS
        }
        Lookup::Drop(counter) => {
            count(counter);
            DROP
        }
        Lookup::Assign(role) => {
            let key = ListenerKey::new(netns, role);
            match LISTENERS.redirect_sk_lookup(&ctx, &key, u64::from(BPF_SK_LOOKUP_F_NO_REUSEPORT)) {
                Ok(()) => {
                    count(verdict::captured(role));
                    PASS
                }
                Err(NO_ENTRY) => {
                    count(verdict::no_listener(role));
                    DROP
                }
                // Another instance, of the agent before or after this one, has assigned it already.
                Err(EXISTS) => PASS,
                Err(_) => {
                    count(Counter::Assign);
                    DROP
                }
            }
        }
    }
}

const NO_ENTRY: i32 = -2;
const EXISTS: i32 = -17;

#[inline(always)]
fn local_ip(ctx: *const bpf_sk_lookup) -> Ip {
    // SAFETY: the context is valid for the program's run.
    unsafe {
        let family = (&raw const (*ctx).family).read_volatile();
        address(family, &raw const (*ctx).local_ip4, (&raw const (*ctx).local_ip6).cast())
    }
}

#[inline(always)]
fn remote_ip(ctx: *const bpf_sk_lookup) -> Ip {
    // SAFETY: the context is valid for the program's run.
    unsafe {
        let family = (&raw const (*ctx).family).read_volatile();
        address(family, &raw const (*ctx).remote_ip4, (&raw const (*ctx).remote_ip6).cast())
    }
}
