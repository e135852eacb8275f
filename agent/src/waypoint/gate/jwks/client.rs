//! One GET over HTTP/1.1, within bounds: key servers have little to say.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

use crate::waypoint::gate::reach::Stream;

/// The most headers of an answer, and the longest head.
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 32 << 10;

/// How servers show who they are: read when the first is asked that has to.
pub(super) struct Tls {
    config: OnceCell<Arc<ClientConfig>>,
}

impl Tls {
    /// By the certificates of the system, or of `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    pub(super) fn of_system() -> Self {
        Self { config: OnceCell::new() }
    }

    /// By these roots alone.
    #[cfg(test)]
    pub(super) fn of_roots(roots: RootCertStore) -> Result<Self, String> {
        Ok(Self { config: OnceCell::new_with(Some(configure(roots)?)) })
    }

    pub(super) async fn get(&self) -> Result<Arc<ClientConfig>, String> {
        let read = || async {
            let roots = tokio::task::spawn_blocking(system_roots).await.map_err(|error| error.to_string())??;
            configure(roots)
        };
        self.config.get_or_try_init(read).await.cloned()
    }
}

fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
    Err(format!("no roots for https: {why}; mount CA certificates, and name their file in SSL_CERT_FILE"))
}

fn configure(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config = config.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// What is at `uri` of `host`, asked for over `stream`: `limit` bytes at the most.
pub(super) async fn get(
    stream: Stream,
    tls: Option<Arc<ClientConfig>>,
    host: &str,
    uri: &Uri,
    limit: usize,
) -> Result<Bytes, String> {
    let stream: Stream = match tls {
        None => stream,
        Some(tls) => {
            let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("no certificate is for {host}"))?;
            let handshake = TlsConnector::from(tls).connect(name, stream).await;
            Box::new(handshake.map_err(|error| format!("TLS with {host} failed: {error}"))?)
        }
    };
    let mut client = http1::Builder::new();
    client.max_headers(MAX_HEADERS).max_buf_size(MAX_HEAD);
    let (mut sender, connection) = client.handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let authority = uri.authority().map_or(host, |authority| authority.as_str());
    let authority = authority.rsplit('@').next().unwrap_or(authority);
    let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, authority)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("culvert/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (head, mut body) = response.into_parts();
        match head.status {
            StatusCode::OK => {}
            status if status.is_redirection() => {
                let to = head.headers.get(LOCATION).and_then(|to| to.to_str().ok()).unwrap_or("nowhere");
                let to: String = to.chars().take(200).collect();
                return Err(format!(
                    "{uri} redirects to {to:?}, which is not followed: set jwksUri to where the keys are"
                ));
            }
            status => return Err(format!("{uri} answers {status}")),
        }
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
            if bytes.len() + data.len() > limit {
                return Err(format!("{uri} has more than {limit} bytes to say"));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    };
    // Driven here, so that nothing of it is left when nobody waits any more.
    tokio::pin!(answer, connection);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}
