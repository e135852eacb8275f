//! A peer that is gone without a word: its node has lost its power, or the link has been cut.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use super::*;
use crate::hbone::tunnel::TunnelError;

/// A PING every 10 s and 20 s to answer it: what is silent for longer is closed, when the next one is due at the latest.
pub(super) const PATIENCE: std::ops::RangeInclusive<Duration> = Duration::from_secs(29)..=Duration::from_secs(41);

/// Runs a tunnel until it is frozen: its socket stays open, and nothing is read or answered any more.
pub(super) async fn until_frozen(mut tunnel: Tunnel, is_frozen: impl Fn() -> bool) -> Result<(), TunnelError> {
    std::future::poll_fn(|cx| if is_frozen() { Poll::Pending } else { Pin::new(&mut tunnel).poll(cx) }).await
}

/// Like [`serve`], but the first `frozen` tunnels are.
pub(super) async fn serve_freezable(
    certificate: &Arc<WorkloadCertificate>,
    account: Arc<Account>,
    frozen: Arc<AtomicUsize>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = certificate.server.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((io, _)) = listener.accept().await else { return };
            let (config, account, frozen) = (config.clone(), account.clone(), frozen.clone());
            tokio::spawn(async move {
                let established = handshake::accept(io, config).await.unwrap();
                let (tunnel, _handle) =
                    Tunnel::new(established, Role::Server(Arc::new(ToTarget(account))), 200, &unlimited());
                until_frozen(tunnel, || number < frozen.load(Ordering::Relaxed)).await
            });
        }
    });
    addr
}

/// How long an application waits, by the paused clock, until its connection is reset.
pub(super) async fn time_to_reset(app: &mut TcpStream) -> Duration {
    let started = tokio::time::Instant::now();
    let end = tokio::time::timeout(Duration::from_secs(600), app.read(&mut [0; 8])).await;
    assert_eq!(end.expect("it ends").unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    started.elapsed()
}

pub(super) async fn converse(app: &mut TcpStream) {
    app.write_all(b"x").await.unwrap();
    app.read_exact(&mut [0; 1]).await.unwrap();
}

#[test]
fn a_client_resets_what_goes_through_a_tunnel_whose_server_has_vanished() {
    run_within(DAY, async {
        let certificate = certificate().await;
        let (here, there, frozen) = (Account::new(), Account::new(), Arc::new(AtomicUsize::new(0)));
        let server = serve_freezable(&certificate, there, frozen.clone()).await;
        let io = TcpStream::connect(server).await.unwrap();
        let name = ServerName::IpAddress(server.ip().into());
        let established = handshake::connect(io, certificate.client.clone(), name).await.unwrap();
        let (tunnel, handle) =
            Tunnel::new(established, Role::Client(Arc::new(Redialled::default())), 100, &unlimited());
        let tunnel = tokio::spawn(tunnel);
        let echo = echo_server().await;
        let mut open = through(&handle, &here, echo).await;
        converse(&mut open).await;

        frozen.store(1, Ordering::Relaxed);
        let mut waiting = through(&handle, &here, echo).await;
        tokio::time::pause();
        let took = time_to_reset(&mut open).await;
        assert!(PATIENCE.contains(&took), "{took:?}");
        assert!(time_to_reset(&mut waiting).await < Duration::from_secs(1));
        assert!(matches!(tunnel.await.unwrap(), Err(TunnelError::Silent)));
        assert!(handle.is_draining() && here.connections.is_empty());
    });
}

#[test]
fn a_server_resets_what_comes_through_a_tunnel_whose_client_has_vanished() {
    run_within(DAY, async {
        let certificate = certificate().await;
        let (here, there, frozen) = (Account::new(), Account::new(), Arc::new(AtomicUsize::new(0)));
        let server = serve(&certificate, there.clone()).await;
        let io = TcpStream::connect(server).await.unwrap();
        let name = ServerName::IpAddress(server.ip().into());
        let established = handshake::connect(io, certificate.client.clone(), name).await.unwrap();
        let (tunnel, handle) =
            Tunnel::new(established, Role::Client(Arc::new(Redialled::default())), 100, &unlimited());
        let freeze = frozen.clone();
        tokio::spawn(async move { until_frozen(tunnel, || freeze.load(Ordering::Relaxed) > 0).await });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = through(&handle, &here, listener.local_addr().unwrap()).await;
        let (mut application, _) = listener.accept().await.unwrap();
        client.write_all(b"x").await.unwrap();
        application.read_exact(&mut [0; 1]).await.unwrap();

        frozen.store(1, Ordering::Relaxed);
        tokio::time::pause();
        let took = time_to_reset(&mut application).await;
        assert!(PATIENCE.contains(&took), "{took:?}");
        assert!(there.connections.is_empty());
    });
}
