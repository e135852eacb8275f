//! Connections that turn from HTTP into something else: WebSockets (RFC 6455).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};

/// Asks for it, or grants it.
pub(super) fn ask(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
}

/// Both ends, once either has agreed.
pub(super) struct Ends {
    pub(super) client: OnUpgrade,
    pub(super) upstream: OnUpgrade,
}

/// What has passed.
#[derive(Debug, Default)]
pub(super) struct Passed {
    pub(super) up: AtomicU64,
    pub(super) down: AtomicU64,
}

impl Ends {
    /// Carries bytes both ways until both are done, or one fails.
    pub(super) async fn pump(self, passed: &Arc<Passed>) -> io::Result<()> {
        let both = tokio::try_join!(self.client, self.upstream).map_err(io::Error::other)?;
        let (client, upstream) = both;
        let mut client = Counting { io: TokioIo::new(client), passed: passed.clone(), count: |passed| &passed.up };
        let mut upstream =
            Counting { io: TokioIo::new(upstream), passed: passed.clone(), count: |passed| &passed.down };
        copy_bidirectional(&mut client, &mut upstream).await.map(drop)
    }
}

/// Counts what is read.
struct Counting {
    io: TokioIo<Upgraded>,
    passed: Arc<Passed>,
    count: fn(&Passed) -> &AtomicU64,
}

impl AsyncRead for Counting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        (self.count)(&self.passed).fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counting {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
