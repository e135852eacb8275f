//! The line of one request in the access log, as Istio has Envoy write it: its default text, or the same fields as one
//! JSON object (Istio `pilot/pkg/model/telemetry_logging.go`, `EnvoyTextLogFormat` and `EnvoyJSONLogFormatIstio`).
//!
//! What clients say is bounded and cannot end the line: control characters and quotes are written as escapes.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::{Map, Value, json};

use super::flags::Flags;
use super::line::timestamp;
use super::logging::LogFormat;

/// The most that is written of anything that a client said, in bytes.
const MOST: usize = 2048;

/// What a request says of itself, kept for its line. Copies nothing: values are shared with the request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// When it came.
    pub start: SystemTime,
    /// Its method.
    pub method: Method,
    /// Its path and query, as it came.
    pub path: Uri,
    /// `HTTP/1.1`.
    pub protocol: &'static str,
    /// Whom it is for.
    pub authority: Option<HeaderValue>,
    /// `x-forwarded-for`.
    pub forwarded_for: Option<HeaderValue>,
    /// `user-agent`.
    pub user_agent: Option<HeaderValue>,
}

/// A request that is over.
#[derive(Debug)]
pub struct RequestLine {
    /// What it said.
    pub head: RequestHead,
    /// `x-request-id`, the client's or ours.
    pub request_id: Option<HeaderValue>,
    /// The status; 0 if the client went away before there was one.
    pub code: u16,
    /// Why it did not go well.
    pub flags: Flags,
    /// Who answered, and why so.
    pub details: Cow<'static, str>,
    /// Bytes of its body.
    pub bytes_received: u64,
    /// Bytes of its answer's body.
    pub bytes_sent: u64,
    /// From its head to the last byte of its answer.
    pub duration: Duration,
    /// From there to the head of the endpoint's answer.
    pub upstream_service_time: Option<Duration>,
    /// The endpoint that answered last.
    pub upstream_host: Option<SocketAddr>,
    /// Where it was routed.
    pub upstream: Option<UpstreamName>,
    /// What the client dialled.
    pub downstream_local: SocketAddr,
    /// The client.
    pub downstream_remote: SocketAddr,
    /// The name of the rule that decided, if it has one.
    pub route: Option<Arc<str>>,
}

/// What Istio calls the cluster of a waypoint: `inbound-vip|80|http/v1|reviews.default.svc.cluster.local;`.
#[derive(Clone, Debug)]
pub struct UpstreamName {
    /// The service's host.
    pub host: Arc<str>,
    /// Its port.
    pub port: u16,
    /// The part of it.
    pub subset: Option<Arc<str>>,
}

impl RequestHead {
    /// Of a request that has just come, with its headers.
    pub fn new(method: &Method, uri: &Uri, protocol: &'static str, headers: &HeaderMap) -> Self {
        let header = |name: HeaderName| headers.get(name).cloned();
        let of_uri = || uri.authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        Self {
            start: SystemTime::now(),
            method: method.clone(),
            path: uri.clone(),
            protocol,
            authority: header(http::header::HOST).or_else(of_uri),
            forwarded_for: header(HeaderName::from_static("x-forwarded-for")),
            user_agent: header(http::header::USER_AGENT),
        }
    }

    fn path(&self) -> &str {
        self.path.path_and_query().map_or("", |path| path.as_str())
    }
}

impl fmt::Display for UpstreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, subset } = self;
        let part = subset.as_ref().map_or(String::new(), |subset| format!("/{subset}"));
        write!(f, "inbound-vip|{port}|http{part}|{host};")
    }
}

impl RequestLine {
    /// Adds the line to `out`.
    pub(super) fn write(&self, out: &mut String, format: LogFormat) {
        match format {
            LogFormat::Text => self.text(out),
            LogFormat::Json => {
                out.push_str(&Value::Object(self.json()).to_string());
                out.push('\n');
            }
        }
    }

    fn text(&self, out: &mut String) {
        let head = &self.head;
        out.push('[');
        timestamp(out, head.start);
        let protocol = head.protocol;
        // A string takes everything.
        let _ = write!(out, "] \"{} ", head.method);
        escape(out, head.path().as_bytes());
        let _ = write!(out, " {protocol}\" {} {} ", self.code, self.flags);
        word(out, Some(self.details.as_bytes()));
        let milliseconds = self.duration.as_millis();
        let _ = write!(out, " - \"-\" {} {} {milliseconds} ", self.bytes_received, self.bytes_sent);
        match self.upstream_service_time {
            Some(time) => drop(write!(out, "{}", time.as_millis())),
            None => out.push('-'),
        }
        for value in [&head.forwarded_for, &head.user_agent, &self.request_id, &head.authority] {
            out.push_str(" \"");
            word(out, value.as_ref().map(HeaderValue::as_bytes));
            out.push('"');
        }
        let host = self.upstream_host.map(|host| host.to_string());
        let _ = write!(out, " \"{}\" ", host.as_deref().unwrap_or("-"));
        match &self.upstream {
            Some(name) => drop(write!(out, "{name}")),
            None => out.push('-'),
        }
        let _ = write!(out, " - {} {} - ", self.downstream_local, self.downstream_remote);
        word(out, self.route.as_ref().map(|route| route.as_bytes()));
        out.push('\n');
    }

