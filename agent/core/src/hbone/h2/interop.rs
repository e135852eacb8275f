//! Against the `h2` crate, an independent implementation, in both roles and in memory.

use std::collections::BTreeMap;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::{Method as HttpMethod, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};

use super::super::Authority;
use super::*;

const SIZE: usize = 24 << 20;

/// A minimal driver: echoes nothing by itself, sends what is queued, records what comes.
struct Driver {
    connection: Connection,
    reader: ReadHalf<DuplexStream>,
    writer: WriteHalf<DuplexStream>,
    wire: Vec<u8>,
    /// What is to be sent, and whether the end follows.
    queued: BTreeMap<StreamId, (Vec<u8>, bool)>,
    seen: BTreeMap<StreamId, Seen>,
    requests: Vec<(StreamId, Request)>,
    go_away: Option<(u32, ErrorCode)>,
    pongs: usize,
    /// The peer's SETTINGS have come.
    settled: bool,
    echo: bool,
    closed: bool,
}

#[derive(Default)]
struct Seen {
    status: Option<u16>,
    baggage: Option<String>,
    data: Vec<u8>,
    ended: bool,
    reset: Option<ErrorCode>,
    /// The stream's window is never given back.
    stalled: bool,
}

impl Driver {
    fn new(connection: Connection, io: DuplexStream) -> Self {
        let (reader, writer) = tokio::io::split(io);
        Self {
            connection,
            reader,
            writer,
            wire: Vec::new(),
            queued: BTreeMap::new(),
            seen: BTreeMap::new(),
            requests: Vec::new(),
            go_away: None,
            pongs: 0,
            settled: false,
            echo: false,
            closed: false,
        }
    }

    fn seen(&mut self, stream: StreamId) -> &mut Seen {
        self.seen.entry(stream).or_default()
    }

    fn send(&mut self, stream: StreamId, data: &[u8], end: bool) {
        let (queue, ends) = self.queued.entry(stream).or_default();
        queue.extend_from_slice(data);
        *ends |= end;
    }

    async fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let mut input = vec![0; 16 << 10];
        loop {
            self.wire.append(self.connection.pending_output());
            if self.wire.len() < 64 << 10 {
                self.write_data();
            }
            if (done(self) && self.wire.is_empty()) || self.closed {
                return;
            }
            tokio::select! {
                n = self.reader.read(&mut input) => match n.unwrap() {
                    0 => self.closed = true,
                    n => self.receive(&input[..n]),
                },
                n = self.writer.write(&self.wire), if !self.wire.is_empty() => drop(self.wire.drain(..n.unwrap())),
            }
        }
    }

    fn write_data(&mut self) {
        let Self { connection, queued, wire, .. } = self;
        queued.retain(|stream, (data, end)| {
            while wire.len() < 256 << 10 && connection.is_sendable(*stream) {
                let n = connection.writable(*stream).min(data.len());
                let last = *end && n == data.len();
                if n == 0 && !last {
                    break;
                }
                let Some(header) = connection.data_header(*stream, n, last) else { break };
                wire.extend_from_slice(&header);
                wire.extend(data.drain(..n));
            }
            connection.is_sendable(*stream) && (*end || !data.is_empty())
        });
    }

    fn receive(&mut self, mut input: &[u8]) {
        loop {
            let (n, event) = self.connection.receive(input).unwrap();
            input = &input[n..];
            let Some(event) = event else {
                assert!(input.is_empty());
                return;
            };
            match event {
                Event::Request { stream, request, end_stream } => {
                    self.seen(stream).ended = end_stream;
                    self.requests.push((stream, request));
                    if self.echo {
                        self.connection.respond(stream, 200, &[("baggage", "service.name=echo")], false).unwrap();
                    }
                }
                Event::Response { stream, response, end_stream } => {
                    let seen = self.seen(stream);
                    seen.status = Some(response.status);
                    seen.baggage = response.headers.get("baggage").map(str::to_owned);
                    seen.ended = end_stream;
                }
                Event::Data { stream, payload, end_stream } => {
                    let seen = self.seen(stream);
                    seen.data.extend_from_slice(payload);
                    seen.ended = end_stream;
                    if !seen.stalled {
                        self.connection.release(stream, payload.len());
                    }
                    self.connection.release_connection(payload.len());
                    if self.echo {
                        self.send(stream, payload, end_stream);
                    }
                }
                Event::Trailers { stream } => self.seen(stream).ended = true,
                Event::Reset { stream, code } => self.seen(stream).reset = Some(code),
                Event::GoAway { last_stream, code } => self.go_away = Some((last_stream, code)),
                Event::Pong { .. } => self.pongs += 1,
                Event::PeerSettings => self.settled = true,
                Event::WindowOpen { .. } => {}
            }
        }
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn target() -> Authority {
    "10.0.0.1:80".parse().unwrap()
}

async fn echo(mut body: RecvStream, mut send: SendStream<Bytes>) {
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).unwrap();
        if send_all(&mut send, data).await.is_none() {
            return;
        }
    }
    let _ = send.send_data(Bytes::new(), true);
}

