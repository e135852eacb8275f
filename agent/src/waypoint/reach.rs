//! The servers that the gate asks, reached as everything else that a waypoint calls.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use culvert_core::route::decide::Target;
use futures_util::future::BoxFuture;
use http::{Request, Response};

use super::body::Body;
use super::gate::{Reach, ReachError, Server, Stream};
use super::upstream::{Selection, Upstreams};

impl Server {
    fn target(&self) -> Target {
        Target { service: self.service.clone(), port: self.port, subset: None }
    }
}

/// For nobody but the waypoint itself.
fn own() -> Selection<'static> {
    let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
    Selection::first(nobody, nobody, None)
}

fn failed(why: impl std::fmt::Display) -> ReachError {
    ReachError(why.to_string())
}

impl Reach for Upstreams {
    fn connect(
        &self,
        server: Server,
        refused: fn(IpAddr) -> Option<&'static str>,
    ) -> BoxFuture<'static, Result<Stream, ReachError>> {
        let cluster = self.cluster(&server.snapshot, &server.target());
        Box::pin(async move {
            let lease = cluster.select_connection(own()).map_err(failed)?;
            if let Some(why) = lease.endpoint().workload.addresses.iter().find_map(|ip| refused(*ip)) {
                return Err(failed(why));
            }
            let stream = lease.connect().await.map_err(failed)?;
            // A name tells where it leads only now. Nothing has been said to it yet.
            if let Some(why) = stream.peer().and_then(|peer| refused(peer.ip())) {
                return Err(failed(why));
            }
            Ok(Box::new(stream) as Stream)
        })
    }

    fn send(&self, server: Server, request: Request<Body>) -> BoxFuture<'static, Result<Response<Body>, ReachError>> {
        let cluster = self.cluster(&server.snapshot, &server.target());
        Box::pin(async move {
            let lease = cluster.select(own(), request.version()).map_err(failed)?;
            lease.send(request).await.map_err(failed)
        })
    }
}
