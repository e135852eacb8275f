//! Servers of the mesh, without a mesh: at an address of this machine.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use futures_util::future::BoxFuture;
use http::{Request, Response, Version};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::waypoint::body::Body;
use crate::waypoint::gate::reach::{Reach, ReachError, Server, Stream};

/// Goes to an address for each port of a service.
#[derive(Clone, Default)]
pub(in crate::waypoint::gate) struct To(Arc<Mutex<HashMap<u16, SocketAddr>>>);

impl To {
    /// No server is there.
    pub(in crate::waypoint::gate) fn nowhere() -> Self {
        Self::default()
    }

    pub(in crate::waypoint::gate) fn one(port: u16, address: SocketAddr) -> Self {
        Self(Arc::new(Mutex::new([(port, address)].into())))
    }
}

impl Reach for To {
    fn connect(
        &self,
        server: Server,
        _: fn(IpAddr) -> Option<&'static str>,
    ) -> BoxFuture<'static, Result<Stream, ReachError>> {
        let address = self.0.lock().unwrap().get(&server.port).copied();
        Box::pin(async move {
            let address = address.ok_or_else(|| ReachError("nobody is there".to_owned()))?;
            let stream = TcpStream::connect(address).await.map_err(|error| ReachError(error.to_string()))?;
            Ok(Box::new(stream) as Stream)
        })
    }

    fn send(&self, server: Server, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, ReachError>> {
        let address = self.0.lock().unwrap().get(&server.port).copied();
        Box::pin(async move {
            let address = address.ok_or_else(|| ReachError("nobody is there".to_owned()))?;
            let failed = |error: &dyn std::error::Error| ReachError(error.to_string());
            let io = TokioIo::new(TcpStream::connect(address).await.map_err(|error| failed(&error))?);
            let response = if request.version() == Version::HTTP_2 {
                let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                    .await
                    .map_err(|error| failed(&error))?;
                tokio::spawn(connection);
                sender.send_request(request).await
            } else {
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(io).await.map_err(|error| failed(&error))?;
                tokio::spawn(connection);
                sender.send_request(request).await
            };
            Ok(response.map_err(|error| failed(&error))?.map(Body::from))
        })
    }
}

/// A server of HTTP/1 that answers each request with what `answer` says.
pub(in crate::waypoint::gate) async fn serve(
    answer: impl Fn(Request<bytes::Bytes>) -> Response<Full<bytes::Bytes>> + Send + Sync + 'static,
) -> SocketAddr {
    use http_body_util::BodyExt as _;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    Ok::<_, Infallible>(answer(Request::from_parts(head, body)))
                }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            tokio::spawn(async move { connection.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    address
}
