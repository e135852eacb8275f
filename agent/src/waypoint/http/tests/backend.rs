//! A server on loopback that does what the path says.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// A server of HTTP.
pub(super) struct Backend {
    pub(super) at: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    accepting: AbortHandle,
}

#[derive(Default)]
struct Seen {
    requests: Vec<(http::request::Parts, Bytes, Option<HeaderMap>)>,
    connections: usize,
    /// The statuses of the next answers; 0 for a connection that is closed instead.
    script: VecDeque<u16>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Backend {
    pub(super) async fn start() -> Self {
        Self::speaking(Version::HTTP_11).await
    }

    pub(super) async fn speaking(version: Version) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let shared = seen.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                shared.lock().unwrap().connections += 1;
                let seen = shared.clone();
                let service = service_fn(move |request| answer(at, seen.clone(), request));
                if version == Version::HTTP_2 {
                    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service);
                    tokio::spawn(serving);
                } else {
                    let serving =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service);
                    tokio::spawn(serving.with_upgrades());
                }
            }
        });
        Self { at, seen, accepting: accepting.abort_handle() }
    }

    /// One that is not there.
    pub(super) async fn gone() -> Self {
        let backend = Self::start().await;
        backend.accepting.abort();
        while tokio::net::TcpStream::connect(backend.at).await.is_ok() {
            tokio::task::yield_now().await;
        }
        backend
    }

    /// What the next answers are.
    pub(super) fn script(&self, statuses: impl IntoIterator<Item = u16>) {
        self.seen.lock().unwrap().script.extend(statuses);
    }

    /// How many requests there were.
    pub(super) fn count(&self) -> usize {
        self.seen.lock().unwrap().requests.len()
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.lock().unwrap().connections
    }

    /// The last request.
    pub(super) fn last(&self) -> (http::request::Parts, Bytes, Option<HeaderMap>) {
        self.seen.lock().unwrap().requests.last().expect("a request").clone()
    }

    /// Waits until there were so many.
    pub(super) async fn until(&self, count: usize) {
        while self.count() < count {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    }
}

fn body(bytes: impl Into<Bytes>) -> UnsyncBoxBody<Bytes, std::io::Error> {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

async fn answer(
    at: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    mut request: Request<Incoming>,
) -> Result<Answer, std::io::Error> {
    let upgrade = request.headers().contains_key("upgrade").then(|| hyper::upgrade::on(&mut request));
    let (head, incoming) = request.into_parts();
    let path = head.uri.path().to_owned();
    let whole = incoming.collect().await.map_err(std::io::Error::other)?;
    let trailers = whole.trailers().cloned();
    let bytes = whole.to_bytes();
    seen.lock().unwrap().requests.push((head, bytes.clone(), trailers));
    let scripted = seen.lock().unwrap().script.pop_front();
    if scripted == Some(0) {
        return Err(std::io::Error::other("closed on purpose"));
    }
    let status = scripted.unwrap_or(200);
    let answer = Response::builder().status(status).header("x-backend", at.port());
    let last = path.rsplit('/').next().unwrap_or_default();
    Ok(match path.as_str() {
        "/hang" => std::future::pending().await,
        "/echo" => answer.body(body(bytes)).unwrap(),
        "/headers" => {
            answer.header("x-one", "1").header("connection", "x-hop").header("x-hop", "1").body(body("h")).unwrap()
        }
        "/half" => {
            // Once the half of it has gone out.
            let pieces = futures_util::stream::unfold(0, async |at| match at {
                0 => Some((Ok(Frame::data(Bytes::from_static(b"half"))), 1)),
                1 => {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    Some((Err(std::io::Error::other("broken")), 2))
                }
                _ => None,
            });
            answer.body(StreamBody::new(Box::pin(pieces)).boxed_unsync()).unwrap()
        }
        "/endless" => {
            let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"begun")))]);
            let pieces = futures_util::StreamExt::chain(first, futures_util::stream::pending());
            answer.body(StreamBody::new(pieces).boxed_unsync()).unwrap()
        }
        "/socket" => {
            if let Some(upgrade) = upgrade {
                tokio::spawn(shout(upgrade));
            }
            let answer = answer.status(101).header("connection", "upgrade").header("upgrade", "websocket");
            answer.header("sec-websocket-accept", "yes").body(body("")).unwrap()
        }
        path if path.starts_with("/grpc/") => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", last.parse().unwrap());
            let pieces = [Ok(Frame::data(bytes)), Ok(Frame::trailers(trailers))];
            let answer = answer.header("content-type", "application/grpc");
            answer.body(StreamBody::new(futures_util::stream::iter(pieces)).boxed_unsync()).unwrap()
        }
        path if path.starts_with("/refuse/") => {
            let answer = answer.header("content-type", "application/grpc").header("grpc-status", last);
            answer.body(body("")).unwrap()
        }
        _ => answer.body(body(at.port().to_string())).unwrap(),
    })
}

/// Says everything back, louder.
async fn shout(upgrade: hyper::upgrade::OnUpgrade) -> Result<(), Infallible> {
    let Ok(upgraded) = upgrade.await else { return Ok(()) };
    let mut io = TokioIo::new(upgraded);
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = io.read(&mut buffer).await {
        let louder = buffer[..count].to_ascii_uppercase();
        if io.write_all(&louder).await.is_err() {
            break;
        }
    }
    Ok(())
}
