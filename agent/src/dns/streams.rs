//! DNS over TCP: what the mesh knows is answered, the rest goes over one connection to the server that was asked.
//!
//! A server may answer one question by many messages (a zone transfer), and several questions in any order. So nothing
//! is counted off: what the client asks and the mesh does not know is written to the server, what the server says is
//! written to the client, whole messages at a time.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::metrics::Protocol;
use super::upstream::IDLE;
use super::{MAX_STREAMS, PATIENCE, Place, PodDns, Verdict, failed, upstream};
use crate::hbone::tunnel::abort;
use crate::proxy::accept::Incoming;

/// Questions whose time is taken; a client that sends more at once is served all the same.
const MAX_TIMED: usize = 64;

pub(super) fn serve(dns: &Arc<PodDns>, incoming: Incoming, worker: &Handle, mut stop: watch::Receiver<bool>) {
    let Incoming { socket, remote: client, local: server } = incoming;
    let Some(place) = Place::take(&dns.streams, MAX_STREAMS) else {
        dns.metrics.failure(Protocol::Tcp);
        abort(&socket);
        return;
    };
    let dns = dns.clone();
    worker.spawn(async move {
        let Ok(stream) = TcpStream::from_std(socket) else { return };
        let (read, write) = stream.into_split();
        let stream = Stream { dns, client, server, from: Messages::new(read), to: write, upstream: None };
        tokio::select! {
            _ = stop.changed() => {}
            // However it ended, both sides see it close.
            _ = stream.run() => {}
        }
        drop(place);
    });
}

/// A client's connection, and the one to its server once there is something to ask.
struct Stream {
    dns: Arc<PodDns>,
    client: SocketAddr,
    server: SocketAddr,
    from: Messages,
    to: OwnedWriteHalf,
    upstream: Option<Upstream>,
}

struct Upstream {
    from: Messages,
    to: OwnedWriteHalf,
    asked: VecDeque<Instant>,
}

impl Stream {
    async fn run(mut self) -> io::Result<()> {
        loop {
            let answered = async {
                match &mut self.upstream {
                    Some(upstream) => upstream.from.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                question = self.from.next() => match question? {
                    Some(question) => self.question(&question).await?,
                    None => return self.finish().await,
                },
                answer = answered => match answer? {
                    Some(answer) => self.answer(&answer).await?,
                    // The server is done; the next question opens another connection.
                    None => self.upstream = None,
                },
                () = tokio::time::sleep(IDLE) => return Ok(()),
            }
        }
    }

    async fn question(&mut self, question: &[u8]) -> io::Result<()> {
        match self.dns.consider(question, Protocol::Tcp) {
            // What cannot be read here cannot be told from the rest of the stream either.
            Verdict::Ignore => Err(io::ErrorKind::InvalidData.into()),
            Verdict::Answer(answer) => write(&mut self.to, &answer).await,
            Verdict::Forward => {
                self.dns.metrics.upstream_request(Protocol::Tcp);
                match self.forward(question).await {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        tracing::debug!(server = %self.server, client = %self.client, %error, "a DNS server is away");
                        self.dns.metrics.failure(Protocol::Tcp);
                        self.upstream = None;
                        write(&mut self.to, &failed(question)).await
                    }
                }
            }
        }
    }

    async fn forward(&mut self, question: &[u8]) -> io::Result<()> {
        let upstream = match &mut self.upstream {
            Some(upstream) => upstream,
            None => {
                let stream = upstream::open(&self.dns.netns, self.server, self.client.ip()).await?;
                let (read, to) = stream.into_split();
                self.upstream.insert(Upstream { from: Messages::new(read), to, asked: VecDeque::new() })
            }
        };
        if upstream.asked.len() < MAX_TIMED {
            upstream.asked.push_back(Instant::now());
        }
        write(&mut upstream.to, question).await
    }

    async fn answer(&mut self, answer: &[u8]) -> io::Result<()> {
        if let Some(asked) = self.upstream.as_mut().and_then(|upstream| upstream.asked.pop_front()) {
            self.dns.metrics.upstream_duration(asked.elapsed());
        }
        write(&mut self.to, answer).await
    }

    /// The client asks nothing more: it still gets what it has asked for.
    async fn finish(mut self) -> io::Result<()> {
        let Some(mut upstream) = self.upstream.take() else { return Ok(()) };
        upstream.to.shutdown().await?;
        while let Ok(Some(answer)) = timeout(PATIENCE, upstream.from.next()).await.unwrap_or(Ok(None)) {
            write(&mut self.to, &answer).await?;
        }
        Ok(())
    }
}

/// Messages, each after its length (RFC 1035 4.2.2).
struct Messages {
    stream: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Messages {
    fn new(stream: OwnedReadHalf) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next message; `None` at the end. It loses nothing when it is dropped half-way.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some((length, rest)) = self.buffer.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                if rest.len() >= length {
                    let message = rest[..length].to_vec();
                    self.buffer.drain(..2 + length);
                    return Ok(Some(message));
                }
            }
            // At most one message and what came with its last bytes is kept.
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

async fn write(to: &mut OwnedWriteHalf, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut bytes = Vec::with_capacity(2 + message.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    timeout(PATIENCE, to.write_all(&bytes)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
