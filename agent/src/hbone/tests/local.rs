//! Tunnels whose streams end in this process, at one end or at both.

mod leaving;
mod peers;
mod pool;
mod turns;
mod unread;
mod web;

use std::io::ErrorKind;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::hbone::local::{ConnectError, Connecting, LocalStream, OUTGOING, Unanswered, connect, offer};
use crate::hbone::tunnel::{Detached, ResponseHeaders};

const WINDOW: usize = 4 << 20;

/// A server of the mesh whose streams end in the test.
struct Server {
    addr: SocketAddr,
    /// What it is asked for.
    asked: UnboundedReceiver<Unanswered>,
    account: Arc<Account>,
    /// Its tunnels. The runtime ends one that is aborted, as if its process had died.
    tunnels: Arc<Mutex<Vec<(Handle, tokio::task::AbortHandle)>>>,
}

impl Server {
    async fn start(certificate: &Arc<WorkloadCertificate>) -> Self {
        Self::start_within(certificate, unlimited()).await
    }

    /// Starts one that may hold so much unread.
    async fn start_within(certificate: &Arc<WorkloadCertificate>, buffers: Arc<Buffers>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (to, asked) = unbounded_channel();
        let (account, tunnels) = (Account::new(), Arc::<Mutex<Vec<_>>>::default());
        let (config, started, hand) = (certificate.server.clone(), tunnels.clone(), Hand(to, account.clone()));
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let established = handshake::accept(io, config.clone()).await.unwrap();
                let (tunnel, handle) = Tunnel::new(established, Role::Server(Arc::new(hand.clone())), 200, &buffers);
                let task = tokio::spawn(async { drop(tunnel.await) });
                started.lock().unwrap().push((handle, task.abort_handle()));
            }
        });
        Self { addr, asked, account, tunnels }
    }

    async fn next(&mut self) -> Unanswered {
        self.asked.recv().await.unwrap()
    }

    /// Accepts the next stream.
    async fn accept(&mut self) -> LocalStream {
        self.next().await.accept(ResponseHeaders::new())
    }
}

/// Hands every CONNECT to the test.
#[derive(Clone)]
struct Hand(tokio::sync::mpsc::UnboundedSender<Unanswered>, Arc<Account>);

impl Accept for Hand {
    fn accept(&self, request: Request) -> Accepted {
        let (unanswered, end) = offer(request);
        self.0.send(unanswered).unwrap();
        Accepted::Serve { end, flow: self.1.flow() }
    }
}

/// A server and a tunnel to it.
struct Scene {
    server: Server,
    tunnel: Handle,
}

impl Scene {
    async fn new() -> Self {
        let certificate = certificate().await;
        let server = Server::start(&certificate).await;
        let (tunnel, _) = dial(&certificate, server.addr).await;
        Self { server, tunnel }
    }

