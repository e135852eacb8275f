use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use http_body_util::BodyExt as _;

use super::*;

/// A body of these frames.
struct Frames(VecDeque<Result<Frame<Bytes>, BodyError>>);

impl HttpBody for Frames {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.0.pop_front())
    }
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BodyError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn broken() -> Result<Frame<Bytes>, BodyError> {
    Err(BodyError::Cut("broken".into()))
}

fn frames(frames: impl IntoIterator<Item = Result<Frame<Bytes>, BodyError>>) -> Body {
    Body::wrap(Frames(frames.into_iter().collect()))
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Seen {
    fn data(&mut self, bytes: &Bytes) {
        self.0.lock().unwrap().push(String::from_utf8_lossy(bytes).into_owned());
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        self.0.lock().unwrap().push(format!("{} trailers", trailers.len()));
    }

    fn end(self: Box<Self>, end: End<'_>) {
        let end = match end {
            End::Complete => "complete".to_owned(),
            End::Failed(why) => format!("failed: {why}"),
            End::Dropped => "dropped".to_owned(),
        };
        self.0.lock().unwrap().push(end);
    }
}

async fn text(body: Body) -> Result<String, String> {
    let bytes = body.collect().await.map_err(|why| why.to_string())?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

#[tokio::test]
async fn an_observer_sees_each_piece_and_the_end_once() {
    let seen = Seen::default();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let body = frames([data("one"), data("two"), Ok(Frame::trailers(trailers))]).observed(seen.clone());
    assert_eq!(text(body).await.unwrap(), "onetwo");
    assert_eq!(seen.lines(), ["one", "two", "1 trailers", "complete"]);
}

#[tokio::test]
async fn a_body_of_known_length_is_complete_with_its_last_byte() {
    let seen = Seen::default();
    let mut body = Body::from("all").observed(seen.clone());
    assert_eq!(body.size_hint().exact(), Some(3));
    body.frame().await.unwrap().unwrap();
    assert!(body.is_end_stream());
    assert_eq!(seen.lines(), ["all", "complete"]);
}

#[tokio::test]
async fn a_body_that_nobody_reads_to_its_end_was_dropped_unless_it_is_empty() {
    let (left, empty) = (Seen::default(), Seen::default());
    drop(frames([data("one")]).observed(left.clone()));
    drop(Body::empty().observed(empty.clone()));
    assert_eq!((left.lines(), empty.lines()), (vec!["dropped".to_owned()], vec!["complete".to_owned()]));
}

#[tokio::test]
async fn of_several_observers_each_sees_everything() {
    let (first, second) = (Seen::default(), Seen::default());
    let body = frames([data("one"), broken()]).observed(first.clone()).observed(second.clone());
    assert_eq!(text(body).await.unwrap_err(), "broken");
    assert_eq!(first.lines(), ["one", "failed: broken"]);
    assert_eq!(first.lines(), second.lines());
}

#[tokio::test]
async fn what_is_kept_is_dropped_at_the_end_and_not_before() {
    let place = Arc::new(());
    let mut body = frames([data("one"), data("two")]).keeping(place.clone());
    body.frame().await.unwrap().unwrap();
    assert_eq!(Arc::strong_count(&place), 2);
    while body.frame().await.is_some() {}
    assert_eq!(Arc::strong_count(&place), 1, "though the body is still there");
}

#[tokio::test]
async fn what_was_peeked_at_is_still_there_and_observed_once() {
    let seen = Seen::default();
    let mut body = frames([data("one"), data("two"), data("three")]).observed(seen.clone());
    let peeked = body.peek(3).await.unwrap();
    assert_eq!((&*peeked.data, peeked.complete), (&b"onetwo"[..], false), "what is beyond the limit says that it is");
    let peeked = body.peek(0).await.unwrap();
    assert_eq!((&*peeked.data, peeked.complete), (&b"one"[..], false));
    let peeked = body.peek(100).await.unwrap();
    assert_eq!((&*peeked.data, peeked.complete), (&b"onetwothree"[..], true));
    assert_eq!(body.size_hint().exact(), Some(11));
    assert_eq!(text(body).await.unwrap(), "onetwothree");
    assert_eq!(seen.lines(), ["one", "two", "three", "complete"]);
}

#[tokio::test]
async fn what_broke_off_while_it_was_peeked_at_does_not_look_whole() {
    let mut body = frames([data("one"), broken()]);
    assert_eq!(body.peek(100).await.unwrap_err().to_string(), "broken");
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    assert!(!body.is_end_stream());
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn peeking_at_nothing_finds_that_there_is_nothing() {
    for mut body in [Body::empty(), Body::from(""), frames([])] {
        assert_eq!(body.peek(10).await.unwrap(), Peeked { data: Bytes::new(), complete: true });
    }
}
