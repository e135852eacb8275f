//! The one type of the bodies of requests and answers, whatever they are made of.

mod ahead;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use self::ahead::Ahead;
pub use self::ahead::Peeked;

/// The body of a request or an answer.
///
/// None is one that is empty, and costs nothing; what hyper reads is handed on as it comes.
pub struct Body {
    source: Source,
    observer: Option<Box<dyn Observer>>,
}

enum Source {
    Empty,
    /// What has broken off stays so: it must not look whole to whoever reads on.
    Broken,
    Once(Bytes),
    Incoming(Incoming),
    /// What has been read ahead, and then the rest.
    Ahead(Box<Ahead>),
    Other(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError> + Send>>),
}

/// Is told of what passes through a body, and once of how it ended.
pub trait Observer: Send {
    /// Data has come, and is handed on.
    fn data(&mut self, bytes: &Bytes) {
        let _ = bytes;
    }

    /// Trailers have come, and are handed on.
    fn trailers(&mut self, trailers: &HeaderMap) {
        let _ = trailers;
    }

    /// It has ended.
    fn end(self: Box<Self>, end: End<'_>);
}

/// How a body ended.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// All of it was read.
    Complete,
    /// It broke off.
    Failed(&'a BodyError),
    /// Whoever read it went away before its end.
    Dropped,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// Its connection, or its stream, did.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// What it was read from failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// This proxy ended it.
    #[error("{0}")]
    Cut(Cow<'static, str>),
}

impl Body {
    /// No body.
    pub const fn empty() -> Self {
        Self { source: Source::Empty, observer: None }
    }

    /// What another type of body gives.
    pub fn wrap(body: impl HttpBody<Data = Bytes, Error = BodyError> + Send + 'static) -> Self {
        Self { source: Source::Other(Box::pin(body)), observer: None }
    }

    /// Has `observer` told of everything from here on; of several, the last sees it last.
    #[must_use]
    pub fn observed(self, observer: impl Observer + 'static) -> Self {
        self.observed_by(Box::new(observer))
    }

    /// The same, with one that has its place on the heap already.
    #[must_use]
    pub fn observed_by(mut self, observer: Box<dyn Observer>) -> Self {
        self.observer = Some(match self.observer.take() {
            None => observer,
            Some(first) => Box::new(Both(first, observer)),
        });
        self
    }

    /// Drops `kept` when the body has ended, or is dropped itself.
    #[must_use]
    pub fn keeping(self, kept: impl Send + 'static) -> Self {
        self.observed(Kept(kept))
    }

    /// Reads ahead until the end, or until more than `limit` bytes have come. What was read is still there: whoever
    /// reads the body next gets it first.
    ///
    /// # Errors
    /// It broke off, and will for whoever reads it, behind what came before.
    pub async fn peek(&mut self, limit: usize) -> Result<Peeked, BodyError> {
        let (ahead, result) = Ahead::read(self, limit).await;
        let rest = mem::replace(&mut self.source, Source::Empty);
        self.source = Source::Ahead(Box::new(ahead.before(rest)));
        result
    }

    fn end(&mut self, end: End<'_>) {
        if let Some(observer) = self.observer.take() {
            observer.end(end);
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        // What was read ahead was observed then.
        if let Source::Ahead(ahead) = &mut this.source
            && let Some(frame) = ahead.pop()
        {
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = ready!(this.source.poll(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(observer) = &mut this.observer {
                    match (frame.data_ref(), frame.trailers_ref()) {
                        (Some(data), _) => observer.data(data),
                        (_, Some(trailers)) => observer.trailers(trailers),
                        (None, None) => {}
                    }
                }
                // Nobody asks for more where the length was known.
                if this.source.is_end_stream() {
                    this.end(End::Complete);
                }
            }
            Some(Err(error)) => {
                this.source = Source::Broken;
                this.end(End::Failed(error));
            }
            None => {
                this.source = Source::Empty;
                this.end(End::Complete);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Empty => Poll::Ready(None),
            Self::Broken => Poll::Ready(Some(Err(BodyError::Cut("the body has broken off".into())))),
            Self::Once(_) => match mem::replace(self, Self::Empty) {
                Self::Once(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                _ => Poll::Ready(None),
            },
            Self::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::Http),
            Self::Ahead(ahead) => ahead.rest().poll(cx),
            Self::Other(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Broken | Self::Once(_) => false,
            Self::Incoming(body) => body.is_end_stream(),
            Self::Ahead(ahead) => ahead.is_end_stream(),
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Broken => SizeHint::default(),
            Self::Once(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Incoming(body) => body.size_hint(),
            Self::Ahead(ahead) => ahead.size_hint(),
            Self::Other(body) => body.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if self.observer.is_some() {
            let end = if self.is_end_stream() { End::Complete } else { End::Dropped };
            self.end(end);
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<Incoming> for Body {
    fn from(body: Incoming) -> Self {
        let source = if body.is_end_stream() { Source::Empty } else { Source::Incoming(body) };
        Self { source, observer: None }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let source = if bytes.is_empty() { Source::Empty } else { Source::Once(bytes) };
        Self { source, observer: None }
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Bytes::from(text).into()
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Bytes::from_static(text.as_bytes()).into()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            Source::Empty => "empty",
            Source::Broken => "broken",
            Source::Once(_) => "bytes",
            Source::Incoming(_) => "incoming",
            Source::Ahead(_) => "read ahead",
            Source::Other(_) => "other",
        };
        f.debug_struct("Body").field("source", &source).field("size", &self.size_hint()).finish_non_exhaustive()
    }
}

struct Both(Box<dyn Observer>, Box<dyn Observer>);

impl Observer for Both {
    fn data(&mut self, bytes: &Bytes) {
        self.0.data(bytes);
        self.1.data(bytes);
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.0.trailers(trailers);
        self.1.trailers(trailers);
    }

    fn end(self: Box<Self>, end: End<'_>) {
        self.0.end(end);
        self.1.end(end);
    }
}

struct Kept<T>(T);

impl<T: Send> Observer for Kept<T> {
    fn end(self: Box<Self>, _: End<'_>) {
        drop(self.0);
    }
}
