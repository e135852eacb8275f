//! The eBPF programs: one hook family a file, each reads its context and does what `culvert_ebpf_common::verdict` says.
//!
//! Every program is idempotent: on an agent's restart the new one runs beside the old for a moment.

#![no_std]
#![no_main]

mod connect;
mod context;
mod maps;
mod setsockopt;
mod sk_lookup;
mod sock_create;
mod sock_ops;

/// The helpers are GPL-only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
