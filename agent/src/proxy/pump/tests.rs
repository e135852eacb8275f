use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;

impl Leg for DuplexStream {
    fn abort(&self) {}
}

const IDLE: Duration = Duration::from_secs(60);

/// A client, a server, and what copies between them.
fn start(limits: Limits) -> (DuplexStream, DuplexStream, JoinHandle<()>) {
    let (client, near) = duplex(1 << 10);
    let (far, server) = duplex(1 << 10);
    (client, server, tokio::spawn(pump(near, far, Flow::unlisted(), limits)))
}

#[tokio::test]
async fn what_ends_one_way_goes_on_the_other_way() {
    let (mut client, mut server, copying) = start(Limits::default());
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = String::new();
    server.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "question");
    let long = vec![b'a'; 100_000];
    let (written, read) = tokio::join!(
        async {
            server.write_all(&long).await.unwrap();
            server.shutdown().await
        },
        async {
            let mut read = Vec::new();
            client.read_to_end(&mut read).await.map(|_| read)
        }
    );
    written.unwrap();
    assert!(read.unwrap() == long);
    copying.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_silent_for_too_long_is_closed_and_one_that_is_not_is_not() {
    let (mut client, mut server, copying) = start(Limits { idle: Some(IDLE), open: None });
    let mut byte = [0];
    for _ in 0..5 {
        tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
        server.write_all(b"x").await.unwrap();
        client.read_exact(&mut byte).await.unwrap();
    }
    let last = tokio::time::Instant::now();
    copying.await.unwrap();
    assert_eq!(last.elapsed(), IDLE);
}

#[tokio::test(start_paused = true)]
async fn no_connection_is_open_for_longer_than_it_may_be() {
    let (mut client, mut server, copying) = start(Limits { idle: Some(IDLE), open: Some(4 * IDLE) });
    let begun = tokio::time::Instant::now();
    let busy = tokio::spawn(async move {
        let mut byte = [0];
        while client.write_all(b"x").await.is_ok() && server.read_exact(&mut byte).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(7)).await;
        }
    });
    copying.await.unwrap();
    assert_eq!(begun.elapsed(), 4 * IDLE);
    busy.await.unwrap();
}