async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let n = std::future::poll_fn(|cx| send.poll_capacity(cx)).await?.ok()?;
        send.send_data(data.split_to(n.min(data.len())), false).ok()?;
    }
    Some(())
}

/// An `h2` server that answers 200 and echoes, as ztunnel is set up.
async fn serve(io: DuplexStream, streams: u32) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(4 << 20).initial_connection_window_size(16 << 20).max_frame_size(1 << 20);
    builder.max_concurrent_streams(streams);
    let mut connection = builder.handshake::<_, Bytes>(io).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.method(), HttpMethod::CONNECT);
        let baggage = request.headers().get("baggage").cloned();
        let mut response = http::Response::builder().status(StatusCode::OK);
        if let Some(baggage) = baggage {
            response = response.header("baggage", baggage);
        }
        let body = request.into_body();
        let send = respond.send_response(response.body(()).unwrap(), false).unwrap();
        tokio::spawn(echo(body, send));
    }
}

fn client_of(io: DuplexStream) -> Driver {
    Driver::new(Connection::client(Settings::CLIENT), io)
}

fn server_of(io: DuplexStream) -> Driver {
    Driver::new(Connection::server(Settings::SERVER), io)
}

async fn h2_client(io: DuplexStream) -> h2::client::SendRequest<Bytes> {
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(1 << 20)
        .enable_push(false)
        .handshake::<_, Bytes>(io)
        .await
        .unwrap();
    tokio::spawn(async move { drop(connection.await) });
    client
}

fn connect() -> http::Request<()> {
    http::Request::builder()
        .method(HttpMethod::CONNECT)
        .uri("10.0.0.1:80")
        .header("baggage", "k8s.namespace.name=shop,service.name=cart")
        .header("forwarded", "for=\"10.0.0.9:4000\"")
        .body(())
        .unwrap()
}

#[tokio::test]
async fn our_client_moves_large_data_both_ways_through_an_h2_server() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(serve(theirs, 100));
    let mut driver = client_of(ours);
    let request = Request::connect(&target()).with_header("baggage", "service.name=cart");
    let stream = driver.connection.open_stream(&request).unwrap();
    let data = pattern(SIZE);
    driver.send(stream, &data, true);
    driver.run_until(|d| d.seen(stream).ended).await;
    let seen = driver.seen(stream);
    assert_eq!((seen.status, seen.baggage.as_deref()), (Some(200), Some("service.name=cart")));
    assert!(seen.data == data);
    assert_eq!(driver.connection.open_streams(), 0);
    assert_eq!(driver.connection.peer_max_concurrent(), 100);
}

#[tokio::test]
async fn our_server_moves_large_data_both_ways_for_an_h2_client() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let client = tokio::spawn(async move {
        let mut client = h2_client(theirs).await.ready().await.unwrap();
        let (response, mut send) = client.send_request(connect(), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["baggage"], "service.name=echo");
        let data = pattern(SIZE);
        let sent = Bytes::from(data.clone());
        let sender = tokio::spawn(async move {
            send_all(&mut send, sent).await.unwrap();
            send.send_data(Bytes::new(), true).unwrap();
        });
        let mut body = response.into_body();
        let mut received = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            received.extend_from_slice(&data);
        }
        sender.await.unwrap();
        assert!(received == data);
    });
    let mut driver = server_of(ours);
    driver.echo = true;
    driver.run_until(|_| false).await;
    client.await.unwrap();
    let (_, request) = &driver.requests[0];
    assert_eq!(request.target(), Ok(target()));
    assert_eq!(request.headers.get("forwarded"), Some("for=\"10.0.0.9:4000\""));
    assert_eq!(driver.connection.open_streams(), 0);
}