    fn ask(&self) -> Connecting {
        ask(&self.tunnel, Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap())))
    }

    /// Both ends of one stream: the client's and the server's.
    async fn pair(&mut self) -> (LocalStream, LocalStream) {
        let (client, server) = tokio::join!(self.ask(), self.server.accept());
        (client.unwrap(), server)
    }

    /// Nothing is carried any more, and nothing accounted for.
    async fn settled(&self) {
        settled(&self.server.account).await;
        while self.tunnel.streams() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn ask(tunnel: &Handle, request: Request) -> Connecting {
    let (connecting, end) = connect();
    let open = Open { app: Detached::Local(end), request, flow: Flow::unlisted(), attempts: 0 };
    assert!(tunnel.open(Box::new(open)).is_ok());
    connecting
}

async fn error_of_reading(stream: &mut LocalStream) -> ErrorKind {
    stream.read_to_end(&mut Vec::new()).await.unwrap_err().kind()
}

async fn error_of_writing(stream: &mut LocalStream) -> ErrorKind {
    loop {
        if let Err(error) = stream.write_all(&[0; 100]).await {
            return error.kind();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Writes until nothing goes any more; returns how much went.
async fn fill(stream: &mut LocalStream, limit: usize) -> usize {
    let (chunk, mut sent, mut patience) = (vec![7u8; 100_000], 0, 3);
    while sent < limit && patience > 0 {
        let now = chunk.len().min(limit - sent);
        match tokio::time::timeout(Duration::from_millis(200), stream.write(&chunk[..now])).await {
            Ok(written) => (sent, patience) = (sent + written.unwrap(), 3),
            Err(_) => patience -= 1,
        }
    }
    sent
}

#[test]
fn bulk_arrives_unchanged_on_many_streams_at_once_beside_sockets() {
    run(async {
        let mut scene = Scene::new().await;
        let here = Account::new();
        let mut tasks = Vec::new();
        for seed in 0..8u8 {
            let exchange = move |sent: Vec<u8>, got: Vec<u8>| assert!(sent == got, "stream {seed} was changed");
            let sent: Vec<u8> = (0..4_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
            let server = if seed % 2 == 0 {
                let (client, server) = scene.pair().await;
                tasks.push(tokio::spawn(async move { exchange(sent.clone(), there_and_back(client, sent).await) }));
                server
            } else {
                let client = through(&scene.tunnel, &here, "10.0.0.1:80".parse().unwrap()).await;
                tasks.push(tokio::spawn(async move { exchange(sent.clone(), there_and_back(client, sent).await) }));
                scene.server.accept().await
            };
            tokio::spawn(echo(server));
        }
        for task in tasks {
            task.await.unwrap();
        }
        scene.settled().await;
        settled(&here).await;
    });
}

async fn there_and_back<S: tokio::io::AsyncRead + tokio::io::AsyncWrite>(stream: S, sent: Vec<u8>) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut got = Vec::new();
    let writer = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), read) = tokio::join!(writer, read.read_to_end(&mut got));
    read.unwrap();
    got
}

async fn echo(stream: LocalStream) {
    let (mut read, mut write) = tokio::io::split(stream);
    tokio::io::copy_buf(&mut tokio::io::BufReader::new(&mut read), &mut write).await.unwrap();
    write.shutdown().await.unwrap();
}

#[test]
fn either_end_may_stop_sending_and_go_on_reading() {
    run(async {
        let mut scene = Scene::new().await;
        for client_first in [true, false] {
            let (client, server) = scene.pair().await;
            let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
            first.write_all(b"question").await.unwrap();
            first.shutdown().await.unwrap();
            let mut got = String::new();
            second.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "question");
            second.write_all(b"answer").await.unwrap();
            let mut answer = [0; 6];
            first.read_exact(&mut answer).await.unwrap();
            second.shutdown().await.unwrap();
            assert_eq!(first.read(&mut answer).await.unwrap(), 0);
        }
        scene.settled().await;
    });
}

#[test]
fn an_end_dropped_in_mid_stream_resets_the_other() {
    run(async {
        let mut scene = Scene::new().await;
        for client_drops in [true, false] {
            let (client, server) = scene.pair().await;
            let (mut dropped, mut left) = if client_drops { (client, server) } else { (server, client) };
            dropped.write_all(b"half a mess").await.unwrap();
            let mut got = [0; 11];
            left.read_exact(&mut got).await.unwrap();
            drop(dropped);
            assert_eq!(error_of_reading(&mut left).await, ErrorKind::ConnectionReset);
            assert_eq!(left.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        scene.settled().await;
    });
}

#[test]
fn what_was_written_before_the_end_arrives_though_the_end_is_dropped() {
    run(async {
        let mut scene = Scene::new().await;
        for client_drops in [true, false] {
            let (client, server) = scene.pair().await;
            let (mut dropped, mut left) = if client_drops { (client, server) } else { (server, client) };
            // Something that nobody is going to read.
            left.write_all(b"unread").await.unwrap();
            dropped.write_all(&[5; OUTGOING]).await.unwrap();
            dropped.shutdown().await.unwrap();
            drop(dropped);
            let mut got = Vec::new();
            left.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, [5; OUTGOING]);
            assert_eq!(error_of_writing(&mut left).await, ErrorKind::BrokenPipe);
            left.shutdown().await.unwrap();
        }
        scene.settled().await;
    });
}

#[test]
fn a_reader_that_stalls_costs_one_window_and_holds_up_nobody_else() {
    run(async {
        let mut scene = Scene::new().await;
        let (mut writer, mut stalled) = scene.pair().await;
        assert_eq!(fill(&mut writer, 64 << 20).await, WINDOW + OUTGOING);
        let (mut client, server) = scene.pair().await;
        tokio::spawn(echo(server));
        client.write_all(b"still here").await.unwrap();
        let mut answer = [0; 10];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"still here");
        // Once it reads, the rest comes.
        let more = tokio::spawn(async move {
            writer.write_all(&vec![7; WINDOW]).await.unwrap();
            writer.shutdown().await.unwrap();
            // Its own reading waits for the peer's end.
            assert_eq!(writer.read(&mut [0; 1]).await.unwrap(), 0);
        });
        let mut got = Vec::new();
        stalled.read_to_end(&mut got).await.unwrap();
        stalled.shutdown().await.unwrap();
        assert_eq!(got.len(), 2 * WINDOW + OUTGOING);
        more.await.unwrap();
    });
}

#[test]
fn a_client_that_stalls_holds_back_the_server() {
    run(async {
        let mut scene = Scene::new().await;
        let (mut stalled, mut writer) = scene.pair().await;
        let sent = fill(&mut writer, 64 << 20).await;
        assert_eq!(sent, WINDOW + OUTGOING);
        stalled.read_exact(&mut vec![0; sent]).await.unwrap();
        writer.write_all(&[1; OUTGOING]).await.unwrap();
    });
}

#[test]
fn readers_that_stall_beyond_the_connections_window_go_on_where_they_were() {
    run_within(3 * LIMIT, async {
        let mut scene = Scene::new().await;
        let total = WINDOW + (1 << 19);
        let (mut filling, mut readers) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            let (mut writer, reader) = scene.pair().await;
            readers.push(reader);
            filling.push(tokio::spawn(async move {
                let sent = fill(&mut writer, total).await;
                (writer, sent)
            }));
        }
        let (mut writing, mut at_first) = (Vec::new(), 0);
        for filling in filling {
            let (mut writer, sent) = filling.await.unwrap();
            at_first += sent;
            writing.push(async move {
                writer.write_all(&vec![7; total - sent]).await.unwrap();
                writer.shutdown().await.unwrap();
                assert_eq!(writer.read(&mut [0; 1]).await.unwrap(), 0);
            });
        }
        // Of 40 MiB that the streams' windows allow, the connection's lets 16 pass, and again what may be buffered.
        assert!((16 << 20..34 << 20).contains(&at_first), "{at_first} bytes");
        let writing: Vec<_> = writing.into_iter().map(tokio::spawn).collect();
        let reading: Vec<_> = readers.into_iter().map(|reader| tokio::spawn(count_slowly(reader))).collect();
        for reading in reading {
            assert_eq!(reading.await.unwrap(), total);
        }
        for writing in writing {
            writing.await.unwrap();
        }
        scene.settled().await;
    });
}

