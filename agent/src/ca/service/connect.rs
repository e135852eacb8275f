//! TCP and TLS to the CA service, by the roots that are trusted at the moment.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustls_pki_types::{InvalidDnsNameError, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tower::Service;

use super::roots::Roots;
use crate::identity::TlsProblem;

/// Connects to one server.
pub(super) struct Connector {
    name: ServerName<'static>,
    host: String,
    port: u16,
    roots: Arc<Roots>,
}

impl Connector {
    /// A connector to `host`, a DNS name or an address, and `port`.
    ///
    /// # Errors
    /// When no certificate can be for `host`.
    pub(super) fn new(host: &str, port: u16, roots: Arc<Roots>) -> Result<Self, InvalidDnsNameError> {
        let name = ServerName::try_from(host)?.to_owned();
        Ok(Self { name, host: host.to_owned(), port, roots })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (name, host, port, roots) = (self.name.clone(), self.host.clone(), self.port, self.roots.clone());
        Box::pin(async move {
            roots.note_handshake(None);
            let tls = roots.tls().ok_or_else(|| io::Error::other("no roots have been read yet"))?;
            let tcp = TcpStream::connect((host.as_str(), port)).await?;
            tcp.set_nodelay(true)?;
            let stream = TlsConnector::from(tls).connect(name, tcp).await.inspect_err(|error| {
                roots.note_handshake(Some(explain(error, &host)));
            })?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// Why a handshake failed, with the next thing to check.
fn explain(error: &io::Error, host: &str) -> String {
    use rustls::CertificateError as Bad;
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return format!("the TLS handshake failed: {error}; check that --ca-address names the CA service");
    };
    match tls {
        rustls::Error::InvalidCertificate(Bad::UnknownIssuer) => {
            "the CA service's certificate leads to no root in --ca-root-file; compare it with the roots of the CA"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            format!("the CA service's certificate is not for {host}; give --ca-address by a name that it is for")
        }
        other => format!("the TLS handshake failed: {}", TlsProblem(other)),
    }
}