#[tokio::test]
async fn many_streams_share_a_connection_up_to_the_peers_limit() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(serve(theirs, 100));
    let mut driver = client_of(ours);
    driver.run_until(|d| d.settled).await;
    for round in 0..3 {
        let mut streams = Vec::new();
        while let Ok(stream) = driver.connection.open_stream(&Request::connect(&target())) {
            driver.send(stream, format!("{round} {stream}").as_bytes(), true);
            streams.push(stream);
        }
        assert_eq!(streams.len(), 100);
        driver.run_until(|d| streams.iter().all(|s| d.seen(*s).ended)).await;
        assert!(streams.iter().all(|s| driver.seen[s].data == format!("{round} {s}").into_bytes()));
    }
}

#[tokio::test]
async fn a_stalled_stream_costs_one_window_and_does_not_stop_the_others() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(serve(theirs, 100));
    let mut driver = client_of(ours);
    let stalled = driver.connection.open_stream(&Request::connect(&target())).unwrap();
    let other = driver.connection.open_stream(&Request::connect(&target())).unwrap();
    driver.seen(stalled).stalled = true;
    driver.send(stalled, &pattern(9 << 20), true);
    driver.run_until(|d| d.seen(stalled).data.len() == 4 << 20).await;
    driver.send(other, &pattern(1 << 20), true);
    driver.run_until(|d| d.seen(other).ended).await;
    assert_eq!(driver.seen(stalled).data.len(), 4 << 20);
    // Released, it goes on.
    driver.seen(stalled).stalled = false;
    driver.connection.release(stalled, 4 << 20);
    driver.run_until(|d| d.seen(stalled).ended).await;
    assert!(driver.seen(stalled).data == pattern(9 << 20));
}

#[tokio::test]
async fn each_half_closes_by_itself() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let client = tokio::spawn(async move {
        let mut client = h2_client(theirs).await.ready().await.unwrap();
        let (response, mut send) = client.send_request(connect(), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "bye");
        assert!(body.data().await.is_none());
        send.send_data("still here".into(), true).unwrap();
        client
    });
    let mut driver = server_of(ours);
    driver.run_until(|d| !d.requests.is_empty()).await;
    let stream = driver.requests[0].0;
    driver.connection.respond(stream, 200, &[], false).unwrap();
    driver.send(stream, b"bye", true);
    driver.run_until(|d| d.seen(stream).ended).await;
    assert_eq!(driver.seen(stream).data, b"still here");
    assert_eq!(driver.connection.open_streams(), 0);
    client.await.unwrap();
}

#[tokio::test]
async fn resets_reach_the_other_side_with_their_code() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let client = tokio::spawn(async move {
        let mut client = h2_client(theirs).await.ready().await.unwrap();
        let (response, mut send) = client.send_request(connect(), false).unwrap();
        response.await.unwrap();
        send.send_reset(Reason::CANCEL);
        let (response, _send) = client.send_request(connect(), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap_err().reason(), Some(Reason::CONNECT_ERROR));
        client
    });
    let mut driver = server_of(ours);
    driver.echo = true;
    driver.run_until(|d| d.requests.len() == 2).await;
    let [first, second] = [driver.requests[0].0, driver.requests[1].0];
    driver.run_until(|d| d.seen(first).reset.is_some()).await;
    assert!(driver.seen(first).reset.unwrap().is_end());
    driver.connection.reset(second, ErrorCode::CONNECT_ERROR);
    driver.run_until(|_| true).await;
    client.await.unwrap();
}

#[tokio::test]
async fn a_refused_request_ends_with_its_status() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let client = tokio::spawn(async move {
        let mut client = h2_client(theirs).await.ready().await.unwrap();
        let request = http::Request::builder().uri("https://10.0.0.1:80/").body(()).unwrap();
        let (response, _send) = client.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 400);
        assert!(response.into_body().is_end_stream());
        client
    });
    let mut driver = server_of(ours);
    driver.run_until(|d| !d.requests.is_empty()).await;
    let (stream, request) = driver.requests[0].clone();
    assert_eq!(request.target(), Err(BadTarget::NotConnect("GET".into())));
    driver.connection.respond(stream, 400, &[], true).unwrap();
    driver.connection.reset(stream, ErrorCode::NO_ERROR);
    driver.run_until(|_| true).await;
    client.await.unwrap();
    assert_eq!(driver.connection.open_streams(), 0);
}

