//! Accepting connections on a pod's listeners.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

/// How long to wait when the process is out of descriptors or memory: accepting again at once would only spin.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// A connection as it was accepted: not registered with a reactor, since another worker may serve it.
pub struct Incoming {
    /// The socket, nonblocking.
    pub socket: TcpStream,
    /// Who dialled.
    pub remote: SocketAddr,
    /// What they dialled.
    pub local: SocketAddr,
}

/// Accepts until `stop` changes or its sender goes, handing each connection to `serve`.
pub async fn accept(listener: TcpListener, mut stop: watch::Receiver<bool>, serve: impl Fn(Incoming)) {
    let listener = match AsyncFd::new(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "a pod's listener cannot be watched: its connections are refused");
            return;
        }
    };
    loop {
        tokio::select! {
            _ = stop.changed() => return,
            ready = listener.readable() => {
                let Ok(mut ready) = ready else { return };
                match ready.try_io(|listener| accept_one(listener.get_ref())) {
                    Ok(Ok(incoming)) => serve(incoming),
                    Ok(Err(error)) if is_exhausted(&error) => {
                        tracing::warn!(%error, "connections wait: the agent is out of resources; raise its limits");
                        tokio::time::sleep(EXHAUSTED_PAUSE).await;
                    }
                    // The client left before it was accepted.
                    Ok(Err(_)) | Err(_) => {}
                }
            }
        }
    }
}

fn accept_one(listener: &TcpListener) -> io::Result<Incoming> {
    let (socket, remote) = SockRef::from(listener).accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)?;
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
