//! Streams of one tunnel take turns.

use socket2::SockRef;

use super::*;

/// What one stream may get ahead of another: a few of the buffers that a tunnel fills at a time.
const AHEAD: u64 = 1 << 20;
/// How far both come first: buffers are offered to a stream whole only once it has filled smaller pieces.
const BEGUN: u64 = 512 << 10;

/// An application that has sent as much as the sockets take, on a stream that waits to be opened.
async fn eager(account: &Account) -> (TcpStream, Box<Open>, u64) {
    let (app, open) = connection(account, "10.0.0.1:80".parse().unwrap()).await;
    let Detached::Socket(ours) = &open.app else { panic!("not a socket") };
    SockRef::from(ours).set_recv_buffer_size(2 << 20).unwrap();
    SockRef::from(&app).set_send_buffer_size(2 << 20).unwrap();
    app.writable().await.unwrap();
    let mut sent = 0;
    while let Ok(written) = app.try_write(&[7; 16 << 10]) {
        sent += written as u64;
    }
    (app, open, sent)
}

#[test]
fn a_stream_that_has_much_to_send_lets_others_have_their_turn() {
    run(async {
        let mut scene = Scene::new().await;
        let here = Account::new();
        let (first, second) = (eager(&here).await, eager(&here).await);
        assert!(first.2 > BEGUN + AHEAD, "{} bytes fit into the sockets: too few to tell", first.2);
        assert!(scene.tunnel.open(first.1).is_ok() && scene.tunnel.open(second.1).is_ok());
        // Answered at once, so that neither begins before the other.
        let asked = [scene.server.next().await, scene.server.next().await];
        let [_first, mut second] = asked.map(|stream| stream.accept(ResponseHeaders::new()));
        let account = scene.server.account.clone();
        // As a task, whose turn comes between those of the tunnels.
        let most = tokio::spawn(async move {
            second.read_exact(&mut vec![0; BEGUN as usize]).await.unwrap();
            account.bytes().into_iter().map(|(request, _)| request).max()
        });
        let most = most.await.unwrap();
        assert!(most <= Some(BEGUN + AHEAD), "the other stream was {most:?} bytes ahead");
    });
}
