//! The gRPC service around the [`Issuer`], as a generated one would be.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{BoxFuture, http};
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

use super::issuer::Issuer;
use super::listener::Peer;
use crate::ca::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse, MAX_CSR};

/// The largest request: a CSR, and a name.
const MAX_REQUEST: usize = MAX_CSR + (8 << 10);

/// `istio.v1.auth.IstioCertificateService`.
#[derive(Clone)]
pub(super) struct CertificateService(pub(super) Issuer);

impl Service<http::Request<Body>> for CertificateService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let issuer = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != CREATE_CERTIFICATE {
                return Ok(Status::unimplemented("").into_http());
            }
            let peer = request.extensions().get::<Peer>().copied();
            let is_read = Arc::new(AtomicBool::new(false));
            let method = CreateCertificate { issuer: issuer.clone(), is_read: is_read.clone() };
            let mut grpc = Grpc::new(ProstCodec::default()).max_decoding_message_size(MAX_REQUEST);
            let answer = grpc.unary(method, request).await;
            if !is_read.load(Ordering::Relaxed) {
                // Too long, or no such message: refused before anyone of ours saw it.
                let why = Status::from_header_map(answer.headers()).unwrap_or_else(|| Status::unknown(""));
                issuer.unread(peer, why.message());
            }
            Ok(answer)
        })
    }
}

struct CreateCertificate {
    issuer: Issuer,
    /// Set once a request could be read.
    is_read: Arc<AtomicBool>,
}

impl UnaryService<IstioCertificateRequest> for CreateCertificate {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<Response<IstioCertificateResponse>, Status>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        self.is_read.store(true, Ordering::Relaxed);
        let issuer = self.issuer.clone();
        Box::pin(async move { issuer.create_certificate(request).await })
    }
}
