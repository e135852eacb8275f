//! The client's stream as hyper's HTTP/1 server reads it, with an eye on what hyper does not tell.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::framing::Framing;

/// How long the head of a request may take from its first byte to its last.
pub(super) const HEAD_TIME: Duration = Duration::from_secs(10);

/// A client's stream. Reading fails with [`io::ErrorKind::TimedOut`] once a head takes longer than [`HEAD_TIME`].
pub(super) struct Wire<S> {
    stream: S,
    framing: Framing,
    watch: Arc<Watch>,
    /// When the head that is coming has to be there.
    deadline: Option<Instant>,
    /// Made with the first head that comes in pieces.
    timer: Option<Pin<Box<Sleep>>>,
}

/// What is known of a stream, for whoever answers its requests.
#[derive(Debug, Default)]
pub(super) struct Watch {
    ambiguous: AtomicBool,
    upgraded: AtomicBool,
    late: AtomicBool,
}

impl Watch {
    /// Whether a head said its length in two ways: no request behind it can be trusted to be one.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.ambiguous.load(Ordering::Relaxed)
    }

    /// What comes from now on is no HTTP.
    pub(super) fn upgraded(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    /// Whether a head took too long.
    pub(super) fn is_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S) -> (Self, Arc<Watch>) {
        let watch = Arc::<Watch>::default();
        let wire = Self { stream, framing: Framing::default(), watch: watch.clone(), deadline: None, timer: None };
        (wire, watch)
    }

    fn follow(&mut self, bytes: &[u8]) {
        self.framing.follow(bytes);
        if self.framing.is_ambiguous() {
            self.watch.ambiguous.store(true, Ordering::Relaxed);
        }
        if !self.framing.is_in_head() {
            self.deadline = None;
        }
    }

    /// Whether the head that is coming has taken too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.framing.is_in_head() {
            return Poll::Pending;
        }
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + HEAD_TIME);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if this.watch.upgraded.load(Ordering::Relaxed) {
            return read;
        }
        match read {
            Poll::Ready(Ok(())) => this.follow(&buf.filled()[before..]),
            Poll::Pending if this.poll_late(cx).is_ready() => {
                this.watch.late.store(true, Ordering::Relaxed);
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the head of a request took too long",
                )));
            }
            _ => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_head_that_comes_byte_by_byte_has_so_long_and_no_longer() {
        let (mut client, server) = duplex(64);
        let (mut wire, watch) = Wire::new(server);
        let start = Instant::now();
        let slow = tokio::spawn(async move {
            for byte in b"GET / HTTP/1.1\r\n".iter().cycle() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if client.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        });
        let error = loop {
            if let Err(error) = wire.read_u8().await {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(watch.is_late());
        assert_eq!(start.elapsed(), Duration::from_secs(1) + HEAD_TIME, "from the first byte on");
        slow.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_a_client_may_be_silent() {
        let (mut client, server) = duplex(64);
        let (mut wire, watch) = Wire::new(server);
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        wire.read_exact(&mut [0; 18]).await.unwrap();
        let silence = tokio::time::timeout(HEAD_TIME * 10, wire.read_u8()).await;
        assert!(silence.is_err() && !watch.is_late());
    }

    #[tokio::test]
    async fn what_is_no_longer_http_is_not_looked_at() {
        let (mut client, server) = duplex(256);
        let (mut wire, watch) = Wire::new(server);
        watch.upgraded();
        let text = b"GET / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n";
        client.write_all(text).await.unwrap();
        wire.read_exact(&mut [0; 60]).await.unwrap();
        assert!(!watch.is_ambiguous());
    }
}
