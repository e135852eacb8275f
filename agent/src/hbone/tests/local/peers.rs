//! Local streams and the `h2` crate as an independent peer, at either end.

use h2::Reason;

use super::*;
use crate::hbone::tests::vanished::time_to_reset;

async fn client(server: &Server, certificate: &Arc<WorkloadCertificate>) -> h2::client::SendRequest<Bytes> {
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    let connector = TlsConnector::from(certificate.client.clone());
    let tls = connector.connect(ServerName::IpAddress(server.addr.ip().into()), tcp).await.unwrap();
    let (client, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

fn request() -> http::Request<()> {
    let uri = http::Uri::builder().authority("10.0.0.1:80").build().unwrap();
    http::Request::builder().method("CONNECT").uri(uri).header("x-team", "blue").body(()).unwrap()
}

async fn read_all(mut body: h2::RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut got = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        got.extend_from_slice(&data);
    }
    Ok(got)
}

#[test]
fn the_h2_crate_speaks_to_a_stream_that_ends_here() {
    run(async {
        let certificate = certificate().await;
        let mut server = Server::start(&certificate).await;
        let mut client = client(&server, &certificate).await;
        let (response, mut send) = client.send_request(request(), false).unwrap();
        // Sent before it is accepted: kept, not lost.
        send.send_data(Bytes::from(vec![9; 10_000]), false).unwrap();
        let unanswered = server.next().await;
        assert_eq!(unanswered.request().headers.get("x-team"), Some("blue"));
        tokio::time::sleep(Duration::from_millis(20)).await;
        tokio::spawn(echo(unanswered.accept(SmallVec::from_iter([("baggage", "service.name=web".to_owned())]))));
        let response = response.await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["baggage"]),
            (200, &"service.name=web".parse().unwrap())
        );
        let body = tokio::spawn(read_all(response.into_body()));
        send.send_data(Bytes::from(vec![9; 3_000_000]), true).unwrap();
        assert!(body.await.unwrap().unwrap() == vec![9; 3_010_000]);

        let (response, _send) = client.send_request(request(), false).unwrap();
        server.next().await.refuse(403);
        assert_eq!(response.await.unwrap().status(), 403);
        settled(&server.account).await;
    });
}

#[test]
fn resets_of_the_h2_crate_are_told_apart_and_so_are_ours() {
    run(async {
        let certificate = certificate().await;
        let mut server = Server::start(&certificate).await;
        let mut client = client(&server, &certificate).await;
        for (reason, broken) in [(Reason::INTERNAL_ERROR, true), (Reason::CANCEL, false)] {
            let (response, mut send) = client.send_request(request(), false).unwrap();
            let mut stream = server.accept().await;
            response.await.unwrap();
            send.send_data(Bytes::from_static(b"x"), false).unwrap();
            stream.read_exact(&mut [0; 1]).await.unwrap();
            send.send_reset(reason);
            match broken {
                true => assert_eq!(error_of_reading(&mut stream).await, ErrorKind::ConnectionReset),
                false => {
                    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
                    assert_eq!(error_of_writing(&mut stream).await, ErrorKind::BrokenPipe);
                }
            }
        }
        // Cut off by us, before its end and after it.
        for ended in [false, true] {
            let (response, _send) = client.send_request(request(), false).unwrap();
            let mut stream = server.accept().await;
            let body = response.await.unwrap().into_body();
            stream.write_all(b"some").await.unwrap();
            if ended {
                stream.shutdown().await.unwrap();
            }
            let read = tokio::spawn(read_all(body));
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(stream);
            match read.await.unwrap() {
                Ok(got) => assert!(ended && got == b"some"),
                Err(error) => assert!(!ended && error.reason() == Some(Reason::CONNECT_ERROR), "{error}"),
            }
        }
        settled(&server.account).await;
    });
}

/// Serves CONNECTs by the `h2` crate: what `answer` does with each.
async fn serve_h2<F, A>(certificate: &Arc<WorkloadCertificate>, answer: F) -> SocketAddr
where
    F: Fn(http::Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> A + Clone + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(certificate.server.clone());
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let tls = acceptor.accept(tcp).await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(tls).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    });
    addr
}

