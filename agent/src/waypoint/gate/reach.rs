//! How providers and key servers in the mesh are reached: as everything else that a waypoint calls, so that what is
//! written about their service holds for them too, and they see a client with an identity.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_core::mesh::Snapshot;
use culvert_core::service::Service;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::waypoint::body::Body;

/// A server in the mesh.
#[derive(Clone, Debug)]
pub struct Server {
    /// The mesh as it was when the server was looked for.
    pub snapshot: Arc<Snapshot>,
    /// Its service.
    pub service: Arc<Service>,
    /// The port of the service.
    pub port: u16,
}

/// Why a server was not reached, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReachError(pub String);

/// A connection, whatever it is made of.
pub type Stream = Box<dyn Duplex>;

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Reaches servers in the mesh.
pub trait Reach: Send + Sync {
    /// A connection to one of the server's endpoints, unless `refused` has something against its address.
    fn connect(
        &self,
        server: Server,
        refused: fn(IpAddr) -> Option<&'static str>,
    ) -> BoxFuture<'static, Result<Stream, ReachError>>;

    /// The answer of one of the server's endpoints. A request of HTTP/2 goes by HTTP/2.
    fn send(&self, server: Server, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, ReachError>>;
}
