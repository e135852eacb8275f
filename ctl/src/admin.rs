//! The admin endpoints of an agent, over HTTP.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

const DEFAULT_PORT: u16 = 15000;
const TIMEOUT: Duration = Duration::from_secs(30);
/// A dump of 100 000 workloads is around 100 MB.
const MAX_ANSWER: usize = 1 << 30;

/// The JSON document at `path`.
pub(crate) fn read<T: DeserializeOwned>(url: &str, path: &str) -> Result<T> {
    let answer = request(Method::GET, url, path)?;
    serde_json::from_slice(&answer)
        .with_context(|| format!("{url}{path}: not what this version of culvertctl expects; use the agent's version"))
}

/// The text at `path`.
pub(crate) fn text(method: Method, url: &str, path: &str) -> Result<String> {
    Ok(String::from_utf8_lossy(&request(method, url, path)?).trim_end().to_owned())
}

fn request(method: Method, url: &str, path: &str) -> Result<Bytes> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let address = address(url)?;
    runtime.block_on(async {
        match tokio::time::timeout(TIMEOUT, exchange(method, &address, path)).await {
            Ok(answer) => answer,
            Err(_) => bail!("{address} does not answer {path} within {} seconds", TIMEOUT.as_secs()),
        }
    })
}

async fn exchange(method: Method, address: &str, path: &str) -> Result<Bytes> {
    let stream = TcpStream::connect(address).await.with_context(|| {
        format!("no agent at {address}; is culvert node running here? --admin URL names another, --config-dir DIR none")
    })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.with_context(|| format!("{address} does not speak HTTP"))?;
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, address)
        .body(Empty::<Bytes>::new())
        .context("the request cannot be written")?;
    let response = sender.send_request(request).await.with_context(|| format!("{address} does not answer {path}"))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("{address}{path}: the answer broke off: {error}"))?.to_bytes();
    match status {
        StatusCode::OK => Ok(body),
        StatusCode::NOT_FOUND => bail!("{address} has no {path}: is this the admin port of a culvert node?"),
        _ => bail!("{address}{path}: {}", String::from_utf8_lossy(&body[..body.len().min(300)]).trim()),
    }
}

/// `HOST:PORT` of a URL, or of what people write for one.
fn address(url: &str) -> Result<String> {
    if url.starts_with("https://") {
        bail!("--admin {url}: the admin endpoints speak plain HTTP: write http://");
    }
    let host = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    if host.is_empty() || host.contains('/') {
        bail!("--admin {url}: write http://HOST:PORT");
    }
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port && !host.ends_with(']') { host.to_owned() } else { format!("{host}:{DEFAULT_PORT}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_people_write_it() {
        for (url, expected) in [
            ("http://127.0.0.1:15000", "127.0.0.1:15000"),
            ("http://127.0.0.1:9/", "127.0.0.1:9"),
            ("localhost", "localhost:15000"),
            ("http://[::1]", "[::1]:15000"),
            ("http://[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(address(url).unwrap(), expected, "{url}");
        }
        assert!(address("https://a").is_err());
        assert!(address("http://a/b").is_err());
    }
}
