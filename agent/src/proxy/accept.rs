//! Accepting connections on a pod's listeners.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::sync::watch;

use crate::telemetry::PeerLine;

/// How long to wait when the process is out of descriptors or memory: accepting again at once would only spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Of what waits when a listener is given up, how many connections are still taken: as many as may wait.
const BACKLOG: usize = 4096;

/// A connection as it was accepted: not registered with a reactor, since another worker may serve it.
pub(crate) struct Incoming {
    /// The socket, nonblocking.
    pub(crate) socket: TcpStream,
    /// Who dialled.
    pub(crate) remote: SocketAddr,
    /// What they dialled.
    pub(crate) local: SocketAddr,
}

/// Accepts until `stop` changes or its sender goes, handing each connection to `serve`; last those that wait by then:
/// for their clients they are open, and closing the listener would reset them.
pub(crate) async fn accept(listener: TcpListener, mut stop: watch::Receiver<bool>, serve: impl Fn(Incoming)) {
    // tokio's own listener would register what it accepts with this worker's reactor, though another may serve it. So
    // the listener is only watched, as any socket can be.
    let listener = match tokio::net::TcpStream::from_std(TcpStream::from(OwnedFd::from(listener))) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a pod's listener cannot be watched: its connections are refused");
            return;
        }
    };
    loop {
        tokio::select! {
            _ = stop.changed() => {
                for _ in 0..BACKLOG {
                    match accept_one(&SockRef::from(&listener)) {
                        Ok(incoming) => serve(incoming),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_exhausted(&error) => break,
                        Err(_) => {}
                    }
                }
                return;
            }
            ready = listener.readable() => {
                if ready.is_err() {
                    return;
                }
                match listener.try_io(Interest::READABLE, || accept_one(&SockRef::from(&listener))) {
                    Ok(incoming) => serve(incoming),
                    Err(error) if is_exhausted(&error) => {
                        if PeerLine::Exhausted.may_be_written() {
                            tracing::warn!(%error, "connections wait: the agent is out of resources; raise its limits");
                        }
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                    // Nothing there after all, or the client left before it was accepted.
                    Err(_) => {}
                }
            }
        }
    }
}

fn accept_one(listener: &SockRef<'_>) -> io::Result<Incoming> {
    let (socket, remote) = listener.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)?;
    let local = socket.local_addr()?.as_socket();
    let (Some(remote), Some(local)) = (remote.as_socket(), local) else {
        return Err(io::ErrorKind::AddrNotAvailable.into());
    };
    socket.set_tcp_nodelay(true)?;
    Ok(Incoming {
        socket: socket.into(),
        remote: culvert_core::address::canonical(remote),
        local: culvert_core::address::canonical(local),
    })
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_waits_in_a_listener_that_is_given_up_is_served() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let to = listener.local_addr().unwrap();
        let _clients: Vec<_> = (0..3).map(|_| TcpStream::connect(to).unwrap()).collect();
        let (stop, stopped) = watch::channel(false);
        stop.send_replace(true);
        let served = AtomicUsize::new(0);
        accept(listener, stopped, |_| {
            served.fetch_add(1, Ordering::Relaxed);
        })
        .await;
        assert_eq!(served.into_inner(), 3);
    }
}
