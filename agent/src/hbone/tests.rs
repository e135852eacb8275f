//! Tunnels over real loopback sockets: ours with ours, and ours with the `h2` crate as an independent peer.

mod local;
mod pool;
mod vanished;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use culvert_core::hbone::Authority;
use culvert_core::hbone::h2::Request;
use culvert_core::identity::Identity;
use rustls::pki_types::ServerName;
use smallvec::SmallVec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::buffers::Buffers;
use super::handshake;
use super::tunnel::{Accept, Accepted, Handle, Open, Redial, Role, Tunnel};
use crate::ca::DirectoryCa;
use crate::identity::{CertificateStore, StoreOptions, WorkloadCertificate};
use crate::proxy::live::{Admission, Connections, Flow};
use crate::telemetry::{AccessLog, ConnectionInfo, Direction, SecurityPolicy, Telemetry};

/// Bounds every test: a hang is a failure.
const LIMIT: Duration = Duration::from_secs(20);

/// The paused clock hurries: what bounds a test must be far away by it.
const DAY: Duration = Duration::from_secs(86_400);

struct Account {
    telemetry: Telemetry,
    connections: Arc<Connections>,
}

impl Account {
    fn new() -> Arc<Self> {
        Arc::new(Self { telemetry: Telemetry::new(AccessLog::off()), connections: Arc::default() })
    }

    fn flow(&self) -> Flow {
        let addr: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let record = self.telemetry.connection(ConnectionInfo {
            direction: Direction::Outbound,
            source_addr: addr,
            source: None,
            source_identity: None,
            destination_addr: addr,
            hbone_target: None,
            destination: None,
            destination_identity: None,
            service: None,
            security: SecurityPolicy::MutualTls,
        });
        let admission = Admission::Outbound { destination: culvert_core::address::OriginalDst::new(addr) };
        self.connections.admit(admission, record, self.telemetry.socket(Direction::Outbound))
    }

    fn bytes(&self) -> Vec<(u64, u64)> {
        let report = serde_json::to_value(self.connections.report()).unwrap();
        let connections = report.as_array().unwrap();
        connections
            .iter()
            .map(|c| (c["requestBytes"].as_u64().unwrap(), c["responseBytes"].as_u64().unwrap()))
            .collect()
    }
}

/// Dials whatever address the CONNECT names; a 401 for port 1.
struct ToTarget(Arc<Account>);

impl Accept for ToTarget {
    fn accept(&self, request: Request) -> Accepted {
        let Ok(Authority::Ip(addr)) = request.target() else { return Accepted::Refuse(400) };
        if addr.port() == 1 {
            return Accepted::Refuse(401);
        }
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM.nonblocking(), None).unwrap();
        match super::client::start_connect(socket, addr) {
            Ok(app) => Accepted::Dial {
                app,
                flow: self.0.flow(),
                headers: SmallVec::from_iter([("baggage", "service.name=echo".to_owned())]),
            },
            Err(_) => Accepted::Refuse(503),
        }
    }
}

/// An account that is never overdrawn.
fn unlimited() -> Arc<Buffers> {
    Buffers::new(usize::MAX)
}

#[derive(Default)]
struct Redialled(Mutex<Vec<Open>>);

impl Redial for Redialled {
    fn redial(&self, open: Box<Open>) {
        self.0.lock().unwrap().push(*open);
    }
}

async fn certificate() -> Arc<WorkloadCertificate> {
    let directory = crate::files::testing::TempDir::new();
    let ca = DirectoryCa::open(&directory).unwrap();
    let store = CertificateStore::new(ca, StoreOptions::default());
    store.fetch(&Identity::new("cluster.local", "shop", "cart")).await.unwrap()
}

/// A server's tunnels on loopback; every connection is one.
async fn serve(certificate: &Arc<WorkloadCertificate>, account: Arc<Account>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = certificate.server.clone();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            let (config, account) = (config.clone(), account.clone());
            tokio::spawn(async move {
                let established = handshake::accept(io, config).await.unwrap();
                let (tunnel, _handle) =
                    Tunnel::new(established, Role::Server(Arc::new(ToTarget(account))), 200, &unlimited());
                let _ = tunnel.await;
            });
        }
    });
    addr
}

