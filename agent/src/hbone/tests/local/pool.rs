//! Streams of this process through pooled tunnels, from our own network namespace.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::ca::testing::{Root, ScriptedCa};
use crate::hbone::client::{Key, Origin, Pool};
use crate::identity::SystemClock;
use crate::workers::Workers;

/// A pool and a server of the mesh that it may dial.
pub(super) struct Pooled {
    pub(super) pool: Pool,
    pub(super) key: Key,
    pub(super) server: Server,
    certificate: Arc<WorkloadCertificate>,
    _store: CertificateStore,
}

impl Pooled {
    pub(super) async fn new() -> Self {
        let store =
            CertificateStore::new(ScriptedCa::new(&Root::new("root"), Arc::new(SystemClock)), StoreOptions::default());
        let identity = Identity::new("cluster.local", "shop", "cart");
        let certificate = store.fetch(&identity).await.unwrap();
        let server = Server::start(&certificate).await;
        let pool = Pool::new(Origin::Here, &store, &identity, Workers::here(), 0, unlimited());
        let key =
            Key { peer: server.addr, expected: SmallVec::from_iter([Arc::new(identity)]), source: server.addr.ip() };
        Self { pool, key, server, certificate, _store: store }
    }

    pub(super) fn ask(&self) -> Connecting {
        self.pool.connect(self.key.clone(), Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap())))
    }
}

#[test]
fn however_many_connect_at_once_one_tunnel_is_made() {
    run(async {
        let mut pooled = Pooled::new().await;
        let asked: Vec<_> = (0..100).map(|_| pooled.ask()).collect();
        let mut streams = Vec::new();
        for asked in asked {
            let (client, server) = tokio::join!(asked, pooled.server.accept());
            streams.push((client.unwrap(), server));
        }
        assert_eq!(pooled.pool.usable(), 1);
        let (another, _server) = tokio::join!(pooled.ask(), pooled.server.accept());
        assert!(another.is_ok());
        assert_eq!(pooled.pool.usable(), 2);
    });
}

#[test]
fn who_gives_up_before_there_is_a_tunnel_asks_the_peer_for_nothing() {
    run(async {
        let mut pooled = Pooled::new().await;
        drop(pooled.ask());
        let (client, _server) = tokio::join!(pooled.ask(), pooled.server.accept());
        assert!(client.is_ok());
        assert!(pooled.server.asked.try_recv().is_err());
    });
}

#[test]
fn a_tunnel_that_cannot_be_made_says_why() {
    run(async {
        let pooled = Pooled::new().await;
        let other = Arc::new(Identity::new("cluster.local", "shop", "other"));
        let stranger = Key { expected: SmallVec::from_iter([other]), ..pooled.key.clone() };
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let nobody = Key { peer: free, ..pooled.key.clone() };
        use crate::telemetry::ResponseFlags::{ConnectFailure, IdentityError};
        for (key, expected) in [(stranger, IdentityError), (nobody, ConnectFailure)] {
            let peer = key.peer.to_string();
            let request = Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap()));
            let Some(ConnectError::Failed { flags, why }) = pooled.pool.connect(key, request).await.err() else {
                panic!()
            };
            assert_eq!(flags, expected);
            assert!(why.contains(&peer), "{why}");
        }
        assert_eq!(pooled.pool.usable(), 0);
    });
}

#[test]
fn a_draining_server_finishes_what_it_carries_and_the_next_goes_through_another_tunnel() {
    run(async {
        let mut pooled = Pooled::new().await;
        let (first, server) = tokio::join!(pooled.ask(), pooled.server.accept());
        let mut first = first.unwrap();
        tokio::spawn(echo(server));
        pooled.server.tunnels.lock().unwrap()[0].0.drain();
        for _ in 0..5 {
            let (client, _server) = tokio::join!(pooled.ask(), pooled.server.accept());
            assert!(client.is_ok());
        }
        first.write_all(b"still here").await.unwrap();
        first.read_exact(&mut [0; 10]).await.unwrap();
        assert_eq!(pooled.server.tunnels.lock().unwrap().len(), 2);
    });
}

#[test]
fn a_stream_that_the_h2_crates_goaway_does_not_cover_is_opened_on_another_tunnel() {
    run(async {
        let pooled = Pooled::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = Key { peer: listener.local_addr().unwrap(), ..pooled.key.clone() };
        let acceptor = tokio_rustls::TlsAcceptor::from(pooled.certificate.server.clone());
        let served = tokio::spawn(async move {
            let mut connections = 0;
            loop {
                let tls = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
                let mut connection = h2::server::handshake(tls).await.unwrap();
                connections += 1;
                // The first two have had enough before they are asked for anything.
                if connections <= 2 {
                    connection.abrupt_shutdown(h2::Reason::NO_ERROR);
                    tokio::spawn(async move { while connection.accept().await.is_some() {} });
                    continue;
                }
                let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
                let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                send.send_data(Bytes::from_static(b"here"), true).unwrap();
                tokio::spawn(async move { while connection.accept().await.is_some() {} });
                return connections;
            }
        });
        let request = Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap()));
        let mut stream = pooled.pool.connect(key, request).await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "here");
        assert_eq!(served.await.unwrap(), 3);
    });
}

#[test]
fn a_peer_that_allows_no_streams_costs_a_bounded_number_of_tunnels() {
    run(async {
        let pooled = Pooled::new().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = Key { peer: listener.local_addr().unwrap(), ..pooled.key.clone() };
        let config = pooled.certificate.server.clone();
        let tunnels = Arc::new(AtomicUsize::new(0));
        let made = tunnels.clone();
        tokio::spawn(async move {
            let mut settings = h2::server::Builder::new();
            settings.max_concurrent_streams(0);
            while let Ok((tcp, _)) = listener.accept().await {
                let tls = tokio_rustls::TlsAcceptor::from(config.clone()).accept(tcp).await.unwrap();
                made.fetch_add(1, Ordering::Relaxed);
                let mut connection = settings.handshake::<_, Bytes>(tls).await.unwrap();
                tokio::spawn(async move { while connection.accept().await.is_some() {} });
            }
        });
        let why = loop {
            let request = Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap()));
            let Some(ConnectError::Failed { why, .. }) = pooled.pool.connect(key.clone(), request).await.err() else {
                panic!("there was room")
            };
            if !why.contains("closed under it") {
                break why;
            }
        };
        assert_eq!((tunnels.load(Ordering::Relaxed), why.contains("as many tunnels as there may be")), (16, true));
    });
}

#[test]
fn a_pool_that_drains_fails_who_waits_for_a_tunnel() {
    run(async {
        let pooled = Pooled::new().await;
        let asked = pooled.ask();
        pooled.pool.drain();
        assert!(matches!(asked.await.err(), Some(ConnectError::Failed { .. })));
    });
}
