//! The loop: what has arrived, what the applications sent, what goes out.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use culvert_core::hbone::h2::ErrorCode;
use tokio::time::Instant;

use super::mux::{Batch, flags_of};
use super::{Command, Open, Tunnel, TunnelError};
use crate::hbone::outgoing::Outgoing;
use crate::hbone::scratch::Scratch;

/// Turns before other tasks of the worker get theirs.
const TURNS: usize = 4;

impl Tunnel {
    /// Takes turns until nothing is left to do, or others should have the worker.
    pub(super) fn poll_turns(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Result<(), TunnelError>> {
        self.mux.ready.register(cx.waker());
        for _ in 0..TURNS {
            match self.turn(cx, scratch) {
                Ok(Turn::Progress) => {}
                Ok(Turn::Waiting) => return Poll::Pending,
                Ok(Turn::Finished) => {
                    self.hand_back();
                    return Poll::Ready(self.outlived.take().map_or(Ok(()), Err));
                }
                Err(error) => {
                    self.give_up(cx, scratch, &error);
                    if self.mux.is_empty() {
                        return Poll::Ready(Err(error));
                    }
                    self.outlived = Some(error);
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn turn(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Result<Turn, TunnelError> {
        if self.outlived.is_some() {
            let progress = self.mux.serve(None)? | self.account()?;
            return Ok(match self.mux.is_empty() {
                true => Turn::Finished,
                false if progress => Turn::Progress,
                false => Turn::Waiting,
            });
        }
        let commanded = self.take_commands(cx)?;
        if self.lingering.is_some() {
            return Ok(match self.linger(cx, &mut scratch.incoming) {
                Poll::Ready(()) => Turn::Finished,
                Poll::Pending => Turn::Waiting,
            });
        }
        let received = self.receive(cx, &mut scratch.incoming)?;
        let sent = self.send(cx, &mut scratch.outgoing)?;
        let ticked = self.tick(cx)?;
        let shed = self.account()?;
        if self.is_over() {
            self.close();
            return Ok(Turn::Progress);
        }
        if self.wire.ended {
            return Err(TunnelError::Closed);
        }
        Ok(if commanded || received || sent || ticked || shed { Turn::Progress } else { Turn::Waiting })
    }

    fn take_commands(&mut self, cx: &mut Context<'_>) -> Result<bool, TunnelError> {
        let mut progress = false;
        while !self.orphaned
            && let Poll::Ready(command) = self.commands.poll_recv(cx)
        {
            progress = true;
            match command {
                Some(Command::Open(open)) => self.mux.open(open),
                Some(Command::Drain) => self.leave(),
                Some(Command::Distrust(why)) => return Err(TunnelError::Distrusted(why)),
                None => {
                    // Nobody can use it any more.
                    self.orphaned = true;
                    self.leave();
                }
            }
        }
        Ok(progress)
    }

    fn receive(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Result<bool, TunnelError> {
        let mut batch = Batch::default();
        let total = if let Some(early) = self.early.take() {
            // What rustls opened itself, then what it left sealed.
            let length = early.len().min(buffer.len());
            buffer[..length].copy_from_slice(&early[..length]);
            self.frames(buffer, 0..length, &mut batch)?;
            self.mux.deliver(buffer, &mut batch);
            self.wire.take_received(buffer)
        } else {
            match self.wire.read(cx, buffer)? {
                Some(total) => total,
                None => return Ok(false),
            }
        };
        self.heard = Instant::now();
        let mut at = 0;
        while let Some((end, data)) = self.wire.open(&mut buffer[..total], at)? {
            at = end;
            self.frames(buffer, data, &mut batch)?;
        }
        self.mux.deliver(buffer, &mut batch);
        self.wire.keep(&buffer[at..total]);
        Ok(true)
    }

    fn frames(&mut self, buffer: &[u8], data: Range<usize>, batch: &mut Batch) -> Result<(), TunnelError> {
        let mut input = &buffer[data];
        loop {
            let (consumed, event) = self.mux.h2.receive(input)?;
            input = &input[consumed..];
            match event {
                Some(event) => self.mux.event(event, buffer, batch),
                None if consumed == 0 => return Ok(()),
                None => {}
            }
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Result<bool, TunnelError> {
        if self.wire.is_blocked() && !self.wire.flush(cx)? {
            return Ok(self.mux.serve(None)?);
        }
        self.mux.resume();
        let mut out = Outgoing::new(buffer, &mut self.wire.sealer);
        let served = self.mux.serve(Some(&mut out))?;
        self.mux.control(&mut out)?;
        let length = out.finish()?;
        if length > 0 {
            self.wire.write(cx, &buffer[..length])?;
        }
        Ok(served || length > 0)
    }

    /// The tunnel cannot go on: tells the peer why as far as the socket takes it, and resets what was carried.
    fn give_up(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch, error: &TunnelError) {
        self.shared.draining.store(true, Ordering::Relaxed);
        // Without effect if HTTP/2 has said why already.
        self.mux.h2.go_away(ErrorCode::NO_ERROR);
        if self.lingering.is_none() && !self.wire.is_blocked() {
            let mut out = Outgoing::new(&mut scratch.outgoing, &mut self.wire.sealer);
            if self.mux.control(&mut out).is_ok()
                && let Ok(length) = out.finish()
            {
                // Whoever broke the connection may not be listening.
                let _ = self.wire.write(cx, &scratch.outgoing[..length]);
            }
        }
        match error {
            // What had come to its end before is whole, however slowly it is read.
            TunnelError::Io(_) | TunnelError::Closed | TunnelError::Silent => {
                self.mux.fail(|stream| !stream.is_over(), &error.to_string(), flags_of(error));
            }
            _ => self.mux.fail(|_| true, &error.to_string(), flags_of(error)),
        }
        self.hand_back();
    }

    /// Sends elsewhere what has been given to a tunnel that carries nothing more.
    fn hand_back(&mut self) {
        while let Some(open) = self.unopened() {
            self.mux.open(open);
        }
    }

    /// The next that was given to a tunnel that takes nothing any more, and that it has not begun with.
    pub(super) fn unopened(&mut self) -> Option<Box<Open>> {
        self.commands.close();
        loop {
            if let Command::Open(open) = self.commands.try_recv().ok()? {
                return Some(open);
            }
        }
    }
}

enum Turn {
    Progress,
    Waiting,
    Finished,
}
