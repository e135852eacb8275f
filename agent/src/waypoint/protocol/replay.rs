//! A stream whose first bytes have been looked at.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncWrite, ReadBuf};

use crate::hbone::local::LocalStream;
use crate::proxy::pump::Leg;

/// How much is read ahead, where no more is needed.
const AHEAD: usize = 4 << 10;

/// A stream of which some may have been read ahead: its reader gets that first.
///
/// What is there in one piece is looked at where it lies; only what comes in several is copied.
pub struct Replay<S> {
    ahead: Vec<u8>,
    /// How much of it has been read again.
    at: usize,
    stream: S,
}

impl<S> Replay<S> {
    /// A stream of which nothing was read.
    pub fn new(stream: S) -> Self {
        Self { ahead: Vec::new(), at: 0, stream }
    }
}

impl<S: AsyncBufRead + Unpin> Replay<S> {
    /// Waits until `needed` bytes are there that have not been read: fewer only at the end. Not to be called once any
    /// have been.
    pub(super) async fn peek(&mut self, needed: usize) -> io::Result<&[u8]> {
        if self.ahead.is_empty() {
            let there = self.stream.fill_buf().await?.len();
            if there >= needed || there == 0 {
                // At once: it is the same as a moment ago.
                return self.stream.fill_buf().await;
            }
        }
        while self.ahead.len() < needed {
            let piece = self.stream.fill_buf().await?;
            if piece.is_empty() {
                break;
            }
            let length = piece.len().min(AHEAD.max(needed) - self.ahead.len());
            self.ahead.extend_from_slice(&piece[..length]);
            self.stream.consume(length);
        }
        Ok(&self.ahead)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Replay<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.ahead.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let length = buf.remaining().min(this.ahead.len() - this.at);
        buf.put_slice(&this.ahead[this.at..this.at + length]);
        this.at += length;
        if this.at == this.ahead.len() {
            (this.ahead, this.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replay<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
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

impl Leg for Replay<LocalStream> {
    // As the stream itself: one that is dropped before its end is reset.
    fn abort(&self) {}
}
