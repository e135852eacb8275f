//! HBONE on the wire, without sockets: HTTP/2 CONNECT tunnels and the headers that travel with them.
//!
//! | module | what it is for |
//! |---|---|
//! | [`authority`] | `:authority`, the destination of a tunnel |
//! | [`baggage`] | `baggage`, who a peer says it is (telemetry only, never policy) |
//! | [`client_identity`] | `culvert-client-identity`, on whose behalf a waypoint calls |
//! | [`forwarded`] | `forwarded`, the client's address and the service it asked for |
//! | [`traceparent`] | `traceparent`, passed through once it is known to be well-formed |
//! | [`h2`] | the HTTP/2 connection (RFC 9113) for CONNECT tunnels, both roles |
//!
//! Everything a peer sends is bounded in size before it is looked at; what does not parse is refused, never guessed.

pub mod authority;
pub mod baggage;
pub mod client_identity;
pub mod forwarded;
pub mod h2;
pub mod traceparent;

pub use authority::Authority;
pub use baggage::Baggage;
pub use forwarded::Forwarded;
pub use traceparent::Traceparent;
