//! What the two ends of a local stream share.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake as _, Waker};

use super::REPORT_AT;
use super::opening::Opening;
use crate::hbone::wake::StreamWaker;

/// Both directions of one stream.
///
/// Nobody is woken, and no waker dropped, under the lock: either may run anything, the other end's `drop` included.
#[derive(Default)]
pub(super) struct Pipe {
    state: Mutex<State>,
    /// Bytes read that the tunnel has not heard of.
    read: AtomicUsize,
    /// The tunnel wants to hear of every byte.
    pressed: AtomicBool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) opening: Opening,
    /// What has come from the peer. No piece is empty.
    pub(super) incoming: VecDeque<Vec<u8>>,
    /// What follows `incoming`.
    pub(super) over: Over,
    /// On its way to the peer.
    pub(super) outgoing: VecDeque<u8>,
    /// Nothing follows `outgoing`.
    pub(super) shut: bool,
    /// The peer takes nothing more.
    pub(super) deaf: bool,
    /// The stream's end in this process is gone.
    pub(super) dropped: bool,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// Whom to wake at the tunnel that carries the stream.
    pub(super) tunnel: Option<Arc<StreamWaker>>,
}

/// Whether the peer will send more.
#[derive(Default)]
pub(super) enum Over {
    #[default]
    No,
    /// It has ended its half.
    End,
    /// The stream was reset, and why.
    Reset(Cow<'static, str>),
}

impl Pipe {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the tunnel attend to the stream.
    pub(super) fn wake_tunnel(&self) {
        let tunnel = self.lock().tunnel.clone();
        if let Some(tunnel) = tunnel {
            tunnel.wake();
        }
    }

    /// The reader has taken `n` bytes.
    pub(super) fn report(&self, n: usize) {
        // Counted before looking whether the tunnel presses, which it says before it looks at the count.
        let unheard = self.read.fetch_add(n, Ordering::SeqCst) + n;
        if unheard >= REPORT_AT || self.pressed.load(Ordering::SeqCst) {
            self.wake_tunnel();
        }
    }

    /// Sets whether every byte is reported at once.
    pub(super) fn press(&self, pressed: bool) {
        self.pressed.store(pressed, Ordering::SeqCst);
    }

    /// Bytes read since the last call.
    pub(super) fn take_read(&self) -> usize {
        self.read.swap(0, Ordering::SeqCst)
    }
}

impl State {
    /// Why nothing can be written, if so.
    pub(super) fn write_error(&self) -> Option<io::Error> {
        match &self.over {
            Over::Reset(why) if self.deaf => Some(reset(why.clone())),
            _ if self.deaf || self.shut => Some(io::ErrorKind::BrokenPipe.into()),
            _ => None,
        }
    }

    /// Bytes that have come and not been taken.
    pub(super) fn unread(&self) -> usize {
        self.incoming.iter().map(Vec::len).sum()
    }
}

/// The error of a stream that was reset.
pub(super) fn reset(why: Cow<'static, str>) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, why)
}

/// Notes whom to wake. What it returns is to be dropped once the lock is released.
#[must_use]
pub(super) fn register(waker: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match waker {
        Some(known) if known.will_wake(cx.waker()) => None,
        other => other.replace(cx.waker().clone()),
    }
}

/// Wakes those who waited.
pub(super) fn wake(wakers: impl IntoIterator<Item = Option<Waker>>) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}
