//! Whatever parses as `Identity` prints to the same value.

#![no_main]

use culvert_core::identity::Identity;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| culvert_fuzz::survives_printing::<Identity>(input));