#[test]
fn a_stream_of_ours_speaks_to_the_h2_crate() {
    run(async {
        let certificate = certificate().await;
        let server = serve_h2(&certificate, |request, mut respond| async move {
            assert_eq!(request.headers()["forwarded"], "for=\"10.0.0.9:4000\"");
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                send.send_data(data, false).unwrap();
            }
            send.send_data(Bytes::new(), true).unwrap();
        })
        .await;
        let (tunnel, _) = dial(&certificate, server).await;
        let request = Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap()))
            .with_header("forwarded", "for=\"10.0.0.9:4000\"");
        let mut tasks = Vec::new();
        for seed in 0..4u8 {
            let stream = ask(&tunnel, request.clone()).await.unwrap();
            let sent: Vec<u8> = (0..1_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
            tasks.push(tokio::spawn(async move { assert!(there_and_back(stream, sent.clone()).await == sent) }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        while tunnel.streams() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn the_h2_crates_refusals_and_resets_are_told() {
    run(async {
        let certificate = certificate().await;
        let server = serve_h2(&certificate, |request, mut respond| async move {
            match request.uri().port_u16() {
                Some(403) => {
                    let refusal = http::Response::builder().status(403).body(()).unwrap();
                    respond.send_response(refusal, true).unwrap();
                }
                Some(1) => respond.send_reset(Reason::INTERNAL_ERROR),
                _ => {
                    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
                    send.send_data(Bytes::from_static(b"half"), false).unwrap();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    send.send_reset(Reason::CONNECT_ERROR);
                }
            }
        })
        .await;
        let (tunnel, _) = dial(&certificate, server).await;
        let to = |port| ask(&tunnel, Request::connect(&Authority::Ip(SocketAddr::new([10, 0, 0, 1].into(), port))));
        assert_eq!(to(403).await.err(), Some(ConnectError::Refused { status: 403 }));
        let Some(ConnectError::Failed { why, .. }) = to(1).await.err() else { panic!("it was reset") };
        assert_eq!(why, "reset by the peer (INTERNAL_ERROR)");
        let mut stream = to(80).await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        let error = stream.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::ConnectionReset, "reset by the peer (CONNECT_ERROR)")
        );
    });
}

#[test]
fn a_connect_that_the_peer_never_answers_is_given_up_after_twenty_seconds() {
    run_within(DAY, async {
        let certificate = certificate().await;
        let (asked, mut arrived) = unbounded_channel();
        let server = serve_h2(&certificate, move |_request, mut respond| {
            let asked = asked.clone();
            async move {
                asked.send(None).unwrap();
                asked.send(Some(std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap())).unwrap();
            }
        })
        .await;
        let (tunnel, redialled) = dial(&certificate, server).await;
        let here = Account::new();
        let mut app = through(&tunnel, &here, "10.0.0.1:80".parse().unwrap()).await;
        let stream = ask(&tunnel, Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap())));
        assert_eq!((arrived.recv().await, arrived.recv().await), (Some(None), Some(None)));
        pause_and_walk();
        let took = time_to_reset(&mut app).await;
        assert!((19_900..22_000).contains(&took.as_millis()), "{took:?}");
        let Some(ConnectError::Failed { flags, why }) = stream.await.err() else { panic!("nobody answered it") };
        assert_eq!(flags, crate::telemetry::ResponseFlags::ConnectFailure);
        assert!(why.contains("within 20 s"), "{why}");
        let cancelled = Some(Some(Reason::CANCEL));
        assert_eq!((arrived.recv().await, arrived.recv().await), (cancelled, cancelled));
        // It is the stream that ends, not the tunnel; and nobody else is asked, who would take as long.
        assert!(here.connections.is_empty() && tunnel.streams() == 0 && tunnel.has_room());
        assert!(redialled.0.lock().unwrap().is_empty());
    });
}
