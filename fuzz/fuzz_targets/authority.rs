//! Whatever parses as `Authority` prints to the same value.

#![no_main]

use culvert_core::hbone::Authority;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| culvert_fuzz::survives_printing::<Authority>(input));
