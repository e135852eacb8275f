//! The port of the CA: TLS by a certificate of its own authority, bounded in connections, and gRPC behind it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::stream;
use rcgen::KeyPair;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

use super::grpc::CertificateService;
use super::issuer::Issuer;
use super::keys::{Current, Keys};
use crate::identity::Clock;

/// Connections at once. Each node agent has one.
const MAX_CONNECTIONS: usize = 4096;
/// Of one address: agents of a node share it, and during an upgrade there are two.
const MAX_PER_ADDRESS: usize = 32;
/// How long a handshake may take.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a connection lives; clients open another. Who holds connections idle does not hold them for long.
const CONNECTION_AGE: Duration = Duration::from_secs(10 * 60);
/// How long its requests may take after that, and when the controller stops.
const GRACE: Duration = Duration::from_secs(20);
/// Requests of one connection at once: a node that starts asks for all its service accounts.
const STREAMS: u32 = 64;
/// The headers of a request: a token is some kB.
const MAX_HEADERS: u32 = 32 << 10;
/// How long the server's own certificate lives; it is renewed at half of that.
const SERVER_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Serves `issuer` on `listener` until `stop` resolves, then lets requests finish.
///
/// # Errors
/// When the server cannot be set up.
pub(super) async fn serve(
    listener: TcpListener,
    issuer: Issuer,
    own: Arc<OwnCertificate>,
    clock: Arc<dyn Clock>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let provider = crate::identity::tls_provider().clone();
    let mut tls = rustls::ServerConfig::builder_with_details(provider, crate::identity::wall_time(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(own);
    tls.alpn_protocols = vec![b"h2".to_vec()];
    // Clients come back once in hours: nothing is gained by resuming, and nothing is kept for those that do not.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let (accepted, mut connections) = mpsc::channel::<io::Result<Connection>>(16);
    let accepting = tokio::spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), accepted));
    let incoming = stream::poll_fn(move |context| connections.poll_recv(context));
    let serving = Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(32))
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .max_connection_age(CONNECTION_AGE)
        .max_connection_age_grace(GRACE)
        .serve_with_incoming_shutdown(CertificateService(issuer), incoming, stop);
    let served = serving.await;
    accepting.abort();
    Ok(served?)
}

/// Takes connections and shakes hands with each on a task of its own: one that does not speak holds up nobody.
async fn accept(listener: TcpListener, tls: TlsAcceptor, accepted: mpsc::Sender<io::Result<Connection>>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let addresses = Addresses::default();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let (tcp, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of descriptors, most likely: trying again at once would only burn the CPU.
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Some(place) = addresses.enter(peer.ip()) else {
            tracing::debug!(%peer, "refused a connection: its address has {MAX_PER_ADDRESS} already");
            continue;
        };
        let (tls, accepted) = (tls.clone(), accepted.clone());
        tokio::spawn(async move {
            // The answer is small, and waited for.
            let _ = tcp.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE_DEADLINE, tls.accept(tcp)).await {
                Ok(Ok(stream)) => {
                    let connection = Connection { stream, peer: Peer(peer), _slot: slot, _place: place };
                    // The server is gone when this fails, and the connection with it.
                    let _ = accepted.send(Ok(connection)).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
            }
        });
    }
}

/// The address of the peer, among the extensions of its requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

/// A connection whose handshake is done.
struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    _slot: OwnedSemaphorePermit,
    _place: Place,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// How many connections each address has.
#[derive(Clone, Debug, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address, until dropped.
#[derive(Debug)]
struct Place(Addresses, IpAddr);

impl Addresses {
    fn enter(&self, address: IpAddr) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= MAX_PER_ADDRESS {
            return None;
        }
        *count += 1;
        Some(Place(self.clone(), address))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut count) = counts.entry(self.1) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// The certificate by which this replica is known: issued by its own authority, renewed with it.
#[derive(Debug)]
pub(super) struct OwnCertificate {
    names: Vec<String>,
    current: ArcSwapOption<CertifiedKey>,
}

impl OwnCertificate {
    /// A certificate for `names`, which is not there yet.
    pub(super) fn new(names: Vec<String>) -> Arc<Self> {
        Arc::new(Self { names, current: ArcSwapOption::empty() })
    }

    /// Whether connections can be answered.
    pub(super) fn is_ready(&self) -> bool {
        self.current.load().is_some()
    }

    /// Keeps it fresh until dropped.
    pub(super) async fn renew(self: Arc<Self>, keys: Keys, clock: Arc<dyn Clock>) {
        let mut authority = keys.watch();
        loop {
            let current = authority.borrow_and_update().clone();
            if let Some(current) = current {
                match self.issue(&current, &*clock) {
                    Ok(key) => {
                        self.current.store(Some(Arc::new(key)));
                        tracing::debug!(names = ?self.names, "renewed the certificate of the CA service");
                    }
                    Err(error) => tracing::error!("no certificate for the CA service itself: {error}"),
                }
            }
            tokio::select! {
                changed = authority.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(SERVER_TTL / 2) => {}
            }
        }
    }

    fn issue(&self, current: &Current, clock: &dyn Clock) -> Result<CertifiedKey, String> {
        let key = KeyPair::generate().map_err(|e| e.to_string())?;
        let signed = current.authority.sign_server(&self.names, &key, SERVER_TTL, clock.now());
        let signed = signed.map_err(|e| e.to_string())?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        CertifiedKey::from_der(signed.chain, key, crate::identity::tls_provider()).map_err(|e| e.to_string())
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_share_of_the_connections_and_no_more() {
        let addresses = Addresses::default();
        let (hostile, honest) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let places: Vec<_> = (0..MAX_PER_ADDRESS).map(|_| addresses.enter(hostile).unwrap()).collect();
        assert!(addresses.enter(hostile).is_none());
        assert!(addresses.enter(honest).is_some(), "others are let in");
        drop(places);
        assert!(addresses.enter(hostile).is_some());
        assert!(addresses.0.lock().unwrap().is_empty(), "nothing is kept of those that have gone");
    }
}
