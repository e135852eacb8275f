//! Lists and watches over HTTP.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use kube::core::Status;
use serde::Deserialize;

use super::split::{Cut, LineCutter, ListCutter, ListMeta};
use crate::cluster::root_cause;

/// How many objects a page of a list has: what client-go asks for, which API servers are tuned to.
const PAGE: u32 = 500;
/// How long the next bytes of a list may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// The most bytes of a refusal.
const MAX_REFUSAL: usize = 64 << 10;

/// Which form of the objects is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As they are.
    Whole,
    /// Their metadata alone.
    Metadata,
}

impl Form {
    /// What a list is to be; a server may refuse one that is offered the other form beside it.
    fn list(self) -> &'static str {
        match self {
            Self::Whole => "application/json",
            Self::Metadata => "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        }
    }

    /// What the objects of a watch are to be.
    fn watch(self) -> &'static str {
        match self {
            Self::Whole => "application/json",
            Self::Metadata => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        }
    }
}

/// Why a list or a watch failed or ended.
#[derive(Debug)]
pub(super) enum Failure {
    /// What was watched from is no longer known: list again.
    Gone,
    /// The API server has no such resource.
    NotFound,
    /// It is not allowed.
    Forbidden(String),
    /// The API server says something else.
    Refused { code: u16, message: String, retry_after: Option<Duration> },
    /// The API server does not answer, or not to the end.
    Unreachable(String),
    /// What it says makes no sense.
    Garbled(String),
}

/// Where to look, and for how much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address<'a> {
    /// The path, with a `?` and further parameters.
    pub(super) path: &'a str,
    /// The form of the objects.
    pub(super) form: Form,
}

/// Asks for a page of a list: the first, or the one that the page before named.
pub(super) async fn list(client: &Client, address: Address<'_>, next: Option<&str>) -> Result<Page, Failure> {
    let path = match next {
        Some(next) => format!("{}limit={PAGE}&continue={}", address.path, encode(next)),
        None => format!("{}limit={PAGE}", address.path),
    };
    let body = send(client, &path, address.form.list()).await?;
    Ok(Page { body, cutter: ListCutter::default() })
}

/// Watches from `version` on, for at most `limit`.
pub(super) async fn watch(
    client: &Client,
    address: Address<'_>,
    version: &str,
    limit: Duration,
) -> Result<Events, Failure> {
    let path = format!(
        "{}watch=1&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={}",
        address.path,
        encode(version),
        limit.as_secs()
    );
    let body = send(client, &path, address.form.watch()).await?;
    Ok(Events { body, cutter: LineCutter::default() })
}

/// A page of a list, as it arrives.
pub(super) struct Page {
    body: Body,
    cutter: ListCutter,
}

impl Page {
    /// The next objects; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Cut>>, Failure> {
        let frame = tokio::time::timeout(PATIENCE, frame(&mut self.body)).await;
        let late = |_| Failure::Unreachable(format!("a list stood still for {} seconds", PATIENCE.as_secs()));
        let Some(bytes) = frame.map_err(late)?? else { return Ok(None) };
        let mut objects = Vec::new();
        self.cutter.push(&bytes, |object| objects.push(object)).map_err(|error| Failure::Garbled(error.to_string()))?;
        Ok(Some(objects))
    }

    /// What the list said of itself.
    pub(super) fn finish(self) -> Result<ListMeta, Failure> {
        self.cutter.finish().map_err(|error| Failure::Garbled(error.to_string()))
    }
}

/// The events of a watch, as they arrive.
pub(super) struct Events {
    body: Body,
    cutter: LineCutter,
}

impl Events {
    /// The next events; `None` at the end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Cut>>, Failure> {
        let Some(bytes) = frame(&mut self.body).await? else { return Ok(None) };
        let mut events = Vec::new();
        self.cutter.push(&bytes, |event| events.push(event));
        Ok(Some(events))
    }
}

/// What has to be known of an event at once.
#[derive(Debug)]
pub(super) enum Head {
    /// An object was added, changed or deleted; or a bookmark. From this version on the watch can go on.
    Object { is_bookmark: bool, version: String },
    /// The watch has failed.
    Error(Failure),
}

