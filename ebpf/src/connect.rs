//! `connect()` of the pods' sockets, and datagrams of those that are not connected: mark what is to be led to the agent,
//! and refuse what is to be led there while there is no agent.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_setsockopt};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use culvert_ebpf_common::verdict::{self, Connect, SOCK_DGRAM, SOCK_STREAM};
use culvert_ebpf_common::{AddressKey, Counter, DNS_PORT, Ip, ListenerKey, Pod, Role, STEERING_MARK, mapped};

use crate::context::words;
use crate::maps::{self, ADDRESSES, count, is_agent, is_listening, pod, settings};

const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;
const SO_MARK: i32 = 36;

const REFUSE: i32 = 0;
const PASS: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn connect_v4(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: the context is valid for the program's run. Volatile, or reads merge into what the verifier refuses.
    let destination = mapped(unsafe { (&raw const (*addr).user_ip4).read_volatile() }.to_ne_bytes());
    // SAFETY: as above.
    decide(&ctx, &destination, || unsafe { (&raw mut (*addr).user_ip4).write_volatile(LOCALHOST) })
}

/// Also for IPv4 destinations of AF_INET6 sockets, which come mapped.
#[cgroup_sock_addr(connect6)]
pub fn connect_v6(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: as above.
    let destination = unsafe { words((&raw const (*addr).user_ip6).cast()) };
    let is_mapped = verdict::is_mapped(&destination);
    let to_loopback = || {
        // SAFETY: as above.
        unsafe {
            let ip = (&raw mut (*addr).user_ip6).cast::<u32>();
            if is_mapped {
                ip.add(3).write_volatile(LOCALHOST);
            } else {
                ip.write_volatile(0);
                ip.add(1).write_volatile(0);
                ip.add(2).write_volatile(0);
                ip.add(3).write_volatile(1u32.to_be());
            }
        }
    };
    decide(&ctx, &destination, to_loopback)
}

/// Datagrams of sockets that are not connected; for IPv4, of AF_INET6 sockets as well.
#[cgroup_sock_addr(sendmsg4)]
pub fn send_v4(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: as above.
    let destination = mapped(unsafe { (&raw const (*addr).user_ip4).read_volatile() }.to_ne_bytes());
    send(&ctx, &destination)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn send_v6(ctx: SockAddrContext) -> i32 {
    let addr = ctx.sock_addr;
    // SAFETY: as above.
    let destination = unsafe { words((&raw const (*addr).user_ip6).cast()) };
    send(&ctx, &destination)
}

#[inline(always)]
fn send(ctx: &SockAddrContext, destination: &Ip) -> i32 {
    // SAFETY: the context is valid for the program's run. In network order, in the lower half of the word.
    let port = u16::from_be(unsafe { (&raw const (*ctx.sock_addr).user_port).read_volatile() } as u16);
    if port != DNS_PORT {
        return PASS;
    }
    // SAFETY: the helper takes the context it is called with.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let Some(pod) = pod(netns) else { return PASS };
    if is_agent() {
        return PASS;
    }
    // SAFETY: the context and the socket it holds are valid for the program's run.
    let bound_device = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() {
            return REFUSE;
        }
        (*sk).bound_dev_if
    };
    let is_own = || {
        let key = AddressKey { netns, ip: *destination };
        ADDRESSES.get_ptr(&key).is_some()
    };
    datagram(netns, &pod, destination, port, bound_device, is_own)
}

#[inline(always)]
fn datagram(
    netns: u64,
    pod: &Pod,
    destination: &Ip,
    port: u16,
    bound_device: u32,
    is_own: impl FnOnce() -> bool,
) -> i32 {
    if !pod.captures_dns() {
        return PASS;
    }
    let is_served = || is_listening(&ListenerKey::new(netns, Role::DnsUdp));
    match verdict::dns_datagram(destination, port, bound_device, is_served, is_own) {
        Ok(None) => PASS,
        Ok(Some(counter)) => {
            count(counter);
            PASS
        }
        Err(counter) => {
            count(counter);
            REFUSE
        }
    }
}

/// 127.0.0.1 in network order.
const LOCALHOST: u32 = 0x7f00_0001u32.to_be();

#[inline(always)]
fn decide(ctx: &SockAddrContext, destination: &Ip, to_loopback: impl FnOnce()) -> i32 {
    // SAFETY: the helper takes the context it is called with.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let Some(pod) = pod(netns) else { return PASS };
    if is_agent() {
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
    let is_own = || {
        let key = AddressKey { netns, ip: *destination };
        ADDRESSES.get_ptr(&key).is_some()
    };
    // SAFETY: as above. In network order, in the lower half of the word.
    let port = u16::from_be(unsafe { (&raw const (*ctx.sock_addr).user_port).read_volatile() } as u16);
    if socket_type == SOCK_DGRAM {
        return datagram(netns, &pod, destination, port, bound_device, is_own);
    }
    if socket_type != SOCK_STREAM {
        return PASS;
    }
    // Asked only for what is captured, or bypassed by name: what needs no agent does not pay for finding its listener.
    let is_served = || is_listening(&ListenerKey::new(netns, Role::Outbound));
    let outward = || {
        let settings = settings();
        verdict::outward(
            settings,
            maps::destination(destination),
            is_served,
            pod.captures_dns() && port == DNS_PORT,
            || maps::bypasses_port(netns, &pod, &settings, port),
            || maps::bypasses_address(netns, &pod, &settings, destination),
        )
    };
    match verdict::connect(destination, mark, bound_device, is_served, is_own, outward) {
        Connect::Pass => PASS,
        Connect::Bypass(counter) => {
            count(counter);
            if mark == STEERING_MARK { set_mark(ctx, 0) } else { PASS }
        }
        Connect::Unmark => set_mark(ctx, 0),
        Connect::Forbid(counter) => {
            count(counter);
            REFUSE
        }
        Connect::Refuse { unbind, counter } => {
            count(counter);
            if unbind && !free_from_device(ctx) {
                return REFUSE;
            }
            // Nobody can listen on port 0: the caller gets its ECONNREFUSED, which it knows what to do with. (The
            // helper that sets an errno is there for these hooks since Linux 6.1 only.)
            to_loopback();
            // SAFETY: the context is valid for the program's run.
            unsafe { (&raw mut (*ctx.sock_addr).user_port).write_volatile(0) };
            set_mark(ctx, 0)
        }
        Connect::Steer { unbind } => {
            if unbind && !free_from_device(ctx) {
                return REFUSE;
            }
            set_mark(ctx, STEERING_MARK)
        }
    }
}

/// Needs CAP_NET_RAW of the caller on some kernels: without, the connection is refused.
#[inline(always)]
fn free_from_device(ctx: &SockAddrContext) -> bool {
    let is_free = set(ctx, SO_BINDTODEVICE, &mut 0) == 0;
    count(if is_free { Counter::DeviceUnbound } else { Counter::DeviceBinding });
    is_free
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
