//! What has been read of a body before whoever is to have it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Frame, SizeHint};

use super::{Body, BodyError, Source};

/// What has been read of a body, and the rest of it.
pub(super) struct Ahead {
    frames: VecDeque<Frame<Bytes>>,
    /// Bytes in `frames`.
    length: u64,
    rest: Source,
}

/// What [`Body::peek`] has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peeked {
    /// The data, all of what came: it may be more than was asked for.
    pub data: Bytes,
    /// Whether that is all there is.
    pub complete: bool,
}

impl Ahead {
    /// Reads until the end, or more than `limit` bytes.
    pub(super) async fn read(body: &mut Body, limit: usize) -> (Self, Result<Peeked, BodyError>) {
        let mut ahead = Self { frames: VecDeque::new(), length: 0, rest: Source::Empty };
        while ahead.length <= limit as u64 {
            // Told apart from the end, so that a body that is read on to its end is not waited for.
            if body.is_end_stream() {
                return ahead.read_as(true);
            }
            match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
                Some(Ok(frame)) => {
                    ahead.length += frame.data_ref().map_or(0, |data| data.len() as u64);
                    ahead.frames.push_back(frame);
                }
                Some(Err(error)) => return (ahead, Err(error)),
                None => return ahead.read_as(true),
            }
        }
        let complete = body.is_end_stream();
        ahead.read_as(complete)
    }

    fn read_as(self, complete: bool) -> (Self, Result<Peeked, BodyError>) {
        let mut pieces = self.frames.iter().filter_map(Frame::data_ref);
        let data = match (pieces.next(), pieces.next()) {
            (None, _) => Bytes::new(),
            (Some(only), None) => only.clone(),
            _ => {
                let mut data = BytesMut::new();
                self.frames.iter().filter_map(Frame::data_ref).for_each(|piece| data.extend_from_slice(piece));
                data.freeze()
            }
        };
        (self, Ok(Peeked { data, complete }))
    }

    /// Puts what was read before `rest`.
    pub(super) fn before(mut self, rest: Source) -> Self {
        match rest {
            // Peeked at before, and further than now.
            Source::Ahead(inner) => {
                self.length += inner.length;
                self.frames.extend(inner.frames);
                self.rest = inner.rest;
            }
            rest => self.rest = rest,
        }
        self
    }

    pub(super) fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.frames.pop_front()?;
        self.length -= frame.data_ref().map_or(0, |data| data.len() as u64);
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
        Some(frame)
    }

    pub(super) fn rest(&mut self) -> &mut Source {
        &mut self.rest
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        // The upper bound first: the lower may not be above it.
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(self.length));
        }
        hint.set_lower(rest.lower().saturating_add(self.length));
        hint
    }
}
