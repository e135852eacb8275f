//! Response bodies: a text, or a document written piece by piece while the client reads it.

use std::io::{self, BufWriter, Write};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::sync::mpsc;

/// How much is written at once; twice as much is in memory for a client that does not read.
const PIECE: usize = 32 << 10;

/// The body of a response.
#[derive(Debug)]
pub(super) enum Body {
    Text(Option<Bytes>),
    Pieces(mpsc::Receiver<io::Result<Bytes>>),
}

impl Body {
    pub(super) fn text(text: String) -> Self {
        Self::Text(Some(text.into()))
    }

    /// What `write` writes, on a thread of its own, which waits for the client to read and is stopped by an error when
    /// the client goes away. Where `write` itself fails, so does the response, rather than look complete.
    pub(super) fn stream(write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            let mut buffered = BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
            if let Err(error) = write(&mut buffered).and_then(|()| buffered.flush()) {
                let _ = sender.blocking_send(Err(error));
            }
        });
        Self::Pieces(pieces)
    }
}

struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        self.0.blocking_send(Ok(piece)).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Pieces(pieces) => pieces.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}