async fn dial(certificate: &Arc<WorkloadCertificate>, server: SocketAddr) -> (Handle, Arc<Redialled>) {
    let io = TcpStream::connect(server).await.unwrap();
    let name = ServerName::IpAddress(server.ip().into());
    let established = handshake::connect(io, certificate.client.clone(), name).await.unwrap();
    let redialled = Arc::new(Redialled::default());
    let (tunnel, handle) = Tunnel::new(established, Role::Client(redialled.clone()), 100, &unlimited());
    tokio::spawn(tunnel);
    (handle, redialled)
}

/// One application connection through `tunnel` to `target`: the application's end of it.
async fn through(tunnel: &Handle, account: &Account, target: SocketAddr) -> TcpStream {
    let (app, open) = connection(account, target).await;
    assert!(tunnel.open(open).is_ok());
    app
}

/// An application connection that asks for `target`: the application's end of it, and ours.
async fn connection(account: &Account, target: SocketAddr) -> (TcpStream, Box<Open>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    let open = Open {
        app: ours.into_std().unwrap().into(),
        request: Request::connect(&Authority::Ip(target)),
        flow: account.flow(),
        attempts: 0,
    };
    (app, Box::new(open))
}

async fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = io.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    addr
}

async fn settled(account: &Account) {
    while !account.connections.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn run<F: Future<Output = ()>>(test: F) {
    run_within(LIMIT, test);
}

fn run_within<F: Future<Output = ()>>(limit: Duration, test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(limit, test).await }).unwrap_or_else(|_| panic!("the test hangs"));
}

/// Pauses the clock, and has it walk rather than leap to the next deadline: what is under way between sockets takes the
/// kernel a moment, of which that clock knows nothing.
fn pause_and_walk() {
    tokio::time::pause();
    tokio::spawn(async {
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            std::thread::sleep(Duration::from_micros(500));
        }
    });
}

#[test]
fn bytes_go_both_ways_and_the_end_of_each_direction_is_kept() {
    run(async {
        let certificate = certificate().await;
        let (here, there) = (Account::new(), Account::new());
        let (tunnel, _) = dial(&certificate, serve(&certificate, there.clone()).await).await;
        let mut app = through(&tunnel, &here, echo_server().await).await;
        app.write_all(b"hello").await.unwrap();
        let mut answer = [0; 5];
        app.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"hello");
        assert_eq!(here.bytes(), [(5, 5)]);
        assert_eq!(there.bytes(), [(5, 5)]);
        app.write_all(b" and goodbye").await.unwrap();
        app.shutdown().await.unwrap();
        let mut rest = Vec::new();
        app.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b" and goodbye");
        settled(&here).await;
        settled(&there).await;
        assert_eq!(tunnel.streams(), 0);
    });
}

