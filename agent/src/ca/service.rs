//! The CA service as a client: the controller's, or istiod's, which speaks the same.

mod connect;
mod roots;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;
use tonic::codegen::http;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use self::connect::Connector;
use self::roots::Roots;
use super::proto::CREATE_CERTIFICATE;
use super::{
    BoxFuture, CaError, CertificateAuthority, IstioCertificateRequest, IstioCertificateResponse, SignedCertificate,
    SigningRequest, TrustBundle,
};
use crate::identity::Clock;

/// How long a connection may take, and how long an answer. Whoever asks has a deadline of 30 s.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);
/// The longest answer: a chain of some certificates and every root of the mesh.
const MAX_ANSWER: usize = 1 << 20;
/// The most certificates of an answer that are looked at.
const MAX_CHAIN: usize = 64;
/// A service account token is some kB of base64 at the most; this bounds what is read of a file that is none.
const MAX_TOKEN: usize = 64 << 10;

/// Who asks for certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A node agent, for the pods of its node.
    Node,
    /// A workload, for the service account of its own token. It names nobody: istiod lets only nodes do that.
    Itself,
}

/// Where the CA service is, and how to show and check who is who.
#[derive(Clone, Debug)]
pub struct ServiceOptions {
    /// `--ca-address`: `HOST:PORT`. The server's certificate must be for HOST.
    pub address: String,
    /// `--ca-root-file`: the roots of the mesh, PEM; the server's certificate must lead to one of them too.
    pub root_file: PathBuf,
    /// `--ca-crl-file`: revocation lists, PEM; the file need not be there.
    pub crl_file: PathBuf,
    /// `--ca-token-file`: the service account token, of audience `istio-ca`. Read anew for each request: the kubelet
    /// renews it.
    pub token_file: PathBuf,
    /// Who asks.
    pub asker: Asker,
    /// What the time is.
    pub clock: Arc<dyn Clock>,
}

/// An authority that asks the CA service to sign.
#[derive(Debug)]
pub struct ServiceCa {
    options: ServiceOptions,
    roots: Arc<Roots>,
    /// Connects when it is first used, and again whenever the connection is lost.
    channel: Channel,
}

