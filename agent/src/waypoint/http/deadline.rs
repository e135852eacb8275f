//! The time that a request may take: from its last byte on, as Envoy counts it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;

use super::reply::is_grpc;
use crate::waypoint::body::{Body, BodyError, End, Observer};

/// Resolves when a request has come to its end.
#[derive(Clone)]
pub(super) struct Ended(Option<watch::Receiver<bool>>);

/// A time that is running, or will be.
pub(super) type Deadline = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Ended {
    /// Of a request without a body: its head was its end.
    pub(super) const AT_ONCE: Self = Self(None);

    /// Of a request with `body`.
    pub(super) fn of(body: Body) -> (Body, Self) {
        if body.is_end_stream() {
            return (body, Self::AT_ONCE);
        }
        let (tell, told) = watch::channel(false);
        (body.observed(Tell(tell)), Self(Some(told)))
    }

    /// Resolves so long after the end.
    pub(super) fn and(&self, time: Duration) -> impl Future<Output = ()> + Send + 'static {
        let ended = self.0.clone();
        async move {
            if let Some(mut ended) = ended {
                // Nobody tells any more: the body was dropped, so there is no more of it to come.
                let _ = ended.wait_for(|ended| *ended).await;
            }
            tokio::time::sleep(time).await;
        }
    }
}

struct Tell(watch::Sender<bool>);

impl Observer for Tell {
    fn end(self: Box<Self>, _: End<'_>) {
        self.0.send_replace(true);
    }
}

/// How long the answer may take: what the route allows, or what a gRPC client waits for if that is less.
pub(super) fn allowed(route: Option<Duration>, headers: &HeaderMap) -> Option<Duration> {
    let asked = headers.get("grpc-timeout").filter(|_| is_grpc(headers));
    let asked = asked.and_then(|value| grpc_timeout(value.as_bytes()));
    match (route, asked) {
        (Some(route), Some(asked)) => Some(route.min(asked)),
        (route, asked) => route.or(asked),
    }
}

/// `grpc-timeout`: up to eight digits, and a unit (gRPC `PROTOCOL-HTTP2.md`, "Timeout").
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// An answer's body that breaks off when the time is up.
pub(super) struct Timed {
    body: Body,
    deadline: Deadline,
}

impl Timed {
    pub(super) fn new(body: Body, deadline: Deadline) -> Self {
        Self { body, deadline }
    }
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(BodyError::Cut("the time of the route was up".into()))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn what_a_grpc_client_waits_for_is_read_as_it_is_written() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("100m", Some(Duration::from_millis(100))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("123456789S", None),
            ("1", None),
            ("S", None),
            ("", None),
            ("-1S", None),
            ("1s", None),
        ] {
            assert_eq!(grpc_timeout(value.as_bytes()), expected, "{value:?}");
        }
    }

    #[test]
    fn the_shorter_time_counts_and_only_grpc_asks_for_one() {
        let headers = |kind: &'static str| -> HeaderMap {
            [("content-type", kind), ("grpc-timeout", "2S")]
                .into_iter()
                .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
                .collect()
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let (grpc, other) = (headers("application/grpc"), headers("text/plain"));
        assert_eq!(allowed(seconds(1), &grpc), seconds(1));
        assert_eq!(allowed(seconds(3), &grpc), seconds(2));
        assert_eq!(allowed(None, &grpc), seconds(2));
        assert_eq!(allowed(None, &other), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_runs_from_the_end_of_the_request() {
        let start = Instant::now();
        let (mut body, ended) = Ended::of(Body::from("all"));
        let deadline = ended.and(Duration::from_secs(1));
        let reading = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            body.frame().await.unwrap().unwrap();
        };
        tokio::join!(deadline, reading);
        assert_eq!(start.elapsed().as_secs(), 6);
        Ended::AT_ONCE.and(Duration::from_secs(1)).await;
        assert_eq!(start.elapsed().as_secs(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_takes_too_long_breaks_off() {
        let never = Body::wrap(http_body_util::StreamBody::new(futures_util::stream::pending()));
        let timed = Timed::new(never, Box::pin(tokio::time::sleep(Duration::from_secs(2))));
        assert!(timed.collect().await.is_err());
    }
}
