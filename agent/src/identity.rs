//! The certificates in use: one per service account on the node, shared by all its pods.
//!
//! [`CertificateStore`] fetches, renews and forgets them; [`WorkloadCertificate`] holds the TLS configurations that
//! every handshake of that identity shares; [`verify_peer`] and [`verify_server`] judge whom a handshake led to, and
//! [`Evidence`] is what they may be judged by again. What is deliberately absent: which peer a connection expects, and what it may do.

mod certificate;
mod clock;
mod explain;
mod metrics;
mod peer;
mod renewal;
mod sessions;
mod store;
mod tls;
mod trust;

#[cfg(test)]
mod tests;

pub use certificate::{CertificateReport, WorkloadCertificate};
pub use clock::{Clock, SystemClock, TokioClock};
pub use explain::TlsProblem;
pub use peer::{PeerError, TrustDomains, peer_identities, verify_peer, verify_server};
pub use store::{CertificateHandle, CertificateStore, FetchError, StoreOptions};
pub(crate) use tls::{provider as tls_provider, wall_time};
pub use trust::{Distrust, Evidence, Trust, TrustWatch};