async fn count_slowly(mut stream: LocalStream) -> usize {
    let (mut buffer, mut got) = (vec![0; 20_000], 0);
    loop {
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            length => got += length,
        }
        tokio::task::yield_now().await;
    }
    stream.shutdown().await.unwrap();
    got
}

#[test]
fn the_application_sees_the_request_and_its_answer_is_the_peers() {
    run(async {
        let mut scene = Scene::new().await;
        let request = Request::connect(&Authority::Host("web.shop.svc.cluster.local".into(), 80))
            .with_header("forwarded", "for=\"10.0.0.9:4000\"")
            .with_header("baggage", "k8s.namespace.name=shop")
            .with_header("x-forwarded-network", "network-1");
        for status in [403, 503, 400, 429] {
            let asked = ask(&scene.tunnel, request.clone());
            let unanswered = scene.server.next().await;
            assert_eq!(*unanswered.request(), request);
            // It thinks it over.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                unanswered.refuse(status);
            });
            let Err(error) = asked.await else { panic!("it was refused") };
            assert_eq!(error, ConnectError::Refused { status });
        }
        let asked = ask(&scene.tunnel, request);
        drop(scene.server.next().await);
        assert_eq!(asked.await.err(), Some(ConnectError::Refused { status: 503 }));
        scene.settled().await;
    });
}

