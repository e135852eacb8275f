//! A pod whose applications do not read.

use super::*;

const LIMIT_UNREAD: usize = 8 << 20;
/// What one turn may bring before its end, when it is accounted for.
const TURN: usize = crate::hbone::scratch::LEN;

/// A server that may hold little, and two clients.
struct Pod {
    server: Server,
    buffers: Arc<Buffers>,
    greedy: Handle,
    modest: Handle,
}

impl Pod {
    async fn new() -> Self {
        let (certificate, buffers) = (certificate().await, Buffers::new(LIMIT_UNREAD));
        let server = Server::start_within(&certificate, buffers.clone()).await;
        let (greedy, _) = dial(&certificate, server.addr).await;
        let (modest, _) = dial(&certificate, server.addr).await;
        Self { server, buffers, greedy, modest }
    }

    /// A stream through `tunnel`, which nobody reads at the server.
    async fn open(&mut self, tunnel: &Handle) -> (LocalStream, LocalStream) {
        let asked = ask(tunnel, Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap())));
        let (client, server) = tokio::join!(asked, self.server.accept());
        (client.unwrap(), server)
    }
}

/// Writes until nothing goes any more, or the stream is reset.
async fn push(stream: &mut LocalStream) {
    let chunk = vec![7u8; 100_000];
    while let Ok(Ok(_)) = tokio::time::timeout(Duration::from_millis(200), stream.write(&chunk)).await {}
}

#[test]
fn of_a_peer_that_fills_what_a_pod_may_hold_streams_are_reset_and_of_nobody_else() {
    run_within(3 * LIMIT, async {
        let mut pod = Pod::new().await;
        let (modest, greedy) = (pod.modest.clone(), pod.greedy.clone());
        let (mut client, mut little) = pod.open(&modest).await;
        assert_eq!(fill(&mut client, 1 << 20).await, 1 << 20);
        let mut streams = Vec::new();
        for _ in 0..6 {
            let (mut client, server) = pod.open(&greedy).await;
            push(&mut client).await;
            assert!(pod.buffers.held() <= LIMIT_UNREAD + TURN, "{} bytes are held", pod.buffers.held());
            streams.push((client, server));
        }
        let mut lost = 0;
        for (client, server) in &mut streams {
            let refused = tokio::time::timeout(Duration::from_millis(100), client.write(b"x")).await;
            if matches!(refused, Ok(Err(_))) {
                // Nor is what it was given kept.
                assert_eq!(server.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
                lost += 1;
            }
        }
        assert!((1..6).contains(&lost), "{lost} of 6");
        client.shutdown().await.unwrap();
        assert_eq!(little.read_to_end(&mut Vec::new()).await.unwrap(), 1 << 20);
        drop((client, little, streams));
        while pod.buffers.held() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn who_holds_most_gives_way_though_it_brings_nothing_more() {
    run_within(DAY, async {
        let mut pod = Pod::new().await;
        let (modest, greedy) = (pod.modest.clone(), pod.greedy.clone());
        let mut large = [pod.open(&greedy).await, pod.open(&greedy).await];
        for (client, _) in &mut large {
            assert_eq!(fill(client, 3 << 20).await, 3 << 20);
        }
        let (mut client, mut little) = pod.open(&modest).await;
        assert_eq!(fill(&mut client, 3 << 20).await, 3 << 20);
        assert!(pod.buffers.held() > LIMIT_UNREAD);
        tokio::time::pause();
        while pod.buffers.held() > LIMIT_UNREAD {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::resume();
        assert!(pod.buffers.held() > 5 << 20, "no more than needs be");
        client.shutdown().await.unwrap();
        assert_eq!(little.read_to_end(&mut Vec::new()).await.unwrap(), 3 << 20);
    });
}
