//! Roots and revocations, and the check of a chain against them.

use std::time::SystemTime;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use smallvec::SmallVec;

use super::material::{CA_CRL, ROOT_CERT};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder, UnknownStatusPolicy,
};

/// The side of a connection that a certificate is presented for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The peer dialled us: its certificate must allow client authentication.
    Client,
    /// We dialled the peer: its certificate must allow server authentication.
    Server,
}

/// Everything that decides whether a chain is trusted: any of several roots, and the revocation lists.
///
/// A revocation list that is past its `nextUpdate` still revokes; a certificate of an issuer without a list is not
/// revoked (Istio `CRL_PATH`).
#[derive(Debug, Default)]
pub struct TrustBundle {
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    revocations: Vec<CertRevocationList<'static>>,
    sources: Vec<Vec<u8>>,
}

impl TrustBundle {
    /// A bundle of `roots` and `revocations`.
    ///
    /// # Errors
    /// The name of the file in Istio's form, and which of its roots or lists, counted from one, cannot be parsed.
    pub fn new(
        roots: Vec<CertificateDer<'static>>,
        revocations: &[CertificateRevocationListDer<'static>],
    ) -> Result<Self, (&'static str, String)> {
        let anchors = (1..)
            .zip(&roots)
            .map(|(n, root)| {
                let anchor = webpki::anchor_from_trusted_cert(root)
                    .map_err(|e| (ROOT_CERT, format!("certificate {n} cannot be parsed: {e}")))?;
                Ok(anchor.to_owned())
            })
            .collect::<Result<_, _>>()?;
        let sources = revocations.iter().map(|list| list.to_vec()).collect();
        let revocations = (1..)
            .zip(revocations)
            .map(|(n, list)| {
                let list = OwnedCertRevocationList::from_der(list)
                    .map_err(|e| (CA_CRL, format!("list {n} cannot be parsed: {e}")))?;
                Ok(CertRevocationList::Owned(list))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { roots, anchors, revocations, sources })
    }

    /// Whether `other` trusts and revokes the same.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.roots == other.roots && self.sources == other.sources
    }

    /// The trusted roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Checks that `leaf` leads to one of the roots through `intermediates`, is in its period of validity at `now`, may
    /// be used for `usage`, and that nothing on the way is revoked.
    ///
    /// # Errors
    /// What webpki objects to.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), webpki::Error> {
        let lists: SmallVec<[&CertRevocationList<'_>; 4]> = self.revocations.iter().collect();
        // There is nothing to build from no lists at all, hence the `ok`.
        let revocation = RevocationOptionsBuilder::new(&lists)
            .ok()
            .map(|options| options.with_status_policy(UnknownStatusPolicy::Allow).build());
        let usage = match usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        EndEntityCert::try_from(leaf)?
            .verify_for_usage(algorithms.all, &self.anchors, intermediates, now, usage, revocation, None)
            .map(drop)
    }
}

#[cfg(test)]
impl TrustBundle {
    /// Whether a list of `issuer`, a name in DER, has `serial` on it.
    pub(crate) fn revokes(&self, issuer: &[u8], serial: &[u8]) -> bool {
        // webpki's names are without the tag and length of their SEQUENCE.
        let issuer = &issuer[2..];
        let lists = || self.revocations.iter().filter(|list| list.issuer() == issuer);
        lists().any(|list| list.find_serial(serial).is_ok_and(|found| found.is_some()))
    }
}

/// `now` as webpki takes it; a clock before 1970 counts as 1970.
pub(crate) fn unix_time(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}