#[test]
fn who_does_not_make_up_its_mind_in_time_has_refused() {
    run_within(DAY, async {
        let mut scene = Scene::new().await;
        let asked = scene.ask();
        let unanswered = scene.server.next().await;
        pause_and_walk();
        let started = tokio::time::Instant::now();
        assert_eq!(asked.await.err(), Some(ConnectError::Refused { status: 503 }));
        let took = started.elapsed();
        assert!((9_900..12_000).contains(&took.as_millis()), "{took:?}");
        tokio::time::resume();
        let mut late = unanswered.accept(ResponseHeaders::new());
        assert_eq!(error_of_reading(&mut late).await, ErrorKind::ConnectionReset);
        scene.settled().await;
    });
}

#[test]
fn dropping_the_future_gives_the_stream_up() {
    run(async {
        let mut scene = Scene::new().await;
        // Before the peer has answered.
        let asked = scene.ask();
        let unanswered = scene.server.next().await;
        drop(asked);
        while scene.tunnel.streams() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        settled(&scene.server.account).await;
        let mut late = unanswered.accept(ResponseHeaders::new());
        assert_eq!(error_of_reading(&mut late).await, ErrorKind::ConnectionReset);
        // Before the tunnel has looked at it.
        drop(scene.ask());
        // After the answer, which nobody has seen.
        let asked = scene.ask();
        let mut accepted = scene.server.accept().await;
        accepted.write_all(b"hello").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(asked);
        assert_eq!(error_of_reading(&mut accepted).await, ErrorKind::ConnectionReset);
        scene.settled().await;
        assert!(scene.server.asked.try_recv().is_err());
    });
}

#[test]
fn a_tunnel_that_dies_resets_its_streams_and_fails_those_on_their_way() {
    run(async {
        let mut scene = Scene::new().await;
        let (mut client, mut server) = scene.pair().await;
        let asked = scene.ask();
        let _unanswered = scene.server.next().await;
        for (_, task) in scene.server.tunnels.lock().unwrap().iter() {
            task.abort();
        }
        assert_eq!(error_of_reading(&mut client).await, ErrorKind::ConnectionReset);
        assert_eq!(error_of_reading(&mut server).await, ErrorKind::ConnectionReset);
        assert!(matches!(asked.await.err(), Some(ConnectError::Failed { .. })));
    });
}

#[test]
fn a_local_stream_is_accounted_for_and_can_be_ended_from_outside() {
    run(async {
        let mut scene = Scene::new().await;
        let (mut client, mut server) = scene.pair().await;
        client.write_all(b"12345").await.unwrap();
        server.read_exact(&mut [0; 5]).await.unwrap();
        server.write_all(b"123").await.unwrap();
        client.read_exact(&mut [0; 3]).await.unwrap();
        assert_eq!(scene.server.account.bytes(), [(5, 3)]);
        scene.server.account.connections.end_all(crate::proxy::live::EndReason::PolicyChanged);
        assert_eq!(error_of_reading(&mut client).await, ErrorKind::ConnectionReset);
        let error = server.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.to_string(), "connection closed due to policy change");
        scene.settled().await;
    });
}
