//! No header block makes the decoder panic, expand without bound, or keep more memory than its table is allowed.

#![no_main]

use culvert_core::hbone::h2::hpack::Decoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut decoder = Decoder::default();
    // Several blocks share one compression state; a byte that no field starts often separates them.
    for block in input.split(|b| *b == 0xa5) {
        let mut fields = 0;
        let decoded = decoder.decode(block, |_, _| fields += 1);
        assert!(fields <= block.len());
        assert!(decoder.heap_size() <= 12 << 10, "{} bytes", decoder.heap_size());
        if decoded.is_err() {
            return;
        }
    }
});
