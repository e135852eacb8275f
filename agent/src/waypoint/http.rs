//! HTTP of clients: a server on each stream that carries it, and what becomes of each request.
//!
//! | module | what it is for |
//! |---|---|
//! | `wire`, `framing` | the bytes of HTTP/1: heads that come too slowly, or say their length in two ways |
//! | `connection` | a client's connection as its requests see it |
//! | `exchange` | the steps of one request |
//! | `head` | a request's head, brought into the one form that all else relies on |
//! | `tries`, `replay`, `deadline` | how often and how long a request is tried, and with which body |
//! | `mirror`, `upgrade` | copies of requests; connections that turn into something else |
//! | [`reply`], `failure` | answers that no endpoint gave |
//! | `record` | what is known of a request once it is over |

mod connection;
mod deadline;
mod exchange;
mod failure;
mod framing;
mod head;
mod mirror;
mod record;
mod replay;
pub mod reply;
#[cfg(test)]
mod tests;
mod tries;
mod upgrade;
mod wire;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;

use self::connection::Connection;
use self::record::Record;
use self::wire::{Watch, Wire};
use super::protocol::HttpVersion;
use super::session::Session;

/// The largest head of a request, with its first line: Envoy's default.
const MAX_HEAD: usize = 60 << 10;
/// How much of a body is read before whoever takes it is waited for.
const MAX_BUFFER: usize = 128 << 10;
/// The answer to a head that takes too long, which hyper knows nothing of.
const TOO_LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
/// How long a connection may have no request: Envoy's default.
const IDLE: Duration = Duration::from_secs(3600);

/// Requests of one HTTP/2 connection at a time.
const MAX_STREAMS: u32 = 1000;
/// Streams that the client has reset before they were looked at, or that were reset for what it sent: beyond these its
/// connection is closed.
const MAX_PENDING_RESETS: usize = 50;
const MAX_ERROR_RESETS: usize = 100;
/// How much of one body, and of all bodies of a connection, may be on its way here.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How much of an answer waits for a client that does not read.
const MAX_SEND_BUFFER: usize = 128 << 10;

/// Answers the requests that come over `stream`, until the client is done, or the waypoint ends.
pub async fn serve<S>(session: Session, stream: S, version: HttpVersion)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match version {
        HttpVersion::Http1 => serve_1(session, stream).await,
        HttpVersion::Http2 => serve_2(session, stream).await,
    }
}

async fn serve_1<S>(session: Session, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (wire, watch) = Wire::new(stream);
    let connection = Connection::new(session, watch);
    let service = {
        let connection = connection.clone();
        service_fn(move |request| exchange::answer(connection.clone(), request))
    };
    let mut serving = http1::Builder::new()
        .max_header_size(MAX_HEAD)
        .max_buf_size(MAX_BUFFER)
        // The wire sees to it, without a timer for each request.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(wire), service)
        .with_upgrades();
    let mut ending = Ending::new(&connection);
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut serving => break ended,
            () = ending.wait(&connection) => Pin::new(&mut serving).graceful_shutdown(),
        }
    };
    let Err(error) = ended else { return };
    if connection.watch.is_late() {
        Record::begin(connection.clone(), false).refused(StatusCode::REQUEST_TIMEOUT, "request_header_timeout");
        if let Some(parts) = serving.into_parts() {
            let mut wire = parts.io.into_inner();
            // Whoever is that slow may not read it either.
            let told = async {
                wire.write_all(TOO_LATE).await?;
                wire.shutdown().await
            };
            let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
        }
    } else if error.is_parse() {
        // hyper has answered it.
        let status = match error.is_parse_too_large() {
            true => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            false => StatusCode::BAD_REQUEST,
        };
        Record::begin(connection.clone(), false).refused(status, "http1.codec_error");
    }
    tracing::debug!(client = %connection.session.client_address, %error, "a connection of HTTP/1 ended badly");
}

async fn serve_2<S>(session: Session, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = Connection::new(session, Arc::<Watch>::default());
    let service = {
        let connection = connection.clone();
        service_fn(move |request| exchange::answer(connection.clone(), request))
    };
    let mut serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_header_list_size(MAX_HEAD as u32)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut ending = Ending::new(&connection);
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut serving => break ended,
            () = ending.wait(&connection) => Pin::new(&mut serving).graceful_shutdown(),
        }
    };
    if let Err(error) = ended {
        tracing::debug!(client = %connection.session.client_address, %error, "a connection of HTTP/2 ended badly");
    }
}

/// When a connection is to take nothing new: because the waypoint ends, or nobody has asked for anything for long.
struct Ending {
    draining: watch::Receiver<bool>,
    idle: Pin<Box<tokio::time::Sleep>>,
    /// It has been told.
    told: bool,
}

impl Ending {
    fn new(connection: &Connection) -> Self {
        let draining = connection.session.shared.draining();
        Self { draining, idle: Box::pin(tokio::time::sleep(IDLE)), told: false }
    }

    /// Resolves once.
    async fn wait(&mut self, connection: &Connection) {
        if self.told {
            return std::future::pending().await;
        }
        loop {
            tokio::select! {
                biased;
                // An error means that nobody is left to say so.
                _ = self.draining.wait_for(|draining| *draining) => break,
                () = &mut self.idle => {
                    let now = tokio::time::Instant::now();
                    match connection.idle_since() {
                        Some(since) if now - since >= IDLE => break,
                        Some(since) => self.idle.as_mut().reset(since + IDLE),
                        None => self.idle.as_mut().reset(now + IDLE),
                    }
                }
            }
        }
        self.told = true;
    }
}
