//! `socket()` in the pods: refuse what the connect hooks cannot see.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;
use culvert_ebpf_common::verdict;

use crate::maps::{count, is_agent, pod};

const REFUSE: i32 = 0;
const PASS: i32 = 1;

#[cgroup_sock(sock_create)]
pub fn create_socket(ctx: SockContext) -> i32 {
    // SAFETY: the helper takes the context it is called with.
    if pod(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }).is_none() {
        return PASS;
    }
    if is_agent() {
        return PASS;
    }
    // SAFETY: the context is valid for the program's run.
    let (family, socket_type, protocol) = unsafe {
        (
            (&raw const (*ctx.sock).family).read_volatile(),
            (&raw const (*ctx.sock).type_).read_volatile(),
            (&raw const (*ctx.sock).protocol).read_volatile(),
        )
    };
    match verdict::socket(family, socket_type, protocol) {
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