#[tokio::test]
async fn streams_under_way_survive_our_go_away_and_later_ones_are_refused() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let client = tokio::spawn(async move {
        let mut client = h2_client(theirs).await.ready().await.unwrap();
        let (response, mut send) = client.send_request(connect(), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "draining");
        assert!(client.ready().await.is_err());
        send.send_data("still works".into(), true).unwrap();
        assert_eq!(body.data().await.unwrap().unwrap(), "still works");
        while body.data().await.is_some() {}
    });
    let mut driver = server_of(ours);
    driver.echo = true;
    driver.run_until(|d| !d.requests.is_empty()).await;
    let stream = driver.requests[0].0;
    driver.connection.announce_shutdown();
    driver.connection.go_away(ErrorCode::NO_ERROR);
    assert!(driver.connection.is_draining());
    driver.send(stream, b"draining", false);
    driver.run_until(|d| d.seen(stream).ended && d.queued.is_empty()).await;
    client.await.unwrap();
}

#[tokio::test]
async fn a_servers_go_away_stops_new_streams_only() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(theirs).await.unwrap();
        let (request, mut respond) = connection.accept().await.unwrap().unwrap();
        let send = respond.send_response(http::Response::new(()), false).unwrap();
        connection.graceful_shutdown();
        tokio::spawn(echo(request.into_body(), send));
        while connection.accept().await.is_some() {}
    });
    let mut driver = client_of(ours);
    let stream = driver.connection.open_stream(&Request::connect(&target())).unwrap();
    driver.run_until(|d| d.go_away.is_some()).await;
    assert_eq!(driver.go_away.unwrap().1, ErrorCode::NO_ERROR);
    assert_eq!(driver.connection.open_stream(&Request::connect(&target())), Err(OpenError::Draining));
    driver.send(stream, b"still works", true);
    driver.run_until(|d| d.seen(stream).ended).await;
    assert_eq!(driver.seen(stream).data, b"still works");
}

#[tokio::test]
async fn headers_larger_than_a_frame_travel_by_continuation() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let baggage = "x".repeat(40 << 10);
    let sent = baggage.clone();
    let client = tokio::spawn(async move {
        // Its default maximum frame size is 16 KiB, so our response is split too.
        let (client, connection) =
            h2::client::Builder::new().max_header_list_size(1 << 20).handshake::<_, Bytes>(theirs).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        let mut client = client.ready().await.unwrap();
        let mut request = connect();
        request.headers_mut().insert("baggage", sent.parse().unwrap());
        let (response, _send) = client.send_request(request, false).unwrap();
        assert_eq!(response.await.unwrap().headers()["baggage"], sent);
        client
    });
    let mut driver = server_of(ours);
    driver.run_until(|d| !d.requests.is_empty()).await;
    let (stream, request) = driver.requests[0].clone();
    assert_eq!(request.headers.get("baggage"), Some(baggage.as_str()));
    driver.connection.respond(stream, 200, &[("baggage", &baggage)], false).unwrap();
    driver.run_until(|_| true).await;
    client.await.unwrap();
}

#[tokio::test]
async fn pings_are_answered_both_ways() {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let peer = tokio::spawn(async move {
        let mut connection = h2::server::handshake(theirs).await.unwrap();
        let mut ping = connection.ping_pong().unwrap();
        let pinged = tokio::spawn(async move { ping.ping(h2::Ping::opaque()).await });
        while connection.accept().await.is_some() {}
        pinged.await.unwrap().unwrap();
    });
    let mut driver = client_of(ours);
    driver.connection.ping(*b"culvert!");
    driver.run_until(|d| d.pongs == 1 && d.settled).await;
    for _ in 0..3 {
        driver.connection.ping(*b"culvert!");
        let pongs = driver.pongs;
        driver.run_until(|d| d.pongs > pongs).await;
    }
    driver.connection.go_away(ErrorCode::NO_ERROR);
    driver.run_until(|_| true).await;
    drop(driver);
    peer.await.unwrap();
}
