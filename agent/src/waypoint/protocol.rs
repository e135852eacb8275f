//! What a connection speaks: as its port says, or else by its first bytes, which are not lost.

mod replay;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use culvert_core::protocol::{Declared, Hello, Sniffed, hello, is_http2, sniff};
use tokio::io::{AsyncBufRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;

pub use self::replay::Replay;

/// How long the first bytes of a connection of which nothing is declared are waited for. Where the server speaks first
/// none come, and the connection goes on as one that carries no requests: declare such ports, by appProtocol or name.
const DETECTION: Duration = Duration::from_secs(5);
/// How long a client of HTTP may take to send its first byte: as long as it may be idle later (Envoy's default).
const FIRST_REQUEST: Duration = Duration::from_secs(3600);

/// What a connection speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP of this version.
    Http(HttpVersion),
    /// TLS, and the server name that the client asks for, in lower case.
    Tls(Option<Box<str>>),
    /// Anything else.
    Tcp,
}

/// Which HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2, from its preface on.
    Http2,
}

/// Waits for as many first bytes as it takes to tell what a connection speaks. Returns the stream as if none had been
/// read. Gives up, in good order, when `draining` turns before anything has come.
///
/// # Errors
/// The connection broke off, or nothing came of what has to be HTTP.
pub async fn detect<S: AsyncBufRead + AsyncWrite + Unpin>(
    stream: S,
    declared: Option<Declared>,
    mut draining: watch::Receiver<bool>,
) -> io::Result<(Spoken, Replay<S>)> {
    let mut stream = Replay::new(stream);
    let wait = if declared == Some(Declared::Http) { FIRST_REQUEST } else { DETECTION };
    let found = tokio::select! {
        biased;
        found = tokio::time::timeout(wait, look(&mut stream, declared)) => Some(found),
        () = turned(&mut draining) => None,
    };
    match found {
        Some(Ok(found)) => Ok((found?, stream)),
        Some(Err(_)) if declared == Some(Declared::Http) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "no request has come"))
        }
        Some(Err(_)) => Ok((Spoken::Tcp, stream)),
        None => {
            stream.shutdown().await?;
            Err(io::Error::new(io::ErrorKind::Interrupted, "the waypoint is about to end"))
        }
    }
}

/// Resolves when the waypoint is about to end.
async fn turned(draining: &mut watch::Receiver<bool>) {
    if draining.wait_for(|draining| *draining).await.is_err() {
        // Nobody is left to say so.
        std::future::pending::<()>().await;
    }
}

async fn look<S: AsyncBufRead + Unpin>(stream: &mut Replay<S>, declared: Option<Declared>) -> io::Result<Spoken> {
    let mut needed = 1;
    loop {
        let bytes = stream.peek(needed).await?;
        match judge(bytes, declared) {
            Ok(spoken) => return Ok(spoken),
            // It ends here.
            Err(_) if bytes.len() < needed => {
                let http = declared == Some(Declared::Http);
                return Ok(if http { Spoken::Http(HttpVersion::Http1) } else { Spoken::Tcp });
            }
            Err(more) => needed = more,
        }
    }
}

/// What begins with `bytes`, or how many it takes to say more.
fn judge(bytes: &[u8], declared: Option<Declared>) -> Result<Spoken, usize> {
    match declared {
        Some(Declared::Tcp) => Ok(Spoken::Tcp),
        Some(Declared::Tls) => tls(bytes),
        Some(Declared::Http) => match is_http2(bytes) {
            Some(true) => Ok(Spoken::Http(HttpVersion::Http2)),
            Some(false) => Ok(Spoken::Http(HttpVersion::Http1)),
            None => Err(bytes.len() + 1),
        },
        None => match sniff(bytes) {
            Sniffed::More => Err(bytes.len() + 1),
            Sniffed::Http1 => Ok(Spoken::Http(HttpVersion::Http1)),
            Sniffed::Http2 => Ok(Spoken::Http(HttpVersion::Http2)),
            Sniffed::Tls => tls(bytes),
            Sniffed::Other => Ok(Spoken::Tcp),
        },
    }
}

fn tls(bytes: &[u8]) -> Result<Spoken, usize> {
    match hello(bytes) {
        Hello::More(needed) => Err(needed),
        Hello::Whole(name) => Ok(Spoken::Tls(name)),
        // Whatever it is, no route by server name is for it.
        Hello::Bad => Ok(Spoken::Tcp),
    }
}
