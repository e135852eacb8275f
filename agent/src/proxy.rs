//! The proxies of an enrolled pod: outbound, inbound through tunnels, inbound in plaintext, and passthrough.

pub mod live;
