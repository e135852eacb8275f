//! Making an HTTP/2 connection, and handing it to those who wait.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use hyper::client::conn::http2::{Builder, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::{Conn, tell};
use crate::waypoint::body::Body;
use crate::waypoint::upstream::dial::Behalf;
use crate::waypoint::upstream::endpoint::Endpoint;
use crate::waypoint::upstream::error::ConnectFailure;
use crate::waypoint::upstream::place::{Of, Open};
use crate::waypoint::upstream::stream::Stream;

/// What is asked for in TLS.
const ALPN: &[u8] = b"h2";
/// How much of one answer, and of all answers of a connection, may be on its way: what the tunnels allow.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest head of an answer.
const MAX_HEAD: u32 = 64 << 10;

/// A connection that may be made, and on whose behalf.
pub(super) struct Dial(pub(super) Behalf);

impl Dial {
    /// Makes the connection in a task of its own: it is for everybody.
    pub(super) fn spawn(self, endpoint: &Arc<Endpoint>, worker: usize) {
        let open = Open::taken(endpoint.clone(), Of::Http2(worker));
        // There is none only when the process ends.
        let Ok(runtime) = Handle::try_current() else { return };
        let endpoint = endpoint.clone();
        runtime.spawn(async move {
            let made = self.make(&endpoint, worker, open).await;
            let mut inner = endpoint.http2.of(worker).lock();
            inner.dialling = false;
            match made {
                Ok(conn) => {
                    inner.conns.push(Arc::new(conn));
                    let grants = inner.grants(&endpoint);
                    let next = inner.next(&endpoint);
                    let unwanted = if endpoint.is_retired() { std::mem::take(&mut inner.conns) } else { Vec::new() };
                    drop(inner);
                    drop(unwanted);
                    tell(grants);
                    next.follow(&endpoint, worker);
                }
                Err((failure, open)) => {
                    let told = std::mem::take(&mut inner.waiting);
                    drop(inner);
                    for waiter in told {
                        // Whoever is gone does not want to know.
                        let _ = waiter.tell.send(Err(failure.clone()));
                    }
                    drop(open);
                }
            }
        });
    }

    async fn make(
        self,
        endpoint: &Endpoint,
        worker: usize,
        open: Open,
    ) -> Result<Conn, (ConnectFailure, Option<Open>)> {
        let io = match endpoint.connect(&self.0, Some(ALPN)).await {
            Ok(io) => io,
            Err(failure) => return Err((failure, Some(open))),
        };
        let io = TokioIo::new(Stream::new(io, open));
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD);
        if let Some((interval, timeout)) = endpoint.pool().h2_keepalive {
            builder.keep_alive_interval(interval).keep_alive_timeout(timeout).keep_alive_while_idle(true);
        }
        let (sender, connection) =
            builder.handshake(io).await.map_err(|error| (ConnectFailure::new(error.to_string()), None))?;
        let allowed = Arc::new(AtomicUsize::new(connection.current_max_send_streams()));
        tokio::spawn(Counted { connection, allowed: allowed.clone() });
        let now = Instant::now();
        Ok(Conn {
            sender,
            active: AtomicU32::new(0),
            served: AtomicU32::new(0),
            allowed,
            behalf: self.0,
            worker,
            opened: now,
            idle_since: Mutex::new(now),
        })
    }
}

/// A connection whose endpoint may change its mind about how many requests it takes at a time.
struct Counted {
    connection: Connection<TokioIo<Stream>, Body, TokioExecutor>,
    allowed: Arc<AtomicUsize>,
}

impl Future for Counted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ended = Pin::new(&mut self.connection).poll(cx);
        self.allowed.store(self.connection.current_max_send_streams(), Ordering::Relaxed);
        ended.map(|ended| {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection to an endpoint ended");
            }
        })
    }
}
