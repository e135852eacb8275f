//! A closed-loop load generator for the benchmark: a fixed number of connections, each with one request under way.
//!
//! `culvert-load keepalive|new|close|connect|hold ADDRESS CONNECTIONS SECONDS`
//!
//! `keepalive` sends request after request on each connection; `new` makes a connection for every request, which the
//! server closes, and whose latency runs from before connect to the end of the answer; `close` does the same and closes
//! first, so that every port on the way rests in TIME_WAIT at the client's end; `connect` only connects, and resets; each
//! prints one line of JSON. `hold` sends one request on each connection, prints `holding` and leaves them open.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use culvert_tests::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::LocalSet;
use tokio::time::timeout;

/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
enum Mode {
    Keep,
    New,
    Close,
    Connect,
}

#[derive(Default)]
struct Tally {
    latencies: Histogram,
    failed: u64,
    error: Option<String>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, address, connections, seconds] = arguments.as_slice() else {
        bail!("usage: culvert-load keepalive|new|close|connect|hold ADDRESS CONNECTIONS SECONDS");
    };
    let address: SocketAddr = address.parse().context("ADDRESS is IP:PORT")?;
    let connections: usize = connections.parse().context("CONNECTIONS is a number")?;
    let duration = Duration::from_secs_f64(seconds.parse().context("SECONDS is a number")?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match mode.as_str() {
        "keepalive" => LocalSet::new().block_on(&runtime, load(address, connections, duration, Mode::Keep)),
        "new" => LocalSet::new().block_on(&runtime, load(address, connections, duration, Mode::New)),
        "close" => LocalSet::new().block_on(&runtime, load(address, connections, duration, Mode::Close)),
        "connect" => LocalSet::new().block_on(&runtime, load(address, connections, duration, Mode::Connect)),
        "hold" => runtime.block_on(hold(address, connections, duration)),
        _ => bail!("no mode {mode}"),
    }
}

async fn load(address: SocketAddr, connections: usize, duration: Duration, mode: Mode) -> Result<()> {
    let tally = Rc::new(RefCell::new(Tally::default()));
    let started = Instant::now();
    let until = started + duration;
    let workers: Vec<_> = (0..connections)
        .map(|_| {
            let tally = tally.clone();
            tokio::task::spawn_local(async move {
                while Instant::now() < until {
                    let ended = match mode {
                        Mode::Keep => keep(address, until, &tally).await,
                        Mode::New => fresh(address, &tally).await,
                        Mode::Close => closing(address, &tally).await,
                        Mode::Connect => bare(address, &tally).await,
                    };
                    if let Err(error) = ended {
                        let mut tally = tally.borrow_mut();
                        tally.failed += 1;
                        tally.error.get_or_insert_with(|| error.to_string());
                    }
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await?;
    }
    let elapsed = started.elapsed();
    let tally = tally.borrow();
    ensure!(tally.latencies.count() > 0, "no request succeeded: {:?}", tally.error);
    let microseconds = |share| tally.latencies.quantile(share).as_secs_f64() * 1e6;
    let report = serde_json::json!({
        "requests": tally.latencies.count(),
        "failed": tally.failed,
        "error": tally.error,
        "seconds": elapsed.as_secs_f64(),
        "per_second": tally.latencies.count() as f64 / elapsed.as_secs_f64(),
        "p50_us": microseconds(0.5),
        "p90_us": microseconds(0.9),
        "p99_us": microseconds(0.99),
    });
    println!("{report}");
    Ok(())
}

/// Request after request on one connection.
async fn keep(address: SocketAddr, until: Instant, tally: &RefCell<Tally>) -> io::Result<()> {
    let mut stream = timeout(LIMIT, connect(address)).await??;
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut buffer = vec![0; 16384];
    while Instant::now() < until {
        let started = Instant::now();
        timeout(LIMIT, exchange(&mut stream, request.as_bytes(), &mut buffer)).await??;
        tally.borrow_mut().latencies.record(started.elapsed());
    }
    Ok(())
}

/// One connection, one request, until the server closes.
async fn fresh(address: SocketAddr, tally: &RefCell<Tally>) -> io::Result<()> {
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut buffer = [0; 4096];
    let started = Instant::now();
    let once = async {
        let mut stream = connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut read = 0;
        loop {
            match stream.read(&mut buffer).await? {
                0 if read == 0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                0 => return Ok(()),
                n => read += n,
            }
        }
    };
    timeout(LIMIT, once).await??;
    tally.borrow_mut().latencies.record(started.elapsed());
    Ok(())
}

/// One connection, one request, and the end of it as soon as the answer is there.
async fn closing(address: SocketAddr, tally: &RefCell<Tally>) -> io::Result<()> {
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut buffer = vec![0; 16384];
    let started = Instant::now();
    let once = async {
        let mut stream = connect_again(address).await?;
        exchange(&mut stream, request.as_bytes(), &mut buffer).await
    };
    timeout(LIMIT, once).await??;
    tally.borrow_mut().latencies.record(started.elapsed());
    Ok(())
}

/// Connects from a port that may still be in TIME_WAIT: bound with SO_REUSEADDR, it can be taken again, and this client
/// does not run out of ports before anything that it measures does.
async fn connect_again(address: SocketAddr) -> io::Result<TcpStream> {
    const PORTS: std::ops::Range<u16> = 32768..61000;
    thread_local!(static NEXT: Cell<u16> = const { Cell::new(PORTS.start) });
    for _ in PORTS {
        let port = NEXT.get();
        NEXT.set(if port + 1 < PORTS.end { port + 1 } else { PORTS.start });
        let (socket, any) = match address {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        socket.set_reuseaddr(true)?;
        socket.set_nodelay(true)?;
        let connected = match socket.bind(SocketAddr::new(any, port)) {
            Ok(()) => socket.connect(address).await,
            Err(error) => Err(error),
        };
        match connected {
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
            connected => return connected,
        }
    }
    Err(io::ErrorKind::AddrNotAvailable.into())
}

/// One connection, reset at once: it leaves no port behind in TIME_WAIT.
async fn bare(address: SocketAddr, tally: &RefCell<Tally>) -> io::Result<()> {
    let started = Instant::now();
    let stream = timeout(LIMIT, TcpStream::connect(address)).await??;
    tally.borrow_mut().latencies.record(started.elapsed());
    stream.set_zero_linger()
}

async fn hold(address: SocketAddr, connections: usize, duration: Duration) -> Result<()> {
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut buffer = vec![0; 16384];
    let mut held = Vec::with_capacity(connections);
    for n in 0..connections {
        let mut stream = timeout(LIMIT, connect(address)).await?.with_context(|| format!("connection {n}"))?;
        timeout(LIMIT, exchange(&mut stream, request.as_bytes(), &mut buffer)).await??;
        held.push(stream);
    }
    println!("holding {connections}");
    tokio::time::sleep(duration).await;
    Ok(())
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request and its whole answer, whose length is told by `Content-Length`.
async fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> io::Result<()> {
    stream.write_all(request).await?;
    let mut filled = 0;
    loop {
        let n = stream.read(&mut buffer[filled..]).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += n;
        if let Some(end) = answer_length(&buffer[..filled]) {
            return if end == filled { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) };
        }
    }
}

/// The length of the answer with its head, once it is all there.
fn answer_length(answer: &[u8]) -> Option<usize> {
    const LENGTH: &[u8] = b"Content-Length: ";
    let head = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let at = answer[..head].windows(LENGTH.len()).position(|window| window == LENGTH)? + LENGTH.len();
    let digits = answer[at..head].iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    (answer.len() >= head + length).then_some(head + length)
}
