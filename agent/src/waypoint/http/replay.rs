//! The body of a request that may have to be sent more than once.
//!
//! Nothing is read before an endpoint takes it, and what was read is kept for the next try. A body that has grown
//! beyond [`LIMIT`] is not kept, and the request then has been tried for the last time; but one that nobody has read
//! can be sent again whatever its size.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::waypoint::body::{Body, BodyError};

/// The most bytes that are kept of one body.
pub(super) const LIMIT: usize = 64 << 10;

/// The body of a request, for as many tries as there are.
pub(super) struct Replay(Arc<Mutex<Shared>>);

struct Shared {
    /// What nobody has read.
    rest: Body,
    /// What has been.
    read: Vec<Kept>,
    length: usize,
    /// It cannot be read from the start any more.
    lost: bool,
    /// Which try reads: those before it may not have been dropped yet.
    turn: u32,
}

enum Kept {
    Data(Bytes),
    Trailers(http::HeaderMap),
}

/// The body of one try.
struct Turn {
    shared: Arc<Mutex<Shared>>,
    turn: u32,
    /// How much of what was read before it has had.
    at: usize,
}

impl Replay {
    pub(super) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Shared { rest: body, read: Vec::new(), length: 0, lost: false, turn: 0 })))
    }

    /// Whether it can be sent from its start.
    pub(super) fn is_whole(&self) -> bool {
        !lock(&self.0).lost
    }

    /// The body of the next try; those before it end here.
    pub(super) fn turn(&self) -> Body {
        let mut shared = lock(&self.0);
        shared.turn += 1;
        let turn = Turn { shared: self.0.clone(), turn: shared.turn, at: 0 };
        drop(shared);
        Body::wrap(turn)
    }
}

impl Shared {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if self.lost {
            return;
        }
        let kept = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Kept::Data(data.clone()),
            (_, Some(trailers)) => Kept::Trailers(trailers.clone()),
            (None, None) => return,
        };
        if let Kept::Data(data) = &kept {
            self.length += data.len();
        }
        if self.length > LIMIT {
            self.lost = true;
            self.read = Vec::new();
        } else {
            self.read.push(kept);
        }
    }
}

impl HttpBody for Turn {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut shared = lock(&this.shared);
        if shared.turn != this.turn {
            return Poll::Ready(Some(Err(BodyError::Cut("the request is being tried again".into()))));
        }
        if let Some(kept) = shared.read.get(this.at) {
            this.at += 1;
            return Poll::Ready(Some(Ok(match kept {
                Kept::Data(data) => Frame::data(data.clone()),
                Kept::Trailers(trailers) => Frame::trailers(trailers.clone()),
            })));
        }
        let frame = ready!(Pin::new(&mut shared.rest).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => shared.keep(frame),
            // What has broken off is not whole, however often it is sent.
            Some(Err(_)) => shared.lost = true,
            None => {}
        }
        this.at = shared.read.len();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        self.at >= shared.read.len() && shared.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.shared);
        let ahead: usize = shared.read.iter().skip(self.at).map(Kept::len).sum();
        let rest = shared.rest.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(ahead as u64));
        }
        hint.set_lower(rest.lower().saturating_add(ahead as u64));
        hint
    }
}

impl Kept {
    fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn read(body: Body) -> Result<Bytes, String> {
        body.collect().await.map(|body| body.to_bytes()).map_err(|why| why.to_string())
    }

    /// A body of `count` pieces of 1000 bytes, each of another letter.
    fn pieces(count: u8) -> Body {
        Body::wrap(Pieces(0..count))
    }

    struct Pieces(std::ops::Range<u8>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(self.0.next().map(|letter| Ok(Frame::data(Bytes::from(vec![letter; 1000])))))
        }
    }

    fn expected(count: u8) -> Vec<u8> {
        (0..count).flat_map(|letter| [letter; 1000]).collect()
    }

    #[tokio::test]
    async fn a_try_has_what_those_before_it_had_and_the_rest() {
        let replay = Replay::new(pieces(5));
        let mut first = replay.turn();
        for _ in 0..2 {
            first.frame().await.unwrap().unwrap();
        }
        drop(first);
        let second = replay.turn();
        assert_eq!(second.size_hint().lower(), 2000);
        assert_eq!(read(second).await.unwrap(), expected(5));
        assert_eq!(read(replay.turn()).await.unwrap(), expected(5), "and again");
    }

    #[tokio::test]
    async fn what_is_too_long_to_keep_is_sent_once() {
        let replay = Replay::new(pieces(100));
        assert_eq!(read(replay.turn()).await.unwrap(), expected(100));
        assert!(!replay.is_whole());
    }

    #[tokio::test]
    async fn however_long_it_is_what_nobody_has_read_can_be_sent_again() {
        let replay = Replay::new(pieces(100));
        drop(replay.turn());
        assert!(replay.is_whole());
        assert_eq!(read(replay.turn()).await.unwrap(), expected(100));
    }

    #[tokio::test]
    async fn a_try_that_is_over_takes_nothing_from_the_next() {
        let replay = Replay::new(pieces(3));
        let first = replay.turn();
        let second = replay.turn();
        assert!(read(first).await.is_err());
        assert_eq!(read(second).await.unwrap(), expected(3));
    }

    #[tokio::test]
    async fn what_has_broken_off_is_not_sent_again() {
        let failing = Replay::new(Body::wrap(Failing));
        assert!(read(failing.turn()).await.is_err() && !failing.is_whole());
    }

    struct Failing;

    impl HttpBody for Failing {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            Poll::Ready(Some(Err(BodyError::Cut("broken".into()))))
        }
    }
}
