//! A server of tunnels against any client.

#![no_main]

use culvert_core::hbone::h2::{Connection, Settings};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut connection = Connection::server(Settings::SERVER);
    // An even first byte stands for a client that got past its preface.
    if input.first().is_some_and(|b| b % 2 == 0) {
        let start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        connection.receive(start).expect("a preface and SETTINGS are accepted");
    }
    culvert_fuzz::drive(&mut connection, input);
});
