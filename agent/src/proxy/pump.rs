//! Copying between two connections, with half-close and reset carried over.

mod limits;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

pub(crate) use self::limits::Limits;
use self::limits::Running;
use super::live::Flow;
use crate::hbone::local::LocalStream;
use crate::hbone::scratch;
use crate::hbone::tunnel;
use crate::telemetry::Outcome;

/// Reads before other tasks of the worker get their turn.
const TURNS: usize = 8;

/// One end of what is copied. To shut it down ends one direction; to drop it, both.
pub(crate) trait Leg: AsyncRead + AsyncWrite + Unpin {
    /// Makes the close to come a reset rather than an orderly end.
    fn abort(&self);
}

impl Leg for TcpStream {
    fn abort(&self) {
        tunnel::abort(self);
    }
}

impl Leg for LocalStream {
    // One that is dropped before its end is reset.
    fn abort(&self) {}
}

/// Copies in both directions until both are done, one fails, a limit is reached, or the connection is ended from outside.
/// A failure of either side is passed on to the other as a reset, and so are the latter two to both.
pub(crate) async fn pump(client: impl Leg, server: impl Leg, flow: Flow, limits: Limits) {
    let (up, down) = (Direction::default(), Direction::default());
    Pump { client, server, flow: Some(flow), up, down, limits: limits.start() }.await;
}

#[derive(Default)]
struct Direction {
    /// What the reader did not take, up to one turn's worth: nothing more is read before it is gone.
    pending: Vec<u8>,
    written: usize,
    ended: bool,
    shut: bool,
}

struct Pump<C, S> {
    client: C,
    server: S,
    flow: Option<Flow>,
    up: Direction,
    down: Direction,
    limits: Option<Box<Running>>,
}

impl<C: Leg, S: Leg> Future for Pump<C, S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(flow) = &this.flow else { return Poll::Ready(()) };
        flow.on_end(cx.waker());
        if let Some(reason) = flow.ended() {
            return this.cut(reason.outcome());
        }
        let mut moved = false;
        let up = this.up.poll(cx, &mut this.client, &mut this.server, |n| {
            moved = true;
            flow.request_bytes(n);
        });
        let down = this.down.poll(cx, &mut this.server, &mut this.client, |n| {
            moved = true;
            flow.response_bytes(n);
        });
        match (up, down) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => {
                return this.cut(Outcome::error(error.to_string()));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                if let Some(flow) = this.flow.take() {
                    flow.close(Outcome::complete());
                }
                return Poll::Ready(());
            }
            _ => {}
        }
        match this.limits.as_mut().map(|limits| limits.poll_reached(cx, moved)) {
            Some(Poll::Ready(why)) => this.cut(Outcome::error(why)),
            _ => Poll::Pending,
        }
    }
}

impl<C: Leg, S: Leg> Pump<C, S> {
    /// Ends both sides by a reset.
    fn cut(&mut self, outcome: Outcome) -> Poll<()> {
        self.client.abort();
        self.server.abort();
        if let Some(flow) = self.flow.take() {
            flow.close(outcome);
        }
        Poll::Ready(())
    }
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        mut count: impl FnMut(usize),
    ) -> Poll<io::Result<()>> {
        for _ in 0..TURNS {
            ready!(self.flush(cx, to))?;
            if self.shut {
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                // Fails only if the reader is gone, which the other direction finds out.
                let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                self.shut = true;
                return Poll::Ready(Ok(()));
            }
            let read = scratch::with(|scratch| {
                let mut buffer = ReadBuf::new(&mut scratch.incoming);
                ready!(Pin::new(&mut *from).poll_read(cx, &mut buffer))?;
                let mut rest = buffer.filled();
                let read = rest.len();
                while !rest.is_empty() {
                    match Pin::new(&mut *to).poll_write(cx, rest) {
                        Poll::Ready(written) => rest = &rest[written?..],
                        Poll::Pending => {
                            self.pending.extend_from_slice(rest);
                            break;
                        }
                    }
                }
                Poll::Ready(io::Result::Ok(read))
            });
            match ready!(read)? {
                0 => self.ended = true,
                read => count(read),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn flush(&mut self, cx: &mut Context<'_>, to: &mut (impl AsyncWrite + Unpin)) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            self.written += ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.written..]))?;
        }
        if !self.pending.is_empty() {
            self.pending = Vec::new();
            self.written = 0;
        }
        // What is encrypted on its way may wait for more.
        Pin::new(to).poll_flush(cx)
    }
}
