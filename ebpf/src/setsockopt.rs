//! `setsockopt()` in the pods: refuse what would lead a socket past the other hooks after they have decided.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::cgroup_sockopt;
use aya_ebpf::programs::SockoptContext;
use culvert_ebpf_common::verdict;

use crate::maps::{count, is_agent, pod};

const REFUSE: i32 = 0;
const PASS: i32 = 1;

/// The longest value that the kernel shows to programs.
const PAGE: i32 = 4096;

#[cgroup_sockopt(setsockopt)]
pub fn set_option(ctx: SockoptContext) -> i32 {
    // SAFETY: the context is valid for the program's run; volatile, or accesses merge into what the verifier refuses.
    unsafe {
        // Else the kernel fails the call, because the program has not seen the whole value.
        if (&raw const (*ctx.sockopt).optlen).read_volatile() > PAGE {
            (&raw mut (*ctx.sockopt).optlen).write_volatile(0);
        }
    }
    // SAFETY: the helper takes the context it is called with.
    if pod(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }).is_none() {
        return PASS;
    }
    if is_agent() {
        return PASS;
    }
    // SAFETY: the context and the socket it holds are valid for the program's run.
    let (family, socket_type, state, level, name) = unsafe {
        let sk = (*ctx.sockopt).__bindgen_anon_1.sk;
        if sk.is_null() {
            return REFUSE;
        }
        (
            (&raw const (*sk).family).read_volatile(),
            (&raw const (*sk).type_).read_volatile(),
            (&raw const (*sk).state).read_volatile(),
            (&raw const (*ctx.sockopt).level).read_volatile() as u32,
            (&raw const (*ctx.sockopt).optname).read_volatile() as u32,
        )
    };
    match verdict::option(family, socket_type, state, level, name) {
        Ok(()) => PASS,
        Err(counter) => {
            count(counter);
            REFUSE
        }
    }
}
