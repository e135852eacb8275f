//! What happened, for people and machines: metrics, the access log, the log itself.
//!
//! [`Telemetry`] is cloned into every proxy. A proxy makes a [`ConnectionRecord`] for each application connection,
//! counts bytes into it and closes it; all else follows from that.
//!
//! | module | what it is for |
//! |---|---|
//! | [`connection`] | the record of one connection, and the one place that decides the direction of bytes |
//! | `labels`, `series` | the label sets of Istio's L4 metrics, and the counters behind them |
//! | [`requests`], `flags` | Istio's metrics of requests, and why one did not go well |
//! | `access_log`, [`request_line`] | one line for each closed connection, and each request of a waypoint, written off the data path |
//! | [`logging`] | the log, its format, its level at runtime |
//! | `peer_lines` | a bound on the lines that strangers cause |

mod access_log;
pub mod connection;
mod flags;
mod labels;
mod line;
pub mod logging;
mod peer_lines;
mod registry;
pub mod request_line;
pub mod requests;
mod samples;
mod series;

#[cfg(test)]
pub(crate) mod tests;

pub use access_log::AccessLog;
pub use connection::{
    ConnectionInfo, ConnectionRecord, Direction, HboneTarget, Outcome, ResponseFlags, SecurityPolicy,
};
pub use flags::Flags;
pub use peer_lines::PeerLine;
pub use registry::{ProxyCounts, SocketGuard, Telemetry};
pub use samples::{Kind, Sample};
