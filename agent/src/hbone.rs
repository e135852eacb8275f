//! The tunnel: mutual TLS and HTTP/2 CONNECT over real sockets.
//!
//! A tunnel is **one task** that owns everything it needs: the TCP socket, the TLS record keys, the HTTP/2 state
//! ([`culvert_core::hbone::h2`]) and the sockets of every application connection that it carries. A byte is copied
//! from one kernel socket to another with nothing in between: it is read behind a gap left for the headers, framed
//! and sealed where it lies, and written; no channel, no lock and no other task is involved. That, more than
//! encryption, is what a userspace tunnel costs.
//!
//! | module | what it is for |
//! |---|---|
//! | [`record`] | the TLS 1.3 record layer of an established connection, in place |
//! | [`handshake`] | rustls up to the point where the record layer takes over |
//! | [`tunnel`] | the task |
//! | [`client`] | dialling, and the pool of tunnels a pod has |
//! | [`server`] | accepting tunnels |
//! | [`vetted`] | a tunnel with what its peer was let in on, for when the mesh trusts others |
//! | [`buffers`] | how much the tunnels of one pod may keep in memory |
//! | [`local`] | streams that end in this process rather than at a socket |

mod app;
pub mod buffers;
pub mod client;
pub mod handshake;
pub mod local;
mod outgoing;
pub mod record;
pub(crate) mod scratch;
pub mod server;
pub mod tunnel;
pub mod vetted;
mod wake;

#[cfg(test)]
mod tests;
