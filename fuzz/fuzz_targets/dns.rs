//! No message makes the reader panic, and what is said in return is a response with the id of what was asked, within
//! the length that was asked for.

#![no_main]

use culvert_core::dns::message::{self, HEADER, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let addresses: Vec<_> = (0..40).map(|n| std::net::IpAddr::from([10, 0, 0, n])).collect();
    let check = |answer: &[u8], limit: usize| {
        assert!(answer.len() >= HEADER && answer.len() <= limit.max(input.len() + HEADER), "{} bytes", answer.len());
        assert_eq!(message::id(answer), message::id(input));
        assert!(message::is_response(answer));
        assert!(matches!(message::read(answer), Request::Noise));
    };
    match message::read(input) {
        Request::Noise | Request::Other(_) => {}
        Request::Malformed(answer) => check(&answer, 512),
        Request::Addresses(question) => {
            assert!(question.name.len() <= 4 * 255, "escaped, a name is at most four times as long");
            for alias in [None, Some("api.example.com")] {
                if let Some(answer) = question.answer(alias, &addresses, question.payload()) {
                    check(&answer, question.payload());
                }
            }
        }
    }
});
