//! Making a connection to an endpoint: a tunnel or TCP, the PROXY protocol's header, and TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use culvert_core::hbone::client_identity::CLIENT_IDENTITY;
use culvert_core::hbone::h2::Request;
use culvert_core::hbone::{Authority, Forwarded};
use culvert_core::identity::Identity;
use culvert_core::traffic::outliers::Outcome;
use prometheus_client::metrics::counter::Counter;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::endpoint::Endpoint;
use super::error::ConnectFailure;
use super::proxy_protocol;
use super::stream::{Bare, Io};
use super::transport::Transport;
use super::usage::add;
use super::worker::PerWorker;
use crate::hbone::client::{self, Pool};
use crate::proxy::resolve::resolve;

/// What every endpoint is dialled with.
pub(super) struct Dialler {
    tunnels: PerWorker<Pool>,
    /// Who this waypoint says it is.
    baggage: Arc<str>,
    /// Names that were asked for.
    asked: Counter,
}

/// Whom a connection is made for, and where that one meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides {
    /// The client's address.
    pub client: SocketAddr,
    /// What it dialled.
    pub destination: SocketAddr,
}

/// On whose behalf a connection is made.
#[derive(Clone, Debug)]
pub(super) struct Behalf {
    pub(super) sides: Sides,
    /// The client, where it has proven who it is.
    pub(super) principal: Option<Arc<Identity>>,
}

impl Dialler {
    pub(super) fn new(tunnels: PerWorker<Pool>, baggage: Arc<str>, asked: Counter) -> Self {
        Self { tunnels, baggage, asked }
    }

    pub(super) fn workers(&self) -> usize {
        self.tunnels.iter().count()
    }

    pub(super) fn tunnels(&self) -> impl Iterator<Item = &Pool> {
        self.tunnels.iter()
    }

    /// What a tunnel is asked for. The identity is that of every client whose requests go over the stream; the address
    /// is only that of the first of them.
    fn request(&self, endpoint: &Endpoint, authority: &Authority, behalf: &Behalf) -> Request {
        let forwarded =
            Forwarded { client: behalf.sides.client, host: endpoint.settings.host.as_deref().map(Into::into) };
        let request = Request::connect(authority).with_header("forwarded", &forwarded.to_string());
        let request = match &behalf.principal {
            None => request,
            Some(principal) => request.with_header(CLIENT_IDENTITY, &principal.to_string()),
        };
        match &*self.baggage {
            "" => request,
            baggage => request.with_header("baggage", baggage),
        }
    }
}

impl Endpoint {
    /// Connects on someone's behalf; over TLS, the endpoint is to agree on `protocol`. Counts a failure.
    pub(super) async fn connect(&self, behalf: &Behalf, protocol: Option<&'static [u8]>) -> Result<Io, ConnectFailure> {
        let limit = self.settings.connect_timeout;
        let connected = match tokio::time::timeout(limit, self.connect_in_time(behalf, protocol)).await {
            Ok(connected) => connected,
            Err(_) => Err(ConnectFailure::timed_out(format!(
                "{} was not connected to within {} ms: a NetworkPolicy may be in the way, or connectTimeout is short",
                self.transport,
                limit.as_millis()
            ))),
        };
        if let Err(failure) = &connected {
            let totals = &self.cluster.counts.totals;
            add(&totals.connect_failures);
            if failure.timed_out {
                add(&totals.connect_timeouts);
            }
            self.report(Outcome::LocalFailure);
        }
        connected
    }

    async fn connect_in_time(&self, behalf: &Behalf, protocol: Option<&'static [u8]>) -> Result<Io, ConnectFailure> {
        let at = |error: &dyn std::fmt::Display| ConnectFailure::new(format!("{}: {error}", self.transport));
        let mut bare = self.connect_bare(behalf).await?;
        if let Some(version) = self.settings.proxy_protocol {
            let header = proxy_protocol::header(version, behalf.sides.client, behalf.sides.destination);
            bare.write_all(&header).await.map_err(|error| at(&error))?;
        }
        let Some(tls) = &self.settings.tls else { return Ok(Io::Bare(bare)) };
        let connector = tokio_rustls::TlsConnector::from(tls.config(protocol)?);
        let stream = connector.connect(tls.server_name()?, bare).await;
        let stream = stream.map_err(|error| at(&format_args!("TLS as the DestinationRule has it failed: {error}")))?;
        Ok(Io::Tls(Box::new(stream)))
    }

    async fn connect_bare(&self, behalf: &Behalf) -> Result<Bare, ConnectFailure> {
        let failed = |error: &dyn std::fmt::Display| ConnectFailure::new(format!("{}: {error}", self.transport));
        match &self.transport {
            Transport::Hbone { key, authority } => {
                let request = self.dialler.request(self, authority, behalf);
                let (_, pool) = self.dialler.tunnels.here();
                let stream = pool.connect(key.clone(), request).await.map_err(|error| failed(&error))?;
                Ok(Bare::Tunnelled(stream))
            }
            Transport::Tcp(address) => Ok(Bare::Tcp(self.tcp(*address).await.map_err(|error| failed(&error))?)),
            Transport::Name(host, port) => {
                let addresses = resolve(host, *port, &self.dialler.asked).await;
                let mut addresses = addresses.map_err(|error| failed(&format_args!("does not resolve: {error}")))?;
                // Each has its turn to be the first.
                let first = self.cluster.turn() as usize % addresses.len().max(1);
                addresses.rotate_left(first);
                let mut last = None;
                for address in addresses {
                    match self.tcp(address).await {
                        Ok(stream) => return Ok(Bare::Tcp(stream)),
                        Err(error) => last = Some(failed(&format_args!("{address}: {error}"))),
                    }
                }
                Err(last.unwrap_or_else(|| failed(&"the name resolves to no address")))
            }
            Transport::Unreachable(why) => Err(ConnectFailure::new(*why)),
        }
    }

    async fn tcp(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&self.keepalive())?;
        client::connect(socket, address).await
    }

    fn keepalive(&self) -> TcpKeepalive {
        let mut keepalive = client::keepalive();
        if let Some(wanted) = &self.pool().keepalive {
            if let Some(time) = wanted.time {
                keepalive = keepalive.with_time(time);
            }
            if let Some(interval) = wanted.interval {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(probes) = wanted.probes {
                keepalive = keepalive.with_retries(probes);
            }
        }
        keepalive
    }
}