/// Reads the head of an event.
pub(super) fn head(event: &[u8]) -> Result<Head, Failure> {
    #[derive(Deserialize)]
    struct Event<T> {
        r#type: String,
        object: T,
    }
    #[derive(Deserialize)]
    struct Object {
        #[serde(default)]
        metadata: Metadata,
    }
    #[derive(Deserialize, Default)]
    #[serde(rename_all = "camelCase", default)]
    struct Metadata {
        resource_version: String,
    }
    let garbled = |error: serde_json::Error| Failure::Garbled(format!("the event of a watch: {error}"));
    let Event { r#type, object } = serde_json::from_slice::<Event<Object>>(event).map_err(garbled)?;
    if r#type == "ERROR" {
        let status = serde_json::from_slice::<Event<Status>>(event).map_err(garbled)?.object;
        return Ok(Head::Error(refusal(status.code, status.message, None)));
    }
    match object.metadata.resource_version {
        version if version.is_empty() => Err(Failure::Garbled("an event without resourceVersion".to_owned())),
        version => Ok(Head::Object { is_bookmark: r#type == "BOOKMARK", version }),
    }
}

async fn send(client: &Client, path: &str, accept: &str) -> Result<Body, Failure> {
    let request = Request::get(path).header(ACCEPT, accept).body(Body::empty());
    let request = request.map_err(|error| Failure::Garbled(format!("{path}: {error}")))?;
    let response = client.send(request).await.map_err(|error| Failure::Unreachable(root_cause(&error)))?;
    if response.status() == StatusCode::OK { Ok(response.into_body()) } else { Err(read_refusal(response).await) }
}

async fn frame(body: &mut Body) -> Result<Option<Bytes>, Failure> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(Failure::Unreachable(root_cause(&error))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn read_refusal(response: Response<Body>) -> Failure {
    let code = response.status().as_u16();
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = response.into_body();
    let mut text = Vec::new();
    let read = async {
        while let Ok(Some(bytes)) = frame(&mut body).await {
            text.extend_from_slice(&bytes[..bytes.len().min(MAX_REFUSAL - text.len())]);
            if text.len() == MAX_REFUSAL {
                break;
            }
        }
    };
    // What is said is a courtesy: the code is what counts.
    let _ = tokio::time::timeout(PATIENCE, read).await;
    let message = match serde_json::from_slice::<Status>(&text) {
        Ok(status) => status.message,
        Err(_) => String::from_utf8_lossy(&text).into_owned(),
    };
    refusal(code, message, seconds.map(Duration::from_secs))
}

fn refusal(code: u16, message: String, retry_after: Option<Duration>) -> Failure {
    match code {
        410 => Failure::Gone,
        404 => Failure::NotFound,
        403 => Failure::Forbidden(message),
        // A restored API server is behind what was watched: what it has now has to be listed.
        _ if message.contains("Too large resource version") => Failure::Gone,
        _ => Failure::Refused { code, message, retry_after },
    }
}

/// What may stand in a query as it is (RFC 3986 §2.3); the rest in percent-encoding.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_from_where_to_go_on() {
        let event = br#"{"type":"MODIFIED","object":{"code":{"novel":1},"metadata":{"resourceVersion":"12"}}}"#;
        assert!(matches!(head(event), Ok(Head::Object { is_bookmark: false, version }) if version == "12"));
        let bookmark = br#"{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"13"}}}"#;
        assert!(matches!(head(bookmark), Ok(Head::Object { is_bookmark: true, version }) if version == "13"));
    }

    #[test]
    fn a_watch_that_is_too_old_lists_again() {
        let gone = br#"{"type":"ERROR","object":{"kind":"Status","metadata":{},"code":410,"message":"too old"}}"#;
        assert!(matches!(head(gone), Ok(Head::Error(Failure::Gone))));
        let ahead = br#"{"type":"ERROR","object":{"code":504,"message":"Timeout: Too large resource version: 9"}}"#;
        assert!(matches!(head(ahead), Ok(Head::Error(Failure::Gone))));
    }

    #[test]
    fn what_is_no_event_is_garbled() {
        for bad in [&b""[..], b"{}", b"[]", b"{\"type\":\"ADDED\",\"object\":{}}", b"{\"type\":1,\"object\":{}}"] {
            assert!(matches!(head(bad), Err(Failure::Garbled(_))));
        }
    }

    #[test]
    fn a_token_may_hold_anything() {
        assert_eq!(encode("eyJ2=+/&a_~"), "eyJ2%3D%2B%2F%26a_~");
    }
}
