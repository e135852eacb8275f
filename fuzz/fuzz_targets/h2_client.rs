//! A client of tunnels against any server.

#![no_main]

use culvert_core::hbone::h2::{Connection, Settings};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut connection = Connection::client(Settings::CLIENT);
    culvert_fuzz::open_streams(&mut connection, 5);
    // An even first byte stands for a server that said SETTINGS.
    if input.first().is_some_and(|b| b % 2 == 0) {
        connection.receive(b"\0\0\0\x04\0\0\0\0\0").expect("SETTINGS are accepted");
    }
    culvert_fuzz::drive(&mut connection, input);
});
