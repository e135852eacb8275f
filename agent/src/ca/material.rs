//! What an authority is made from, wherever that is kept.

use std::fmt::Display;
use std::path::PathBuf;

use super::CaError;

/// The signing certificate.
pub const CA_CERT: &str = "ca-cert.pem";
/// Its private key.
pub const CA_KEY: &str = "ca-key.pem";
/// The certificates from the signing certificate to a root; may be empty.
pub const CERT_CHAIN: &str = "cert-chain.pem";
/// Every root that the mesh trusts.
pub const ROOT_CERT: &str = "root-cert.pem";
/// Revocation lists; optional.
pub const CA_CRL: &str = "ca-crl.pem";

/// The files that must be there.
pub(super) const REQUIRED: [&str; 4] = [CA_CERT, CA_KEY, CERT_CHAIN, ROOT_CERT];

/// An authority in Istio's `cacerts` form, as it was read: nothing of it has been looked at yet.
pub struct Material {
    /// Where it was read.
    pub origin: Origin,
    /// [`CA_CERT`].
    pub ca_cert: Vec<u8>,
    /// [`CA_KEY`].
    pub ca_key: Vec<u8>,
    /// [`CERT_CHAIN`].
    pub cert_chain: Vec<u8>,
    /// [`ROOT_CERT`].
    pub root_cert: Vec<u8>,
    /// [`CA_CRL`].
    pub ca_crl: Option<Vec<u8>>,
}

/// Where an authority is kept; errors name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The directory of `--ca-dir`.
    Directory(PathBuf),
    /// A Kubernetes Secret.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

impl Origin {
    /// `file` in this place, as errors name it.
    pub fn place(&self, file: &str) -> String {
        match self {
            Self::Directory(directory) => format!("--ca-dir: {}", directory.join(file).display()),
            Self::Secret { namespace, name } => format!("Secret {namespace}/{name}: {file}"),
        }
    }

    /// An error about `file` in this place.
    pub(super) fn bad(&self, file: &str, problem: impl Display, cure: &'static str) -> CaError {
        CaError::File { place: self.place(file), problem: problem.to_string(), cure }
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("origin", &self.origin).finish_non_exhaustive()
    }
}
