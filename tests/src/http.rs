//! A small HTTP/1.1 client and server, blocking, with a limit on everything.
//!
//! For the agent's own endpoints and for suites that ask who connected; what a user would see is shown with curl and
//! nginx.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::process::Place;

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status code.
    pub status: u16,
    /// Its body; bytes that are not UTF-8 are replaced.
    pub body: String,
}

/// One request on a connection of its own, from the calling thread's netns.
pub fn request(method: &str, to: SocketAddr, path: &str, limit: Duration) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&to, limit).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("no full answer from {to}"))?;
    parse_response(&String::from_utf8_lossy(&answer))
}

/// `GET` on a connection of its own.
pub fn get(to: SocketAddr, path: &str, limit: Duration) -> Result<Response> {
    request("GET", to, path, limit)
}

fn parse_response(answer: &str) -> Result<Response> {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("not an HTTP answer: {answer:?}") };
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|status| status.parse().ok());
    let chunked = lines.any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let body = if chunked { unchunk(body) } else { body.to_owned() };
    Ok(Response { status: status.context("an answer without status")?, body })
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = after.get(..size) else { break };
        body.push_str(chunk);
        rest = after.get(size + 2..).unwrap_or("");
    }
    body
}

/// A server that answers every request with `NAME saw ADDRESS`, the address its client came from.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    place: Place,
    accepted: Arc<AtomicUsize>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Listens on `address` (a port of 0 is chosen by the kernel) in `place`.
    pub fn start(place: &Place, address: SocketAddr, name: &str) -> Result<Self> {
        let listener = place.run(|| TcpListener::bind(address))?.with_context(|| format!("cannot bind {address}"))?;
        let address = listener.local_addr()?;
        let (stop, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count, name) = (stop.clone(), accepted.clone(), name.to_owned());
        let thread = place.spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let Ok(stream) = stream else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                let name = name.clone();
                thread::spawn(move || serve(stream, &name));
            }
        });
        Ok(Self { stop, address, place: place.clone(), accepted, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections reached it.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread sits in accept: one last connection lets it see the flag. By loopback, which is never steered.
        let knock = SocketAddr::new(
            if self.address.ip().is_unspecified() { loopback(self.address.ip()) } else { self.address.ip() },
            self.address.port(),
        );
        let knocked = self.place.run(|| TcpStream::connect_timeout(&knock, Duration::from_secs(1)));
        if knocked.is_ok_and(|stream| stream.is_ok())
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn loopback(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { std::net::Ipv4Addr::LOCALHOST.into() } else { std::net::Ipv6Addr::LOCALHOST.into() }
}

fn serve(stream: TcpStream, name: &str) -> Option<()> {
    let peer = stream.peer_addr().ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let mut writer = stream.try_clone().ok()?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut length = 0;
        let mut close = false;
        let mut lines = 0;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() && lines > 0 {
                break;
            }
            lines += 1;
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            close |= line == "connection: close";
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).ok()?;
        let body = format!("{name} saw {}\n", peer.ip());
        let connection = if close { "close" } else { "keep-alive" };
        write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{body}", body.len())
            .ok()?;
        if close {
            return Some(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let plain = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nwait";
        assert_eq!(parse_response(plain).unwrap(), Response { status: 503, body: "wait".into() });
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse_response(chunked).unwrap().body, "abcde");
        assert!(parse_response("SSH-2.0-OpenSSH").is_err());
    }
}
