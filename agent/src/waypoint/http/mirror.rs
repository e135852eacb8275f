//! Copies of requests, for services that are tried out with real ones: sent and forgotten.
//!
//! A request never waits for its copy: one whose reader falls behind, or that there is no room for, is given up.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use culvert_core::mesh::Snapshot;
use culvert_core::route::decide::Target;
use http::{HeaderMap, Request};
use hyper::body::{Body as HttpBody, Frame};
use tokio::sync::mpsc;

use crate::waypoint::body::{Body, BodyError, End, Observer};
use crate::waypoint::session::Session;
use crate::waypoint::upstream::{Cluster, Selection};

/// The most copies under way at a time, of all requests.
const MAX_COPIES: usize = 1024;
/// How many pieces of a body, and bytes in them, a copy may be behind.
const MAX_PIECES: usize = 64;
const MAX_BYTES: usize = 1 << 20;
/// How long a copy may take where its route says nothing.
const TIME: Duration = Duration::from_secs(15);

/// Copies under way.
static COPIES: AtomicUsize = AtomicUsize::new(0);

/// The place of a copy.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let place = (COPIES.fetch_add(1, Ordering::Relaxed), Self);
        (place.0 < MAX_COPIES).then_some(place.1)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        COPIES.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends `head` and what will be read of `body` to `target` too; returns the body to be read.
pub(super) fn copy(session: &Session, snapshot: &Arc<Snapshot>, to: Copied<'_>, head: Request<()>, body: Body) -> Body {
    let Some(place) = Place::take() else { return body };
    let (body, copied) = split(body);
    let cluster = session.shared.upstreams.cluster(snapshot, to.target);
    let (client, destination, principal) = (session.client_address, session.destination, session.principal.clone());
    let time = to.time.unwrap_or(TIME);
    tokio::spawn(async move {
        let _place = place;
        let selection = Selection::first(client, destination, principal.as_ref());
        let sent = send(&cluster, selection, head.map(|()| copied));
        if tokio::time::timeout(time, sent).await.is_err() {
            tracing::debug!(service = cluster.name(), "the copy of a request took too long");
        }
    });
    body
}

/// Where a copy goes.
#[derive(Clone, Copy)]
pub(super) struct Copied<'t> {
    pub(super) target: &'t Target,
    /// How long it may take; `None` if the route does not say.
    pub(super) time: Option<Duration>,
}

async fn send(cluster: &Cluster, selection: Selection<'_>, request: Request<Body>) {
    let lease = match cluster.select(selection, request.version()) {
        Ok(lease) => lease,
        Err(why) => return tracing::debug!(service = cluster.name(), %why, "no copy of a request"),
    };
    match lease.send(request).await {
        Ok(response) => {
            // Read to its end, so that the connection can carry the next one.
            let mut body = response.into_body();
            while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
        }
        Err(why) => tracing::debug!(service = cluster.name(), %why, "the copy of a request failed"),
    }
}

/// A body, and a copy of what is read of it.
fn split(body: Body) -> (Body, Body) {
    if body.is_end_stream() {
        return (body, Body::empty());
    }
    let (give, take) = mpsc::channel(MAX_PIECES);
    let behind = Arc::<AtomicUsize>::default();
    let copy = Body::wrap(Copy { take, behind: behind.clone(), ended: false });
    (body.observed(Copying { give: Some(give), behind }), copy)
}

enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

struct Copying {
    /// `None` once the copy has been given up.
    give: Option<mpsc::Sender<Piece>>,
    behind: Arc<AtomicUsize>,
}

impl Copying {
    fn give(&mut self, piece: Piece) {
        if self.give.as_ref().is_some_and(|give| give.try_send(piece).is_err()) {
            self.give = None;
        }
    }
}

impl Observer for Copying {
    fn data(&mut self, bytes: &Bytes) {
        if self.behind.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() > MAX_BYTES {
            self.give = None;
        }
        self.give(Piece::Data(bytes.clone()));
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.give(Piece::Trailers(trailers.clone()));
    }

    fn end(mut self: Box<Self>, end: End<'_>) {
        // Of what broke off the copy is to break off as well.
        if matches!(end, End::Complete) {
            self.give(Piece::End);
        }
    }
}

struct Copy {
    take: mpsc::Receiver<Piece>,
    behind: Arc<AtomicUsize>,
    ended: bool,
}

impl HttpBody for Copy {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(self.take.poll_recv(cx)) {
            Some(Piece::Data(data)) => {
                self.behind.fetch_sub(data.len(), Ordering::Relaxed);
                Some(Ok(Frame::data(data)))
            }
            Some(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Some(Piece::End) => {
                self.ended = true;
                None
            }
            None => Some(Err(BodyError::Cut("the copy was given up".into()))),
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn pieces(count: usize, size: usize) -> Body {
        let frames = (0..count).map(move |_| Ok(Frame::data(Bytes::from(vec![7; size]))));
        Body::wrap(http_body_util::StreamBody::new(futures_util::stream::iter(frames)))
    }

    #[tokio::test]
    async fn the_copy_of_a_body_is_all_of_it() {
        let (body, copy) = split(pieces(10, 1000));
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 10_000);
        assert_eq!(copy.collect().await.unwrap().to_bytes().len(), 10_000);
        let (body, copy) = split(Body::empty());
        assert!(body.is_end_stream() && copy.is_end_stream());
    }

    #[tokio::test]
    async fn a_copy_that_falls_behind_is_given_up_and_the_request_is_not() {
        for (count, size) in [(MAX_PIECES + 1, 1), (3, MAX_BYTES / 2)] {
            let (body, copy) = split(pieces(count, size));
            assert_eq!(body.collect().await.unwrap().to_bytes().len(), count * size);
            assert!(copy.collect().await.is_err(), "it does not look whole");
        }
    }

    #[tokio::test]
    async fn of_a_request_that_breaks_off_the_copy_does_too() {
        let (body, copy) = split(pieces(3, 1));
        drop(body);
        assert!(copy.collect().await.is_err());
    }

    #[test]
    fn there_is_room_for_so_many_copies_and_then_for_none() {
        let places: Vec<_> = std::iter::from_fn(Place::take).take(MAX_COPIES + 1).collect();
        assert_eq!(places.len(), MAX_COPIES);
        drop(places);
        assert!(Place::take().is_some());
    }
}
