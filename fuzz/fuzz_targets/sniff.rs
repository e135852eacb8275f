//! Whatever a connection begins with is judged without a panic, within the bounds that are promised, and in the same way
//! in whatever pieces it comes.

#![no_main]

use culvert_core::protocol::{Hello, MAX_HELLO, MAX_REQUEST_LINE, Sniffed, hello, sniff};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let whole = sniff(input);
    assert!(whole != Sniffed::More || input.len() < MAX_REQUEST_LINE, "more is asked for than is read");
    for length in [input.len() / 2, input.len().saturating_sub(1)] {
        let part = sniff(&input[..length]);
        assert!(part == Sniffed::More || part == whole, "{part:?} became {whole:?}");
    }
    let mut length = 0;
    while let Hello::More(more) = hello(&input[..length]) {
        assert!(more > length && more <= MAX_HELLO);
        if more > input.len() {
            return;
        }
        length = more;
    }
    assert_eq!(hello(&input[..length]), hello(input));
    if let Hello::Whole(Some(name)) = hello(input) {
        assert!(name.len() <= 253 && !name.bytes().any(|byte| byte.is_ascii_uppercase()));
    }
});
