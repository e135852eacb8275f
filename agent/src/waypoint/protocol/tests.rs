use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;

type Detecting = JoinHandle<io::Result<(Spoken, Replay<BufReader<DuplexStream>>)>>;

/// A client of a connection that is declared like this, and what is made of it. What drains is kept by the caller.
fn start(declared: Option<Declared>) -> (DuplexStream, watch::Sender<bool>, Detecting) {
    let (client, server) = duplex(1 << 16);
    let (drain, draining) = watch::channel(false);
    (client, drain, tokio::spawn(detect(BufReader::new(server), declared, draining)))
}

/// What is made of `pieces`, and that nothing of them is lost.
async fn spoken(declared: Option<Declared>, pieces: &[&[u8]]) -> Spoken {
    let (mut client, _drain, detecting) = start(declared);
    for piece in pieces {
        client.write_all(piece).await.unwrap();
        // Each by itself.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client.shutdown().await.unwrap();
    let (spoken, mut stream) = detecting.await.unwrap().unwrap();
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, pieces.concat(), "something was lost");
    spoken
}

#[tokio::test(start_paused = true)]
async fn first_bytes_tell_what_is_spoken_in_however_many_pieces_they_come_and_none_is_lost() {
    let http1 = || Spoken::Http(HttpVersion::Http1);
    let http2 = || Spoken::Http(HttpVersion::Http2);
    let request = &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..];
    let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..];
    for (bytes, declared, expected) in [
        (request, None, http1()),
        (request, Some(Declared::Http), http1()),
        (request, Some(Declared::Tcp), Spoken::Tcp),
        (request, Some(Declared::Tls), Spoken::Tcp),
        (preface, None, http2()),
        (preface, Some(Declared::Http), http2()),
        (b"PING\r\n", None, Spoken::Tcp),
        (b"PING\r\n", Some(Declared::Http), http1()),
        (b"", None, Spoken::Tcp),
        (b"", Some(Declared::Http), http1()),
        (b"GE", None, Spoken::Tcp),
    ] {
        let each: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(spoken(declared, &[bytes]).await, expected, "{declared:?} {bytes:?}");
        assert_eq!(spoken(declared, &each).await, expected, "{declared:?} {bytes:?} in pieces");
    }
}

#[tokio::test(start_paused = true)]
async fn the_server_name_of_a_real_client_is_found() {
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let mut client = rustls::ClientConnection::new(config.into(), "Cart.shop.example".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    for declared in [None, Some(Declared::Tls)] {
        let (first, rest) = hello.split_at(100);
        assert_eq!(spoken(declared, &[first, rest]).await, Spoken::Tls(Some("cart.shop.example".into())));
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_server_speaks_first_the_connection_goes_on_after_a_while() {
    let (_client, _drain, detecting) = start(None);
    let begun = Instant::now();
    assert_eq!(detecting.await.unwrap().unwrap().0, Spoken::Tcp);
    assert_eq!(begun.elapsed(), DETECTION);
}

#[tokio::test(start_paused = true)]
async fn a_client_of_http_may_take_its_time_but_not_for_ever() {
    let (mut client, _drain, detecting) = start(Some(Declared::Http));
    tokio::time::sleep(FIRST_REQUEST / 2).await;
    client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(detecting.await.unwrap().unwrap().0, Spoken::Http(HttpVersion::Http1));
    let (_client, _drain, detecting) = start(Some(Declared::Http));
    assert_eq!(detecting.await.unwrap().err().unwrap().kind(), io::ErrorKind::TimedOut);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_has_sent_nothing_ends_in_good_order_when_the_waypoint_does() {
    let (mut client, drain, detecting) = start(Some(Declared::Http));
    drain.send_replace(true);
    assert!(detecting.await.unwrap().is_err());
    let mut read = Vec::new();
    client.read_to_end(&mut read).await.unwrap();
}
