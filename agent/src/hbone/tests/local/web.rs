//! hyper at both ends: a server over what comes out of a tunnel, a client over what the pool opens.

use std::convert::Infallible;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::pool::Pooled;
use super::*;

async fn echo_body(request: http::Request<Incoming>) -> Result<http::Response<Incoming>, Infallible> {
    Ok(http::Response::new(request.into_body()))
}

fn post(size: usize) -> http::Request<Full<Bytes>> {
    let body = Full::new(Bytes::from((0..size).map(|i| ((i * 31) >> 3) as u8).collect::<Vec<_>>()));
    http::Request::post("http://web/echo").header("host", "web").body(body).unwrap()
}

async fn assert_echoed(response: http::Response<Incoming>, size: usize) {
    assert_eq!(response.status(), 200);
    let expected = post(size).into_body().collect().await.unwrap().to_bytes();
    assert!(response.into_body().collect().await.unwrap().to_bytes() == expected);
}

const SIZES: [usize; 6] = [0, 1, 1000, 100_000, 3_000_000, 10];

#[test]
fn http_1_works_over_the_pools_streams_and_the_tunnels() {
    run(async {
        let mut pooled = Pooled::new().await;
        let (client, server) = tokio::join!(pooled.ask(), pooled.server.accept());
        let serving = hyper::server::conn::http1::Builder::new();
        let serving = tokio::spawn(serving.serve_connection(TokioIo::new(server), service_fn(echo_body)));
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(client.unwrap())).await.unwrap();
        let connection = tokio::spawn(connection);
        for size in SIZES {
            send.ready().await.unwrap();
            assert_echoed(send.send_request(post(size)).await.unwrap(), size).await;
        }
        // An orderly end at both ends: no reset.
        drop(send);
        connection.await.unwrap().unwrap();
        serving.await.unwrap().unwrap();
        settled(&pooled.server.account).await;
    });
}

#[test]
fn http_2_works_over_the_pools_streams_and_the_tunnels() {
    run(async {
        let mut pooled = Pooled::new().await;
        let (client, server) = tokio::join!(pooled.ask(), pooled.server.accept());
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let serving = tokio::spawn(serving.serve_connection(TokioIo::new(server), service_fn(echo_body)));
        let io = TokioIo::new(client.unwrap());
        let (send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let connection = tokio::spawn(connection);
        let mut tasks = Vec::new();
        for size in SIZES {
            let mut send = send.clone();
            tasks.push(tokio::spawn(
                async move { assert_echoed(send.send_request(post(size)).await.unwrap(), size).await },
            ));
        }
        for task in tasks {
            task.await.unwrap();
        }
        drop(send);
        connection.await.unwrap().unwrap();
        // Its farewell may find nobody who still listens.
        let _ = serving.await.unwrap();
        settled(&pooled.server.account).await;
    });
}

#[test]
fn a_response_that_is_cut_off_is_an_error_for_the_client() {
    run(async {
        let mut pooled = Pooled::new().await;
        let (client, server) = tokio::join!(pooled.ask(), pooled.server.accept());
        let mut server = server;
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(client.unwrap())).await.unwrap();
        tokio::spawn(connection);
        let asked = tokio::spawn(send.send_request(post(10)));
        server.read_exact(&mut [0; 20]).await.unwrap();
        // Of unknown length, so that only the stream's end says that it is whole.
        server.write_all(b"HTTP/1.0 200 OK\r\n\r\nhalf a mess").await.unwrap();
        let body = asked.await.unwrap().unwrap().into_body();
        drop(server);
        assert!(body.collect().await.is_err());
    });
}
