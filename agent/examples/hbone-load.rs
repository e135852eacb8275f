//! A closed-loop load generator that speaks HBONE itself, for what is measured of a waypoint: no agent, no steering.
//!
//! `hbone-load load CA_DIR PROXY EXPECTED TARGET MODE CONNECTIONS SECONDS` sends requests to TARGET (`IP:PORT`, what the
//! CONNECT asks for) through the proxy at PROXY (`IP:PORT`), which must present the identity EXPECTED, and prints one line
//! of JSON. With MODE `http1` each connection has a request under way at all times, with `http2` eight, with `new` each
//! request has a connection of its own.
//!
//! `hbone-load issue CA_DIR IDENTITY PREFIX` writes `PREFIX-cert.pem`, `PREFIX-key.pem` and `PREFIX-root.pem`, for a
//! proxy of another make.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark stops where it meets the unexpected")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use culvert::ca::{CertificateAuthority as _, DirectoryCa, SigningRequest, certificate_pem};
use culvert::hbone::buffers::Buffers;
use culvert::hbone::client::{Key, Origin, Pool};
use culvert::hbone::local::LocalStream;
use culvert::identity::{CertificateStore, StoreOptions};
use culvert::workers::Workers;
use culvert_core::hbone::Authority;
use culvert_core::hbone::h2::Request;
use culvert_core::identity::Identity;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair, SanType};
use smallvec::smallvec;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests under way on each connection of HTTP/2.
const STREAMS: usize = 8;
/// Whom the load claims to be.
const CLIENT: (&str, &str, &str) = ("cluster.local", "bench", "client");
const HOUR: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy)]
enum Mode {
    Http1,
    Http2,
    New,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.as_slice() {
        ["issue", ca, identity, prefix] => runtime.block_on(issue(Path::new(ca), identity, prefix)),
        ["load", ca, proxy, expected, target, mode, connections, seconds] => {
            let load = Load {
                proxy: proxy.parse().context("PROXY is IP:PORT")?,
                expected: Arc::new(expected.parse().context("EXPECTED is a SPIFFE ID")?),
                target: target.parse().context("TARGET is IP:PORT")?,
                mode: match *mode {
                    "http1" => Mode::Http1,
                    "http2" => Mode::Http2,
                    "new" => Mode::New,
                    _ => bail!("no mode {mode}"),
                },
                connections: connections.parse().context("CONNECTIONS is a number")?,
                duration: Duration::from_secs_f64(seconds.parse().context("SECONDS is a number")?),
            };
            runtime.block_on(load.run(Path::new(ca)))
        }
        _ => bail!(
            "usage: hbone-load load CA_DIR PROXY EXPECTED TARGET http1|http2|new CONNECTIONS SECONDS\n       \
             hbone-load issue CA_DIR IDENTITY PREFIX"
        ),
    }
}

async fn issue(ca: &Path, identity: &str, prefix: &str) -> Result<()> {
    let authority = DirectoryCa::open(ca)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
    let csr = params.serialize_request(&key)?.pem()?;
    let signed = authority.sign(SigningRequest { csr, identity: identity.parse()?, ttl: HOUR }).await?;
    let chain: String = signed.chain.iter().map(certificate_pem).collect();
    std::fs::write(format!("{prefix}-cert.pem"), chain)?;
    std::fs::write(format!("{prefix}-key.pem"), key.serialize_pem())?;
    std::fs::copy(ca.join("root-cert.pem"), format!("{prefix}-root.pem"))?;
    Ok(())
}

/// What is to be done.
struct Load {
    proxy: SocketAddr,
    expected: Arc<Identity>,
    target: SocketAddr,
    mode: Mode,
    connections: usize,
    duration: Duration,
}

/// Opens connections, and counts what comes of them.
struct Generator {
    pool: Pool,
    key: Key,
    target: SocketAddr,
    until: Instant,
    latencies: Mutex<Vec<u32>>,
    failed: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Load {
    async fn run(self, ca: &Path) -> Result<()> {
        let certificates = CertificateStore::new(DirectoryCa::open(ca)?, StoreOptions::default());
        let client = Identity::new(CLIENT.0, CLIENT.1, CLIENT.2);
        certificates.fetch(&client).await?;
        let workers = Workers::start(1)?;
        let buffers = Buffers::new(256 << 20);
        let pool = Pool::new(Origin::Here, &certificates, &client, workers.clone(), 0, buffers);
        let source = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
            socket.connect(self.proxy)?;
            socket.local_addr()
        })?;
        let started = Instant::now();
        let generator = Arc::new(Generator {
            pool,
            key: Key { peer: self.proxy, expected: smallvec![self.expected], source: source.ip() },
            target: self.target,
            until: started + self.duration,
            latencies: Mutex::default(),
            failed: AtomicU64::new(0),
            error: Mutex::default(),
        });
        // All on the worker of the tunnel: no thread wakes another.
        let tasks: Vec<_> =
            (0..self.connections).map(|_| workers.get(0).spawn(generator.clone().connection(self.mode))).collect();
        for task in tasks {
            task.await?;
        }
        generator.report(started.elapsed())
    }
}

