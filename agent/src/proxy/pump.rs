//! Copying between two plain TCP connections, with half-close and reset carried over.

use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::live::Flow;
use crate::hbone::scratch;
use crate::hbone::tunnel::abort;
use crate::telemetry::Outcome;

/// Reads before other tasks of the worker get their turn.
const TURNS: usize = 8;

/// Copies in both directions until both are done, one fails, or the connection is ended from outside. A failure of
/// either side is passed on to the other as a reset.
pub(super) async fn pump(client: TcpStream, server: TcpStream, flow: Flow) {
    Pump { client, server, flow: Some(flow), up: Direction::default(), down: Direction::default() }.await;
}

#[derive(Default)]
struct Direction {
    /// What the reader did not take, up to one turn's worth: nothing more is read before it is gone.
    pending: Vec<u8>,
    written: usize,
    ended: bool,
    shut: bool,
}

struct Pump {
    client: TcpStream,
    server: TcpStream,
    flow: Option<Flow>,
    up: Direction,
    down: Direction,
}

impl Future for Pump {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Some(flow) = &this.flow else { return Poll::Ready(()) };
        flow.on_end(cx.waker());
        if let Some(reason) = flow.ended() {
            abort(&this.client);
            abort(&this.server);
            if let Some(flow) = this.flow.take() {
                flow.close_ended(reason);
            }
            return Poll::Ready(());
        }
        let up = this.up.poll(cx, &mut this.client, &mut this.server, |n| flow.request_bytes(n));
        let down = this.down.poll(cx, &mut this.server, &mut this.client, |n| flow.response_bytes(n));
        let outcome = match (up, down) {
            (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => {
                abort(&this.client);
                abort(&this.server);
                Outcome::error(error.to_string())
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Outcome::complete(),
            _ => return Poll::Pending,
        };
        if let Some(flow) = this.flow.take() {
            flow.close(outcome);
        }
        Poll::Ready(())
    }
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: impl Fn(usize),
    ) -> Poll<io::Result<()>> {
        for _ in 0..TURNS {
            ready!(self.flush(cx, to))?;
            if self.shut {
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                self.shut = true;
                // Fails only if the reader is gone, which the other direction finds out.
                let _ = SockRef::from(&*to).shutdown(Shutdown::Write);
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

    fn flush(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            self.written += ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.written..]))?;
        }
        if !self.pending.is_empty() {
            self.pending = Vec::new();
            self.written = 0;
        }
        Poll::Ready(Ok(()))
    }
}
