//! The application's end of a stream: a socket, or someone in this process.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::Shutdown;
use std::ops::Range;
use std::os::fd::AsFd;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use smallvec::SmallVec;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::local::End;
use super::outgoing::MAX_SEGMENTS;
use crate::telemetry::Outcome;

/// An application's end that no tunnel carries yet.
pub enum Detached {
    /// A socket, not registered with any reactor.
    Socket(std::net::TcpStream),
    /// The tunnel's end of a stream that stays in this process.
    Local(End),
}

impl From<std::net::TcpStream> for Detached {
    fn from(socket: std::net::TcpStream) -> Self {
        Self::Socket(socket)
    }
}

impl Detached {
    /// Registers a socket with the reactor of this thread.
    pub(super) fn attach(self) -> io::Result<App> {
        match self {
            Self::Socket(socket) => Ok(App::Socket(TcpStream::from_std(socket)?)),
            Self::Local(end) => Ok(App::Local(end)),
        }
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            // A socket that its application has closed is found out by reading from it.
            Self::Socket(_) => false,
            Self::Local(end) => end.is_dropped(),
        }
    }

    /// Ends it as something that never got through.
    pub(super) fn abort(&self, outcome: &Outcome) {
        match self {
            Self::Socket(socket) => abort(socket),
            Self::Local(end) => end.abort(outcome),
        }
    }
}

/// An application's end that a tunnel carries.
pub(super) enum App {
    Socket(TcpStream),
    Local(End),
}

impl App {
    /// Takes it back from the tunnel.
    pub(super) fn detach(self) -> io::Result<Detached> {
        match self {
            Self::Socket(socket) => Ok(Detached::Socket(socket.into_std()?)),
            Self::Local(end) => {
                end.detach();
                Ok(Detached::Local(end))
            }
        }
    }

    /// Reads into `slices`, which hold `offered` bytes: 0 at the end, [`io::ErrorKind::WouldBlock`] for nothing yet.
    pub(super) fn read(&self, slices: &mut [IoSliceMut<'_>], offered: usize) -> io::Result<usize> {
        match self {
            Self::Socket(socket) => read_ready(socket, slices, offered),
            Self::Local(end) => end.read(slices),
        }
    }

    /// Whether it has something to read; if not, `waker` is woken when it has.
    pub(super) fn is_readable(&self, waker: &Waker) -> bool {
        match self {
            Self::Socket(socket) => socket.poll_read_ready(&mut Context::from_waker(waker)).is_ready(),
            Self::Local(end) => end.has_output(),
        }
    }

    /// Records to offer to a read of which nothing is known: a few for a socket, where places that stay empty cost
    /// something.
    pub(super) fn first_segments(&self) -> usize {
        match self {
            Self::Socket(_) => 1,
            Self::Local(_) => MAX_SEGMENTS,
        }
    }

    /// What it has been given and has not read is not kept for it any longer.
    pub(super) fn forget_unread(&self) {
        // What a socket has been given is the kernel's.
        if let Self::Local(end) = self {
            end.forget_unread();
        }
    }

    /// Takes no more of what it sends.
    pub(super) fn stop_reading(&self) {
        // What a socket sends from now on finds it closed, soon.
        if let Self::Local(end) = self {
            end.deafen();
        }
    }

    /// Whether nobody holds the other end any more, which only a stream of this process can tell.
    pub(super) fn is_dropped(&self) -> bool {
        match self {
            Self::Socket(_) => false,
            Self::Local(end) => end.is_dropped(),
        }
    }

    /// Makes the close to come a reset rather than an orderly end.
    pub(super) fn abort(&self, outcome: &Outcome) {
        match self {
            Self::Socket(socket) => abort(socket),
            Self::Local(end) => end.abort(outcome),
        }
    }
}

/// Makes the close to come a reset rather than an orderly end.
pub(crate) fn abort(socket: &impl AsFd) {
    // A socket that cannot be set any more has failed already.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Tells the application at the socket that the peer is done.
pub(super) fn shut(socket: &TcpStream) {
    // Fails only if the application is gone, which reading will find out.
    let _ = SockRef::from(socket).shutdown(Shutdown::Write);
}

/// Writes the `ranges` of `buffer` to the socket as far as it takes them at once.
pub(super) fn write_ranges(socket: &TcpStream, buffer: &[u8], ranges: &[Range<usize>]) -> io::Result<usize> {
    let slices: SmallVec<[IoSlice<'_>; 20]> =
        ranges.iter().filter_map(|range| buffer.get(range.clone())).map(IoSlice::new).collect();
    let offered: usize = slices.iter().map(|slice| slice.len()).sum();
    write_ready(socket, &slices, offered)
}

/// Writes `bytes` as far as the socket takes them; `waker` is woken when it takes the rest.
pub(super) fn write_all(socket: &TcpStream, waker: &Waker, bytes: &[u8]) -> io::Result<usize> {
    let mut total = 0;
    while total < bytes.len() {
        match socket.poll_write_ready(&mut Context::from_waker(waker)) {
            Poll::Pending => break,
            Poll::Ready(ready) => ready?,
        }
        let rest = &bytes[total..];
        total += write_ready(socket, &[IoSlice::new(rest)], rest.len())?;
    }
    Ok(total)
}

/// `writev` that treats a short write as "no more for now", which saves the call that would find that out. 0 if the
/// socket takes nothing.
fn write_ready(app: &TcpStream, slices: &[IoSlice<'_>], offered: usize) -> io::Result<usize> {
    let socket = SockRef::from(app);
    let mut written = None;
    let outcome = app.try_io(Interest::WRITABLE, || {
        let length = match slices {
            [one] => (&*socket).write(one)?,
            many => (&*socket).write_vectored(many)?,
        };
        written = Some(length);
        if length < offered { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (written, outcome) {
        (Some(length), _) => Ok(length),
        (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Ok(0),
    }
}

/// `readv` that treats a short read as "nothing more for now", which saves the call that would find that out: the
/// socket is edge-triggered, so what arrives later wakes the connection again.
fn read_ready(app: &TcpStream, slices: &mut [IoSliceMut<'_>], offered: usize) -> io::Result<usize> {
    let socket = SockRef::from(app);
    let mut read = None;
    let outcome = app.try_io(Interest::READABLE, || {
        let length = match slices {
            [one] => (&*socket).read(one)?,
            many => (&*socket).read_vectored(many)?,
        };
        read = Some(length);
        if length > 0 && length < offered { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (read, outcome) {
        (Some(length), _) => Ok(length),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(io::ErrorKind::WouldBlock.into()),
    }
}