impl ServiceCa {
    /// A client of the CA service, which follows changes of the files for as long as it lives. Needs a tokio runtime.
    /// Nothing has to be there yet: not the service, not the files.
    ///
    /// # Errors
    /// When the address is none.
    pub fn open(options: ServiceOptions) -> Result<Arc<Self>, CaError> {
        let bad = |problem: &str| CaError::File {
            place: format!("--ca-address: {:?}", options.address),
            problem: problem.to_owned(),
            cure: "give HOST:PORT, for instance culvert-controller.culvert-system.svc:15012",
        };
        let (host, port) = options.address.rsplit_once(':').ok_or_else(|| bad("has no port"))?;
        let port: u16 = port.parse().map_err(|_| bad("has no port"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let roots = Roots::open(&options);
        let connector = Connector::new(host, port, roots.clone()).map_err(|_| bad("is no host name"))?;
        // Only `:authority` is made of this: the connector knows where to go.
        let endpoint =
            Endpoint::from_shared(format!("https://{}", options.address)).map_err(|_| bad("is no address"))?;
        let endpoint = endpoint
            .timeout(ANSWER_DEADLINE)
            .connect_timeout(CONNECT_DEADLINE)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        let channel = endpoint.connect_with_connector_lazy(connector);
        Ok(Arc::new(Self { options, roots, channel }))
    }

    async fn ask(&self, request: SigningRequest) -> Result<SignedCertificate, CaError> {
        self.roots.usable()?;
        let message = IstioCertificateRequest {
            csr: request.csr,
            validity_duration: i64::try_from(request.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: match self.options.asker {
                Asker::Node => Some(IstioCertificateRequest::impersonating(request.identity.to_string())),
                Asker::Itself => None,
            },
        };
        let mut asked = Request::new(message);
        asked.metadata_mut().insert("authorization", self.bearer()?);
        let mut client = tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        client.ready().await.map_err(|e| CaError::Unavailable(self.out_of_reach(&e)))?;
        let codec = tonic_prost::ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
        let answer = client
            .unary(asked, PathAndQuery::from_static(CREATE_CERTIFICATE), codec)
            .await
            .map_err(|status| self.explain(&status))?;
        let refused = |problem: String| CaError::Refused { identity: request.identity, problem };
        chain(answer.get_ref(), &self.roots.bundle())
            .map_err(|problem| refused(format!("the answer of {}: {problem}", self.options.address)))
    }

    /// The `authorization` header with the token there is now.
    fn bearer(&self) -> Result<MetadataValue<tonic::metadata::Ascii>, CaError> {
        let cure = "mount a projected service account token with audience istio-ca there";
        let place = format!("--ca-token-file: {}", self.options.token_file.display());
        let token = super::files::read_file(&self.options.token_file, &place, cure)?;
        let bad = |problem: &str| CaError::File { place: place.clone(), problem: problem.to_owned(), cure };
        let token = std::str::from_utf8(&token).map(str::trim).map_err(|_| bad("is not text"))?;
        if token.is_empty() || token.len() > MAX_TOKEN {
            return Err(bad("holds no token"));
        }
        let mut value: MetadataValue<_> = format!("Bearer {token}").parse().map_err(|_| bad("holds no token"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// `status` as one line with the cure.
    fn explain(&self, status: &Status) -> CaError {
        let ServiceOptions { address, token_file, asker, .. } = &self.options;
        let problem = match status.code() {
            Code::Unauthenticated if *asker == Asker::Itself => format!(
                "{address} refuses this workload: the token in --ca-token-file {} must be of audience istio-ca; its log \
                 says which it is",
                token_file.display()
            ),
            Code::Unauthenticated => format!(
                "{address} refuses this agent: the token in --ca-token-file {} must be of audience istio-ca, its \
                 ServiceAccount one of --trusted-node-accounts (Helm: controller.trustedNodeAccounts), and a pod of \
                 the identity must run on this node; the controller's log says which it is",
                token_file.display()
            ),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => self.out_of_reach(status),
            code => format!("{address} says {code:?}: {}", shorten(status.message())),
        };
        CaError::Unavailable(problem)
    }

    /// `error` with everything that caused it, and where to look.
    fn out_of_reach(&self, error: &dyn std::error::Error) -> String {
        let address = &self.options.address;
        if let Some(problem) = self.roots.handshake_problem() {
            return format!("{address}: {problem}");
        }
        let mut chain = Vec::new();
        let mut next = error.source();
        while let Some(error) = next {
            chain.push(error.to_string());
            next = error.source();
        }
        // The outermost says what tonic was doing; the innermost what went wrong.
        let cause = chain.pop().unwrap_or_else(|| error.to_string());
        let cause = shorten(&cause);
        format!("{address} is out of reach ({cause}); check --ca-address, the Service behind it and its endpoints")
    }
}

/// The certificates of an answer: the leaf first, the roots left out, since everyone has them already.
fn chain(answer: &IstioCertificateResponse, trust: &TrustBundle) -> Result<SignedCertificate, String> {
    let mut chain: Vec<CertificateDer<'static>> = Vec::new();
    for text in &answer.cert_chain {
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let certificate = certificate.map_err(|e| format!("its chain is not PEM: {e:?}"))?;
            if chain.len() == MAX_CHAIN {
                return Err(format!("its chain has more than {MAX_CHAIN} certificates"));
            }
            let is_root = !chain.is_empty() && (trust.roots().contains(&certificate) || is_self_issued(&certificate));
            if !is_root && !chain.contains(&certificate) {
                chain.push(certificate);
            }
        }
    }
    if chain.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(SignedCertificate { chain }) }
}

/// Whether `certificate` is a root: one that nobody else issued. There may be roots that have not spread to here yet.
fn is_self_issued(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, parsed)| parsed.issuer() == parsed.subject())
}

/// What a stranger says, short enough for a log.
fn shorten(text: &str) -> String {
    text.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl CertificateAuthority for ServiceCa {
    fn sign(&self, request: SigningRequest) -> BoxFuture<'_, Result<SignedCertificate, CaError>> {
        Box::pin(self.ask(request))
    }

    fn trust(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.roots.watch()
    }
}