#[test]
fn bulk_arrives_unchanged_on_many_streams_at_once() {
    run(async {
        let certificate = certificate().await;
        let (here, there) = (Account::new(), Account::new());
        let (tunnel, _) = dial(&certificate, serve(&certificate, there.clone()).await).await;
        let echo = echo_server().await;
        let mut tasks = Vec::new();
        for seed in 0..8u8 {
            let app = through(&tunnel, &here, echo).await;
            tasks.push(tokio::spawn(async move {
                let sent: Vec<u8> =
                    (0..9_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
                let (mut read, mut write) = app.into_split();
                let expected = sent.clone();
                let writer = tokio::spawn(async move {
                    write.write_all(&sent).await.unwrap();
                    write.shutdown().await.unwrap();
                });
                let mut got = Vec::new();
                read.read_to_end(&mut got).await.unwrap();
                writer.await.unwrap();
                assert!(got == expected, "stream {seed} was changed");
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
    });
}

#[test]
fn a_reader_that_stalls_costs_one_window_and_holds_up_nobody() {
    run(async {
        let certificate = certificate().await;
        let (here, there) = (Account::new(), Account::new());
        let (tunnel, _) = dial(&certificate, serve(&certificate, there.clone()).await).await;
        // Accepts and never reads.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stalled = through(&tunnel, &here, listener.local_addr().unwrap()).await;
        let (_held, _) = listener.accept().await.unwrap();
        let chunk = vec![7u8; 1 << 20];
        let mut sent = 0u64;
        while let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(300), stalled.write_all(&chunk)).await {
            sent += chunk.len() as u64;
            // Kernel buffers on three sockets take up to some 6 MB each; a window is 4 MiB.
            assert!(sent < 64 << 20, "nothing holds the sender back");
        }
        let mut app = through(&tunnel, &here, echo_server().await).await;
        app.write_all(b"still here").await.unwrap();
        let mut answer = [0; 10];
        app.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"still here");
    });
}

#[test]
fn a_refused_stream_resets_the_application() {
    run(async {
        let certificate = certificate().await;
        let (here, there) = (Account::new(), Account::new());
        let (tunnel, _) = dial(&certificate, serve(&certificate, there.clone()).await).await;
        let mut app = through(&tunnel, &here, "127.0.0.1:1".parse().unwrap()).await;
        assert_eq!(app.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        // Nothing listens there: 503.
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut app = through(&tunnel, &here, free).await;
        assert_eq!(app.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        settled(&here).await;
        settled(&there).await;
    });
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    run(async {
        let certificate = certificate().await;
        let (here, there) = (Account::new(), Account::new());
        let (tunnel, _) = dial(&certificate, serve(&certificate, there.clone()).await).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut app = through(&tunnel, &here, listener.local_addr().unwrap()).await;
        let (server, _) = listener.accept().await.unwrap();
        app.write_all(b"x").await.unwrap();
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let error = loop {
            match app.read(&mut [0; 8]).await {
                Ok(0) => panic!("a reset became an orderly end"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        settled(&there).await;
    });
}

#[test]
fn what_a_tunnel_carries_is_reset_when_its_task_is_cut_off() {
    run(async {
        let certificate = certificate().await;
        let here = Account::new();
        let server = serve(&certificate, Account::new()).await;
        let io = TcpStream::connect(server).await.unwrap();
        let established = handshake::connect(io, certificate.client.clone(), ServerName::IpAddress(server.ip().into()))
            .await
            .unwrap();
        let role = Role::Client(Arc::new(Redialled::default()));
        let (tunnel, handle) = Tunnel::new(established, role, 100, &unlimited());
        let task = tokio::spawn(tunnel);
        let mut app = through(&handle, &here, echo_server().await).await;
        vanished::converse(&mut app).await;
        let mut waiting = through(&handle, &here, echo_server().await).await;
        task.abort();
        for app in [&mut app, &mut waiting] {
            assert_eq!(app.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        }
        settled(&here).await;
        assert_eq!(handle.streams(), 0);
    });
}

#[test]
fn a_connection_ended_from_outside_is_reset_at_both_ends() {
    run(async {
        let certificate = certificate().await;
        let (here, there) = (Account::new(), Account::new());
        let (tunnel, _) = dial(&certificate, serve(&certificate, there.clone()).await).await;
        let mut app = through(&tunnel, &here, echo_server().await).await;
        app.write_all(b"x").await.unwrap();
        app.read_exact(&mut [0; 1]).await.unwrap();
        there.connections.end_all(crate::proxy::live::EndReason::PolicyChanged);
        assert_eq!(app.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        settled(&here).await;
        settled(&there).await;
    });
}

#[test]
fn a_draining_tunnel_finishes_what_it_carries_and_gives_back_what_is_new() {
    run(async {
        let certificate = certificate().await;
        let (here, there) = (Account::new(), Account::new());
        let (tunnel, redialled) = dial(&certificate, serve(&certificate, there.clone()).await).await;
        let echo = echo_server().await;
        let mut app = through(&tunnel, &here, echo).await;
        app.write_all(b"1").await.unwrap();
        app.read_exact(&mut [0; 1]).await.unwrap();
        tunnel.drain();
        let _new = through(&tunnel, &here, echo).await;
        while redialled.0.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        app.write_all(b"2").await.unwrap();
        app.read_exact(&mut [0; 1]).await.unwrap();
        drop(app);
        while !tunnel.is_draining() || tunnel.streams() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn the_h2_crate_speaks_to_our_server() {
    run(async {
        let certificate = certificate().await;
        let there = Account::new();
        let server = serve(&certificate, there.clone()).await;
        let echo = echo_server().await;
        let tcp = TcpStream::connect(server).await.unwrap();
        let connector = TlsConnector::from(certificate.client.clone());
        let tls = connector.connect(ServerName::IpAddress(server.ip().into()), tcp).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut client, connection) = h2::client::handshake(tls).await.unwrap();
        tokio::spawn(connection);
        let request = |target: &str| {
            let uri = http::Uri::builder().authority(target).build().unwrap();
            http::Request::builder().method("CONNECT").uri(uri).body(()).unwrap()
        };
        let (response, mut send) = client.send_request(request(&echo.to_string()), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["baggage"], "service.name=echo");
        let payload = Bytes::from(vec![5u8; 300_000]);
        send.send_data(payload.clone(), true).unwrap();
        let mut body = response.into_body();
        let mut got = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            got.extend_from_slice(&data);
        }
        assert!(got == payload);
        let (refused, _send) = client.send_request(request("127.0.0.1:1"), false).unwrap();
        assert_eq!(refused.await.unwrap().status(), 401);
        let (wrong, _send) = client.send_request(request("no-port-here"), false).unwrap();
        assert_eq!(wrong.await.unwrap().status(), 400);
    });
}

#[test]
fn a_second_tunnel_resumes_the_session_of_the_first() {
    run(async {
        let certificate = certificate().await;
        let (here, there) = (Account::new(), Account::new());
        let server = serve(&certificate, there.clone()).await;
        let name = || ServerName::IpAddress(server.ip().into());
        let dial = || async {
            handshake::connect(TcpStream::connect(server).await.unwrap(), certificate.client.clone(), name())
                .await
                .unwrap()
        };
        let first = dial().await;
        assert!(!first.resumed);
        // The ticket comes behind the handshake, with the first bytes the tunnel carries.
        let (tunnel, handle) = Tunnel::new(first, Role::Client(Arc::new(Redialled::default())), 100, &unlimited());
        tokio::spawn(tunnel);
        let mut app = through(&handle, &here, echo_server().await).await;
        app.write_all(b"x").await.unwrap();
        app.read_exact(&mut [0; 1]).await.unwrap();
        let second = dial().await;
        assert!(second.resumed);
        assert_eq!(second.peer.len(), certificate_chain_len(&certificate));
    });
}

fn certificate_chain_len(certificate: &WorkloadCertificate) -> usize {
    certificate
        .client
        .client_auth_cert_resolver
        .resolve(&[], &[rustls::SignatureScheme::ECDSA_NISTP256_SHA256])
        .unwrap()
        .cert
        .len()
}

#[test]
fn a_peer_may_change_its_keys_at_any_time() {
    run(async {
        let certificate = certificate().await;
        let server = serve(&certificate, Account::new()).await;
        let tcp = TcpStream::connect(server).await.unwrap();
        let connector = TlsConnector::from(certificate.client.clone());
        let mut tls = connector.connect(ServerName::IpAddress(server.ip().into()), tcp).await.unwrap();
        tls.get_mut().1.refresh_traffic_keys().unwrap();
        let (mut client, connection) = h2::client::handshake(tls).await.unwrap();
        tokio::spawn(connection);
        let uri = http::Uri::builder().authority("127.0.0.1:1").build().unwrap();
        let request = http::Request::builder().method("CONNECT").uri(uri).body(()).unwrap();
        let (response, _send) = client.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 401);
    });
}

#[test]
fn our_client_speaks_to_the_h2_crate() {
    run(async {
        let certificate = certificate().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(certificate.server.clone());
        tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = acceptor.accept(tcp).await.unwrap();
            let mut connection = h2::server::handshake(tls).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.method(), "CONNECT");
                tokio::spawn(async move {
                    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                    let mut body = request.into_body();
                    while let Some(Ok(data)) = body.data().await {
                        body.flow_control().release_capacity(data.len()).unwrap();
                        send.send_data(data, false).unwrap();
                    }
                    send.send_data(Bytes::new(), true).unwrap();
                });
            }
        });
        let here = Account::new();
        let (tunnel, _) = dial(&certificate, server).await;
        let mut app = through(&tunnel, &here, "10.0.0.1:80".parse().unwrap()).await;
        let sent = vec![3u8; 500_000];
        let (mut read, mut write) = app.split();
        let (mut got, mut write_all) = (
            Vec::new(),
            std::pin::pin!(async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            }),
        );
        tokio::join!(&mut write_all, async { read.read_to_end(&mut got).await.unwrap() });
        assert!(got == sent);
        settled(&here).await;
    });
}
