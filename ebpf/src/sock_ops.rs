//! Host sockets that connect to pods of this node (kubelet probes): record who they are, so that they reach the
//! application as they would without a mesh.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use culvert_ebpf_common::{AddressKey, Counter, HBONE_PORT, Probe};

use crate::context::address;
use crate::maps::{ADDRESSES, HOST_NETNS, PROBES, count};

const TCP_CLOSE: u32 = 7;

#[sock_ops]
pub fn host_socket(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_STATE_CB => {
            if ctx.arg(1) == TCP_CLOSE {
                let _ = PROBES.remove(&probe(ctx.ops));
            }
        }
        _ => {}
    }
    0
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    // SAFETY: the helper takes the context it is called with.
    if unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != HOST_NETNS.load() {
        return;
    }
    let probe = probe(ctx.ops);
    let key = AddressKey { netns: AddressKey::ANY, ip: probe.pod };
    // The node itself has no business in a tunnel, which is for peers with a certificate.
    if probe.pod_port == HBONE_PORT || ADDRESSES.get_ptr(&key).is_none() {
        return;
    }
    // Without the callback the row would stay until the map is full: better a probe that is refused and counted.
    if ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_err()
        || PROBES.insert(&probe, &1, 0).is_err()
    {
        count(Counter::ProbeRecord);
    }
}

/// The connection, as `sk_lookup` in the pod's namespace sees it.
#[inline(always)]
fn probe(ops: *const bpf_sock_ops) -> Probe {
    // SAFETY: the context is valid for the program's run; volatile, or reads merge into what the verifier refuses.
    unsafe {
        let family = (&raw const (*ops).family).read_volatile();
        let pod = address(family, &raw const (*ops).remote_ip4, (&raw const (*ops).remote_ip6).cast());
        let host = address(family, &raw const (*ops).local_ip4, (&raw const (*ops).local_ip6).cast());
        Probe {
            pod,
            host,
            // In network order in the upper half of the word; the local one in host order.
            pod_port: u32::from_be((&raw const (*ops).remote_port).read_volatile()) as u16,
            host_port: (&raw const (*ops).local_port).read_volatile() as u16,
        }
    }
}
