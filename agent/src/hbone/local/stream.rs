//! The end of a local stream that is read and written.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use super::OUTGOING;
use super::pipe::{Over, Pipe, register, reset};

/// A stream of a tunnel, in this process: what a `TcpStream` is to a connection, except that dropping it before
/// [`shutdown`](tokio::io::AsyncWriteExt::shutdown) resets the stream.
///
/// Writing never waits for the peer before [`OUTGOING`] bytes are on their way; flushing does nothing.
pub struct LocalStream {
    pipe: Arc<Pipe>,
    /// What is being read, taken out of the pipe.
    piece: Vec<u8>,
    /// How much of it has been.
    at: usize,
    /// The tunnel knows that everything has been.
    ended: bool,
}

impl LocalStream {
    pub(super) fn new(pipe: Arc<Pipe>) -> Self {
        Self { pipe, piece: Vec::new(), at: 0, ended: false }
    }

    pub(super) fn pipe(&self) -> &Pipe {
        &self.pipe
    }

    /// Sees to it that there is something in `piece`; `false` at the end.
    fn fill(&mut self, cx: &Context<'_>) -> Poll<io::Result<bool>> {
        if self.at < self.piece.len() {
            return Poll::Ready(Ok(true));
        }
        let mut state = self.pipe.lock();
        if let Some(piece) = state.incoming.pop_front() {
            if state.incoming.is_empty() {
                state.incoming = VecDeque::new();
            }
            drop(state);
            (self.piece, self.at) = (piece, 0);
            return Poll::Ready(Ok(true));
        }
        let end = match &state.over {
            Over::No => {
                let before = register(&mut state.reader, cx);
                drop(state);
                drop(before);
                return Poll::Pending;
            }
            Over::End => Ok(false),
            Over::Reset(why) => Err(reset(why.clone())),
        };
        drop(state);
        if !self.ended {
            self.ended = true;
            self.pipe.wake_tunnel();
        }
        Poll::Ready(end)
    }

    fn write(&self, cx: &Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut state = self.pipe.lock();
        if let Some(error) = state.write_error() {
            return Poll::Ready(Err(error));
        }
        let held = state.outgoing.len();
        let length = offered.min(OUTGOING - held);
        if length == 0 && offered > 0 {
            let before = register(&mut state.writer, cx);
            drop(state);
            drop(before);
            return Poll::Pending;
        }
        if state.outgoing.capacity() < held + length {
            // Just enough for a single message; for what goes on behind it, all that there may be.
            let room = if held == 0 { length } else { OUTGOING - held };
            state.outgoing.reserve_exact(room);
        }
        let mut left = length;
        for slice in slices {
            let now = slice.len().min(left);
            state.outgoing.extend(&slice[..now]);
            left -= now;
        }
        // What is there already, the tunnel knows of.
        let tunnel = if held == 0 && length > 0 { state.tunnel.clone() } else { None };
        drop(state);
        if let Some(tunnel) = tunnel {
            std::task::Wake::wake(tunnel);
        }
        Poll::Ready(Ok(length))
    }
}

impl AsyncBufRead for LocalStream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.fill(cx))?;
        Poll::Ready(Ok(&this.piece[this.at..]))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        let amount = amount.min(this.piece.len() - this.at);
        this.at += amount;
        if this.at == this.piece.len() {
            (this.piece, this.at) = (Vec::new(), 0);
        }
        if amount > 0 {
            this.pipe.report(amount);
        }
    }
}

impl AsyncRead for LocalStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let bytes = ready!(self.as_mut().poll_fill_buf(cx))?;
        let length = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..length]);
        self.consume(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LocalStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Ends our half behind what was written; the peer hears of it in time.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.pipe.lock();
        if let Over::Reset(why) = &state.over
            && state.deaf
        {
            return Poll::Ready(Err(reset(why.clone())));
        }
        state.shut = true;
        drop(state);
        self.pipe.wake_tunnel();
        Poll::Ready(Ok(()))
    }
}

impl Drop for LocalStream {
    fn drop(&mut self) {
        let (unread, wakers) = {
            let mut state = self.pipe.lock();
            state.dropped = true;
            let unread = state.unread() + self.piece.len() - self.at;
            state.incoming = VecDeque::new();
            if !state.shut {
                state.outgoing = VecDeque::new();
            }
            (unread, [state.reader.take(), state.writer.take()])
        };
        // Nobody waits any more; but wakers are dropped outside the lock.
        drop(wakers);
        self.pipe.report(unread);
        self.pipe.wake_tunnel();
    }
}
