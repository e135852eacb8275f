//! Roots and revocations, and the check of a chain against them.

use std::time::SystemTime;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, TrustAnchor, UnixTime};
use smallvec::SmallVec;
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
}

impl TrustBundle {
    /// A bundle of `roots` and `revocations`.
    ///
    /// # Errors
    /// Says which root or list, counted from one, cannot be parsed and why.
    pub fn new(
        roots: Vec<CertificateDer<'static>>,
        revocations: &[CertificateRevocationListDer<'static>],
    ) -> Result<Self, String> {
        let anchors = (1..)
            .zip(&roots)
            .map(|(n, root)| {
                let anchor = webpki::anchor_from_trusted_cert(root).map_err(|e| format!("certificate {n}: {e}"))?;
                Ok(anchor.to_owned())
            })
            .collect::<Result<_, String>>()?;
        let revocations = (1..)
            .zip(revocations)
            .map(|(n, list)| {
                let list = OwnedCertRevocationList::from_der(list).map_err(|e| format!("revocation list {n}: {e}"))?;
                Ok(CertRevocationList::Owned(list))
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { roots, anchors, revocations })
    }

    /// The trusted roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Checks that `chain`, leaf first, leads to one of the roots, is in its period of validity at `now`, may be used
    /// for `usage` and is not revoked.
    ///
    /// # Errors
    /// What webpki objects to; an empty chain is a bad encoding.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), webpki::Error> {
        let (leaf, intermediates) = chain.split_first().ok_or(webpki::Error::BadDer)?;
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

    /// Whether any of `ids`, from [`certificate_ids`], is on a revocation list of its issuer.
    ///
    /// Live connections keep these ids, not the chain, to be judged again when the lists change.
    pub fn is_revoked(&self, ids: &[CertificateId]) -> bool {
        ids.iter().any(|id| {
            self.revocations.iter().any(|list| {
                digest(list.issuer()) == id.issuer && list.find_serial(&id.serial).is_ok_and(|found| found.is_some())
            })
        })
    }
}

/// A certificate's issuer and serial number, small enough to keep for each live connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateId {
    issuer: u64,
    serial: SmallVec<[u8; 20]>,
}

/// The ids of the certificates of `chain`; one that does not parse has none.
pub fn certificate_ids(chain: &[CertificateDer<'_>]) -> SmallVec<[CertificateId; 1]> {
    chain.iter().filter_map(|der| EndEntityCert::try_from(der).ok().map(|cert| id(&cert))).collect()
}

fn id(cert: &EndEntityCert<'_>) -> CertificateId {
    CertificateId { issuer: digest(cert.issuer()), serial: cert.serial().into() }
}

/// Names are compared by this digest: two issuers of one mesh would have to collide by chance for a revocation to be
/// looked up in the wrong list.
fn digest(name: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}

/// `now` as webpki takes it; a clock before 1970 counts as 1970.
pub(crate) fn unix_time(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}
