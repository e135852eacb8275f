//! How a local stream comes about: by our CONNECT, or by a peer's.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use culvert_core::hbone::h2::Request;

use super::end::End;
use super::pipe::{Pipe, register};
use super::stream::LocalStream;
use crate::hbone::tunnel::ResponseHeaders;
use crate::telemetry::ResponseFlags;

/// How far the CONNECT has come.
#[derive(Default)]
pub(super) enum Opening {
    /// Nobody has answered.
    #[default]
    Waiting,
    /// Server: our answer, which the tunnel has not sent yet.
    Decided(Decision),
    /// Client: there is no stream.
    Failed(ConnectError),
    /// Bytes flow.
    Open,
}

/// An answer to a peer's CONNECT.
pub(in crate::hbone) enum Decision {
    /// 200, with these headers.
    Accept(ResponseHeaders),
    /// Another status.
    Refuse(u16),
}

/// Why our CONNECT gave no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The peer answered it with another status than 200.
    #[error("http status {status}: {}", cure(*status))]
    Refused {
        /// Which.
        status: u16,
    },
    /// It did not come to an answer: no tunnel, or it ended, or the stream was reset.
    #[error("{why}")]
    Failed {
        /// As what it counts.
        flags: ResponseFlags,
        /// What happened, and what to check.
        why: Cow<'static, str>,
    },
}

impl ConnectError {
    /// As what it counts.
    pub fn flags(&self) -> ResponseFlags {
        match self {
            Self::Refused { status: 401 | 403 } => ResponseFlags::Denied,
            Self::Refused { .. } => ResponseFlags::ConnectFailure,
            Self::Failed { flags, .. } => *flags,
        }
    }
}

fn cure(status: u16) -> &'static str {
    match status {
        401 | 403 => "a policy at the destination denies it; its access log names the policy",
        503 => "the destination's proxy could not reach the application",
        400 => "the destination's proxy does not serve that address",
        _ => "unexpected answer from the destination's proxy",
    }
}

/// A stream on its way: resolves when the peer has answered. Dropping it gives the stream up.
#[must_use = "dropping it gives the stream up"]
pub struct Connecting(Option<LocalStream>);

/// A stream to be opened by a CONNECT: what becomes of it, and the tunnel's end.
pub(in crate::hbone) fn connect() -> (Connecting, End) {
    let pipe = Arc::<Pipe>::default();
    (Connecting(Some(LocalStream::new(pipe.clone()))), End(pipe))
}

impl Future for Connecting {
    type Output = Result<LocalStream, ConnectError>;

    /// # Panics
    /// After it has resolved.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(stream) = self.0.take() else { panic!("polled after it has resolved") };
        let mut state = stream.pipe().lock();
        let error = match &state.opening {
            Opening::Open | Opening::Decided(_) => None,
            Opening::Failed(error) => Some(error.clone()),
            Opening::Waiting => {
                let before = register(&mut state.reader, cx);
                drop(state);
                drop(before);
                self.0 = Some(stream);
                return Poll::Pending;
            }
        };
        drop(state);
        Poll::Ready(error.map_or(Ok(stream), Err))
    }
}

/// A peer's CONNECT that waits for our answer: 503 if it is dropped, or has waited for 10 s.
#[must_use = "dropping it answers with 503"]
pub struct Unanswered {
    request: Request,
    /// `None` once answered.
    stream: Option<LocalStream>,
}

/// Offers the CONNECT of `request` to someone in this process, who answers it by the first; the second is the tunnel's
/// end, for [`Accepted::Serve`](crate::hbone::tunnel::Accepted::Serve).
pub fn offer(request: Request) -> (Unanswered, End) {
    let pipe = Arc::<Pipe>::default();
    (Unanswered { request, stream: Some(LocalStream::new(pipe.clone())) }, End(pipe))
}

impl Unanswered {
    /// What the peer asks for.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Answers with 200. The stream can be used at once; if the peer has given up meanwhile, it is reset.
    pub fn accept(mut self, headers: ResponseHeaders) -> LocalStream {
        match self.answer(Decision::Accept(headers)) {
            Some(stream) => stream,
            None => unreachable!("only this and `refuse` answer, and both take it"),
        }
    }

    /// Answers with `status`, which must not be a success.
    pub fn refuse(mut self, status: u16) {
        self.answer(Decision::Refuse(status));
    }

    fn answer(&mut self, decision: Decision) -> Option<LocalStream> {
        let stream = self.stream.take()?;
        stream.pipe().lock().opening = Opening::Decided(decision);
        stream.pipe().wake_tunnel();
        Some(stream)
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.answer(Decision::Refuse(503));
    }
}
