//! The bytes of one connection to an endpoint, whatever carries them.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::place::{Open, Place};
use crate::hbone::local::LocalStream;
use crate::proxy::pump::Leg;

/// A connection to an endpoint. It counts as open until dropped.
pub struct Stream {
    io: Io,
    _open: Open,
    kept: Kept,
}

/// A connection on which no TLS has been spoken yet.
pub(super) enum Bare {
    /// Through a tunnel.
    Tunnelled(LocalStream),
    /// Over the network.
    Tcp(TcpStream),
}

/// A connection as its user sees it.
pub(super) enum Io {
    Bare(Bare),
    Tls(Box<TlsStream<Bare>>),
}

/// What lives as long as a connection that turned from HTTP into something else.
#[derive(Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Option<Place>>>);

impl Kept {
    /// Keeps `place` until the connection ends.
    pub(super) fn keep(&self, place: Place) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(place);
    }
}

impl Stream {
    pub(super) fn new(io: Io, open: Open) -> Self {
        Self { io, _open: open, kept: Kept::default() }
    }

    /// The address at the other end; `None` through a tunnel, where that is the endpoint's.
    pub fn peer(&self) -> Option<SocketAddr> {
        let bare = match &self.io {
            Io::Bare(bare) => bare,
            Io::Tls(stream) => stream.get_ref().0,
        };
        match bare {
            Bare::Tcp(stream) => stream.peer_addr().ok(),
            Bare::Tunnelled(_) => None,
        }
    }

    /// Where to leave what is to live as long as the connection.
    pub(super) fn kept(&self) -> Kept {
        self.kept.clone()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The other half of it may be held a little longer.
        let place = self.kept.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(place);
    }
}

macro_rules! delegate {
    ($type:ty, $self:ident => $($pattern:pat => $inner:expr),+) => {
        impl AsyncRead for $type {
            fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                match $self { $($pattern => Pin::new($inner).poll_read(cx, buf)),+ }
            }
        }

        impl AsyncWrite for $type {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                let $self = self.get_mut();
                match $self { $($pattern => Pin::new($inner).poll_write(cx, buf)),+ }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                let $self = self.get_mut();
                match $self { $($pattern => Pin::new($inner).poll_write_vectored(cx, bufs)),+ }
            }

            fn is_write_vectored(&self) -> bool {
                let $self = self;
                match $self { $($pattern => $inner.is_write_vectored()),+ }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                match $self { $($pattern => Pin::new($inner).poll_flush(cx)),+ }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                let $self = self.get_mut();
                match $self { $($pattern => Pin::new($inner).poll_shutdown(cx)),+ }
            }
        }
    };
}

delegate!(Bare, this => Self::Tunnelled(io) => io, Self::Tcp(io) => io);
delegate!(Stream, this => Self { io: Io::Bare(io), .. } => io, Self { io: Io::Tls(io), .. } => io);

impl Leg for Stream {
    fn abort(&self) {
        let bare = match &self.io {
            Io::Bare(bare) => bare,
            Io::Tls(tls) => tls.get_ref().0,
        };
        // A stream of a tunnel that is dropped before its end is reset anyway.
        if let Bare::Tcp(socket) = bare {
            Leg::abort(socket);
        }
    }
}
