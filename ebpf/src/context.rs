//! Reading contexts the way the verifier accepts.

use culvert_ebpf_common::Ip;

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