impl Generator {
    /// One connection after another, until it is time.
    async fn connection(self: Arc<Self>, mode: Mode) {
        while Instant::now() < self.until {
            let ended = match mode {
                Mode::Http1 => self.http1().await,
                Mode::Http2 => self.clone().http2().await,
                Mode::New => self.fresh().await,
            };
            if let Err(error) = ended {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.error.lock().unwrap().get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    async fn connect(&self) -> Result<LocalStream> {
        let connect = Request::connect(&Authority::Ip(self.target));
        Ok(timeout(LIMIT, self.pool.connect(self.key.clone(), connect)).await??)
    }

    fn took(&self, since: Instant) {
        let nanoseconds = u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX);
        self.latencies.lock().unwrap().push(nanoseconds);
    }

    async fn http1(&self) -> Result<()> {
        let mut stream = self.connect().await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", self.target);
        let mut buffer = vec![0; 16384];
        while Instant::now() < self.until {
            let started = Instant::now();
            timeout(LIMIT, exchange(&mut stream, request.as_bytes(), &mut buffer)).await??;
            self.took(started);
        }
        Ok(())
    }

    async fn fresh(&self) -> Result<()> {
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.target);
        let mut buffer = vec![0; 4096];
        let started = Instant::now();
        let mut stream = self.connect().await?;
        // To the end of the answer: what follows it, Envoy resets.
        timeout(LIMIT, exchange(&mut stream, request.as_bytes(), &mut buffer)).await??;
        self.took(started);
        Ok(())
    }

    async fn http2(self: Arc<Self>) -> Result<()> {
        let stream = TokioIo::new(self.connect().await?);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        let connection = tokio::spawn(connection);
        let streams: Vec<_> = (0..STREAMS).map(|_| tokio::spawn(self.clone().stream(sender.clone()))).collect();
        drop(sender);
        for stream in streams {
            stream.await??;
        }
        connection.abort();
        Ok(())
    }

    async fn stream(self: Arc<Self>, mut sender: http2::SendRequest<Empty<Bytes>>) -> Result<()> {
        while Instant::now() < self.until {
            let started = Instant::now();
            let request = hyper::Request::get(format!("http://{}/", self.target)).body(Empty::new())?;
            let answer = timeout(LIMIT, sender.send_request(request)).await??;
            ensure!(answer.status() == 200, "{}", answer.status());
            timeout(LIMIT, answer.into_body().collect()).await??;
            self.took(started);
        }
        Ok(())
    }

    fn report(&self, elapsed: Duration) -> Result<()> {
        let mut latencies = std::mem::take(&mut *self.latencies.lock().unwrap());
        let error = self.error.lock().unwrap().clone();
        ensure!(!latencies.is_empty(), "no request succeeded: {error:?}");
        latencies.sort_unstable();
        let microseconds = |share: f64| {
            let rank = (latencies.len() as f64 * share).ceil() as usize;
            f64::from(latencies[rank.clamp(1, latencies.len()) - 1]) / 1000.0
        };
        let report = serde_json::json!({
            "requests": latencies.len(),
            "failed": self.failed.load(Ordering::Relaxed),
            "error": error,
            "seconds": elapsed.as_secs_f64(),
            "per_second": latencies.len() as f64 / elapsed.as_secs_f64(),
            "p50_us": microseconds(0.5),
            "p99_us": microseconds(0.99),
        });
        println!("{report}");
        Ok(())
    }
}

/// One request and its whole answer, whose length is told by `content-length`.
async fn exchange(stream: &mut LocalStream, request: &[u8], buffer: &mut [u8]) -> Result<()> {
    stream.write_all(request).await?;
    let mut filled = 0;
    loop {
        let n = stream.read(&mut buffer[filled..]).await?;
        ensure!(n > 0, "the connection ended within an answer");
        filled += n;
        if let Some(end) = answer_length(&buffer[..filled])? {
            ensure!(end == filled, "more than one answer");
            return Ok(());
        }
    }
}

/// The length of the answer with its head, once it is all there.
fn answer_length(answer: &[u8]) -> Result<Option<usize>> {
    const LENGTH: &str = "content-length:";
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&answer[..head])?;
    ensure!(text.starts_with("HTTP/1.1 200"), "{}", text.lines().next().unwrap_or_default());
    let line = text.lines().find(|line| line.get(..LENGTH.len()).is_some_and(|name| name.eq_ignore_ascii_case(LENGTH)));
    let length: usize = line.context("no content-length")?[LENGTH.len()..].trim().parse()?;
    Ok((answer.len() >= head + 4 + length).then_some(head + 4 + length))
}
