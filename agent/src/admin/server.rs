//! The HTTP server of the endpoints: bounded in connections, in the size of a request, and in time.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::places::Places;
use super::{AdminState, routes};

/// How long a client may take to send the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection lives, dumps of big meshes to slow readers included.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(60);
/// The largest head of a request.
const MAX_HEAD: usize = 16 << 10;

/// Which of the agent's listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Everything; for this node only.
    Admin,
    /// `/metrics`, for Prometheus.
    Metrics,
    /// `/healthz/ready`, for the kubelet.
    Readiness,
}

impl Endpoint {
    /// The flag that says where it listens.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Admin => "--admin-addr",
            Self::Metrics => "--metrics-addr",
            Self::Readiness => "--readiness-addr",
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "admin",
            Self::Metrics => "metrics",
            Self::Readiness => "readiness",
        })
    }
}

/// Why an endpoint cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("{flag}: cannot listen on {address}: {source}; {cure}")]
pub struct BindError {
    flag: &'static str,
    address: SocketAddr,
    source: io::Error,
    cure: &'static str,
}

/// An endpoint that listens, but does not answer yet.
#[derive(Debug)]
pub struct Bound {
    endpoint: Endpoint,
    listener: TcpListener,
    address: SocketAddr,
}

/// Listens for `endpoint` on `address`.
///
/// # Errors
/// One line that names the flag and the cure.
pub async fn bind(endpoint: Endpoint, address: SocketAddr) -> Result<Bound, BindError> {
    let failed = |source: io::Error| BindError {
        flag: endpoint.flag(),
        address,
        cure: match source.kind() {
            io::ErrorKind::AddrInUse => "another process has the port: end it, or give another port",
            io::ErrorKind::AddrNotAvailable => "give an address of this machine",
            io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege: give a higher one",
            _ => "give another address",
        },
        source,
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok(Bound { endpoint, listener, address })
}

/// Listens for all of them: admin, metrics and readiness, in this order.
///
/// # Errors
/// As [`bind`]; nothing is left bound.
pub async fn bind_all([admin, metrics, readiness]: [SocketAddr; 3]) -> Result<[Bound; 3], BindError> {
    Ok([
        bind(Endpoint::Admin, admin).await?,
        bind(Endpoint::Metrics, metrics).await?,
        bind(Endpoint::Readiness, readiness).await?,
    ])
}

impl Bound {
    /// The address, with the port that was chosen where port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until dropped.
    pub async fn serve(self, state: AdminState) {
        let state = Arc::new(state);
        let mut places = Places::default();
        loop {
            let (socket, client) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(endpoint = %self.endpoint, %error, "cannot accept a connection");
                    // Out of descriptors, most likely: trying again at once would only burn the CPU.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            let connection = connection(self.endpoint, state.clone(), socket);
            let served = tokio::spawn(tokio::time::timeout(CONNECTION_DEADLINE, connection));
            places.give(client.ip(), served.abort_handle());
        }
    }
}

async fn connection(endpoint: Endpoint, state: Arc<AdminState>, socket: TcpStream) {
    let service = service_fn(move |request| {
        let response = routes::respond(endpoint, &state, &request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(socket), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%endpoint, %error, "an admin connection ended badly");
    }
}
