//! Reading contexts the way the verifier accepts.

use culvert_ebpf_common::verdict::AF_INET;
use culvert_ebpf_common::{Ip, mapped};

/// An IPv6 address: one word at a time and volatile, or the compiler merges the reads into wider ones, which are
/// refused.
///
/// # Safety
///
/// `ip` points to four words of the context.
#[inline(always)]
pub unsafe fn words(ip: *const u32) -> Ip {
    // SAFETY: the caller's; the transmute is between types of one size, where any bits are valid.
    unsafe {
        let words: [u32; 4] =
            [ip.read_volatile(), ip.add(1).read_volatile(), ip.add(2).read_volatile(), ip.add(3).read_volatile()];
        core::mem::transmute(words)
    }
}

/// The address of a context that has one field for each family.
///
/// Both fields are read before one is chosen. Were only one read, the compiler would choose between the two *places*
/// and read through the result, a computed pointer into the context, which the verifier refuses.
///
/// # Safety
///
/// `v4` points to a word of the context, `v6` to four.
#[inline(always)]
pub unsafe fn address(family: u32, v4: *const u32, v6: *const u32) -> Ip {
    // SAFETY: as the caller promises.
    let (v4, v6) = unsafe { (v4.read_volatile(), words(v6)) };
    if family == AF_INET { mapped(v4.to_ne_bytes()) } else { v6 }
}