    fn json(&self) -> Map<String, Value> {
        let head = &self.head;
        let mut start = String::new();
        timestamp(&mut start, head.start);
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let fields = [
            ("authority", said(head.authority.as_ref())),
            ("bytes_received", json!(self.bytes_received)),
            ("bytes_sent", json!(self.bytes_sent)),
            ("connection_termination_details", Value::Null),
            ("downstream_local_address", json!(self.downstream_local.to_string())),
            ("downstream_remote_address", json!(self.downstream_remote.to_string())),
            ("duration", json!(milliseconds(self.duration))),
            ("method", json!(head.method.as_str())),
            ("path", json!(shortened(head.path().as_bytes()))),
            ("protocol", json!(head.protocol)),
            ("request_id", said(self.request_id.as_ref())),
            ("requested_server_name", Value::Null),
            ("response_code", json!(self.code)),
            ("response_code_details", json!(Some(&*self.details).filter(|details| !details.is_empty()))),
            ("response_flags", json!(self.flags.to_string())),
            ("route_name", json!(self.route.as_deref())),
            ("start_time", json!(start)),
            ("upstream_cluster", json!(self.upstream.as_ref().map(ToString::to_string))),
            ("upstream_host", json!(self.upstream_host.map(|host| host.to_string()))),
            ("upstream_local_address", Value::Null),
            ("upstream_service_time", json!(self.upstream_service_time.map(milliseconds))),
            ("upstream_transport_failure_reason", Value::Null),
            ("user_agent", said(head.user_agent.as_ref())),
            ("x_forwarded_for", said(head.forwarded_for.as_ref())),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

fn said(value: Option<&HeaderValue>) -> Value {
    json!(value.map(|value| shortened(value.as_bytes())))
}

/// Something that may not be there, and is then `-`.
fn word(out: &mut String, value: Option<&[u8]>) {
    match value.filter(|value| !value.is_empty()) {
        Some(value) => escape(out, value),
        None => out.push('-'),
    }
}

/// What a client said, so that it stays where it belongs in a line.
fn escape(out: &mut String, value: &[u8]) {
    for c in shortened(value).chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
}

fn shortened(value: &[u8]) -> Cow<'_, str> {
    match value.get(..MOST) {
        Some(beginning) if value.len() > MOST => Cow::Owned(format!("{}…", String::from_utf8_lossy(beginning))),
        _ => String::from_utf8_lossy(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str, agent: &[u8]) -> RequestLine {
        let mut headers = HeaderMap::new();
        headers.insert("host", HeaderValue::from_static("reviews:9080"));
        headers.insert("user-agent", HeaderValue::from_bytes(agent).unwrap());
        let mut head = RequestHead::new(&Method::GET, &path.parse().unwrap(), "HTTP/1.1", &headers);
        head.start = SystemTime::UNIX_EPOCH + Duration::from_millis(1_500);
        RequestLine {
            head,
            request_id: Some(HeaderValue::from_static("7")),
            code: 503,
            flags: Flags::UPSTREAM_OVERFLOW,
            details: "overflow".into(),
            bytes_received: 3,
            bytes_sent: 81,
            duration: Duration::from_micros(12_900),
            upstream_service_time: Some(Duration::from_millis(11)),
            upstream_host: Some("10.0.0.7:9080".parse().unwrap()),
            upstream: Some(UpstreamName { host: "reviews.bookinfo".into(), port: 9080, subset: Some("v1".into()) }),
            downstream_local: "10.96.0.1:9080".parse().unwrap(),
            downstream_remote: "10.0.0.3:40000".parse().unwrap(),
            route: None,
        }
    }

    fn written(line: &RequestLine, format: LogFormat) -> String {
        let mut out = String::new();
        line.write(&mut out, format);
        out
    }

    #[test]
    fn the_text_is_envoys_default() {
        assert_eq!(
            written(&line("/r/1?x=y", b"curl"), LogFormat::Text),
            "[1970-01-01T00:00:01.500000Z] \"GET /r/1?x=y HTTP/1.1\" 503 UO overflow - \"-\" 3 81 12 11 \"-\" \"curl\" \
             \"7\" \"reviews:9080\" \"10.0.0.7:9080\" inbound-vip|9080|http/v1|reviews.bookinfo; - 10.96.0.1:9080 \
             10.0.0.3:40000 - -\n"
        );
    }

    #[test]
    fn json_has_the_same_fields_and_null_for_what_is_not_there() {
        let text = written(&line("/r", b"curl"), LogFormat::Json);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(value["response_code"], 503);
        assert_eq!(value["response_flags"], "UO");
        assert_eq!(value["duration"], 12);
        assert_eq!(value["authority"], "reviews:9080");
        assert_eq!(value["x_forwarded_for"], Value::Null);
        assert_eq!(value["upstream_cluster"], "inbound-vip|9080|http/v1|reviews.bookinfo;");
        assert_eq!(value.as_object().unwrap().len(), 24);
    }

    #[test]
    fn what_a_client_says_cannot_look_like_another_field_or_line() {
        let text = written(&line("/r", b"a\" 200 \\ \xff\tb"), LogFormat::Text);
        assert!(text.contains("\"a\\\" 200 \\\\ \u{fffd}\\tb\""), "{text}");
        assert_eq!(text.lines().count(), 1);
        let long = written(&line(&format!("/{}", "x".repeat(50_000)), &[b'y'; 50_000]), LogFormat::Text);
        assert!(long.len() < 3 * MOST, "{}", long.len());
        assert!(long.contains("xx… HTTP/1.1\""), "{long}");
    }
}
