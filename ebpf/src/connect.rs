//! `connect()` of the pods' sockets: mark those that are to be led to the agent.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_setsockopt};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use culvert_ebpf_common::verdict::{self, Connect};
use culvert_ebpf_common::{Counter, Ip, STEERING_MARK, mapped};

use crate::context::words;
use crate::maps::{AGENT_CGROUP, count, pod};

const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;

const REFUSE: i32 = 0;
const PASS: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn connect_v4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid for the program's run. Volatile, or reads merge into what the verifier refuses.
    let destination = mapped(unsafe { (&raw const (*ctx.sock_addr).user_ip4).read_volatile() }.to_ne_bytes());
    decide(&ctx, &destination)
}

/// Also for IPv4 destinations of AF_INET6 sockets, which come mapped.
#[cgroup_sock_addr(connect6)]
pub fn connect_v6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as above.
    let destination = unsafe { words((&raw const (*ctx.sock_addr).user_ip6).cast()) };
    decide(&ctx, &destination)
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, destination: &Ip) -> i32 {
    // SAFETY: the helper takes the context it is called with.
    if pod(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }).is_none() {
        return PASS;
    }
    // SAFETY: no arguments.
    if unsafe { bpf_get_current_cgroup_id() } == AGENT_CGROUP.load() {
        return PASS;
    }
    // SAFETY: the context and the socket it holds are valid for the program's run.
    let (socket_type, mark, bound_device) = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() {
            return REFUSE;
        }
        ((*ctx.sock_addr).type_, (*sk).mark, (*sk).bound_dev_if)
    };
    match verdict::connect(socket_type, destination, mark, bound_device) {
        Connect::Pass => PASS,
        Connect::Unmark => set_mark(ctx, 0),
        Connect::Steer { unbind } => {
            if unbind {
                // Needs CAP_NET_RAW of the caller on some kernels: without, the connection is refused.
                if set(ctx, SO_BINDTODEVICE, &mut 0) != 0 {
                    count(Counter::DeviceBinding);
                    return REFUSE;
                }
                count(Counter::DeviceUnbound);
            }
            set_mark(ctx, STEERING_MARK)
        }
    }
}

#[inline(always)]
fn set_mark(ctx: &SockAddrContext, mut mark: u32) -> i32 {
    if set(ctx, SO_MARK, &mut mark) != 0 {
        count(Counter::Mark);
        return REFUSE;
    }
    PASS
}

#[inline(always)]
fn set(ctx: &SockAddrContext, option: i32, value: &mut u32) -> i64 {
    // SAFETY: `value` is 4 bytes on the stack.
    unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, option, (&raw mut *value).cast::<c_void>(), 4) }
}
