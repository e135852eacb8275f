//! What each path answers.

use std::sync::Arc;

use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use tokio::sync::Mutex;

use super::body::Body;
use super::server::Endpoint;
use super::{AdminState, Report};
use crate::telemetry::Telemetry;

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The paths, for people.
const HELP: &str = "\
GET  /config_dump           everything this agent knows; one member of it: /config_dump/workloads
GET  /connections           the live connections
GET  /redirection           how each pod is enrolled, and what is wrong if anything is
GET  /logging               the log levels in force
POST /logging?level=LEVEL   sets them: debug, or for one target: hbone:debug, access:off
GET  /metrics               for Prometheus; also /stats/prometheus
GET  /healthz/ready         200 when the pods of this node are served, else 503 and the reasons
POST /quitquitquit          drains and ends
";

/// Answers `request`. What takes long does so in the body.
pub(super) fn respond<B>(
    endpoint: Endpoint,
    state: &Arc<AdminState>,
    request: &Request<B>,
) -> impl Future<Output = Response<Body>> + Send + use<B> {
    let (method, path) = (request.method(), request.uri().path());
    let is_metrics = matches!(path, "/metrics" | "/stats/prometheus");
    let answer = match (endpoint, path) {
        (_, "/healthz/ready") => read_only(method, || ready(state)),
        (Endpoint::Admin | Endpoint::Metrics, _) if is_metrics => read_only(method, || Answer::Metrics),
        (Endpoint::Admin, "/") => read_only(method, || text(StatusCode::OK, HELP)),
        (Endpoint::Admin, "/config_dump") => read_only(method, || {
            let members = state.config.clone();
            json(Body::stream(move |to| super::write_members(&members, to)))
        }),
        (Endpoint::Admin, "/connections") => read_only(method, || report(&state.connections)),
        (Endpoint::Admin, "/redirection") => read_only(method, || report(&state.redirection)),
        (Endpoint::Admin, "/logging") => logging(state, method, request.uri().query()),
        (Endpoint::Admin, "/quitquitquit") => quit(state, method),
        (Endpoint::Admin, path) => match member(state, path) {
            Some(member) => read_only(method, || report(member)),
            None => text(StatusCode::NOT_FOUND, "no such path; / lists them\n"),
        },
        _ => text(StatusCode::NOT_FOUND, "no such path on this port\n"),
    };
    let telemetry = state.telemetry.clone();
    async move {
        match answer {
            Answer::Now(response) => response,
            Answer::Metrics => match encode(telemetry).await {
                Some(metrics) => with_type(OPEN_METRICS, Response::new(Body::text(metrics))),
                _ => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded\n"),
            },
        }
    }
}

/// The metrics: a text of up to some megabytes, made where it keeps no connection waiting. One at a time: who asks and
/// goes away again and again has one thread at work, not many.
async fn encode(telemetry: Telemetry) -> Option<String> {
    static TURN: Mutex<()> = Mutex::const_new(());
    let turn = TURN.lock().await;
    let encoding = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        telemetry.encode()
    });
    encoding.await.ok()?.ok()
}

enum Answer {
    Now(Response<Body>),
    Metrics,
}

fn member<'a>(state: &'a AdminState, path: &str) -> Option<&'a Report> {
    let name = path.strip_prefix("/config_dump/")?;
    state.config.iter().find(|(member, _)| *member == name).map(|(_, report)| report)
}

fn read_only(method: &Method, answer: impl FnOnce() -> Answer) -> Answer {
    if matches!(*method, Method::GET | Method::HEAD) { answer() } else { not_allowed("GET, HEAD") }
}

fn ready(state: &AdminState) -> Answer {
    let reasons: Vec<String> = state.readiness.iter().flat_map(|check| check()).collect();
    let notes: String = (state.notes)().into_iter().map(|note| note + "\n").collect();
    if reasons.is_empty() {
        return text(StatusCode::OK, "ready\n".to_owned() + &notes);
    }
    text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n" + &notes)
}

fn logging(state: &AdminState, method: &Method, query: Option<&str>) -> Answer {
    let asked = query.into_iter().flat_map(|query| query.split('&')).find_map(|pair| pair.strip_prefix("level="));
    match (method, asked) {
        (&Method::GET | &Method::HEAD, None) => text(StatusCode::OK, state.log.level() + "\n"),
        (&Method::POST, None) => text(StatusCode::OK, state.log.level() + "\n"),
        (&Method::POST, Some(level)) => match decode(level).ok_or_else(|| "not UTF-8".to_owned()).and_then(|level| {
            state.log.set(&level).map_err(|e| e.to_string())?;
            tracing::info!(%level, "the log level was set by /logging");
            Ok(())
        }) {
            Ok(()) => text(StatusCode::OK, state.log.level() + "\n"),
            Err(error) => text(StatusCode::BAD_REQUEST, error + "\n"),
        },
        (&Method::GET, Some(_)) => not_allowed("POST"),
        _ => not_allowed("GET, HEAD, POST"),
    }
}

fn quit(state: &AdminState, method: &Method) -> Answer {
    if *method != Method::POST {
        return not_allowed("POST");
    }
    tracing::info!("asked to end by /quitquitquit");
    (state.shutdown)();
    text(StatusCode::OK, "draining\n")
}

/// Undoes percent-encoding (RFC 3986 §2.1); what is not encoded is taken as it is.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let hex = |byte: Option<u8>| byte.and_then(|b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        decoded.push(match byte {
            b'%' => hex(bytes.next())? << 4 | hex(bytes.next())?,
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

fn report(report: &Report) -> Answer {
    let report = report.clone();
    json(Body::stream(move |to| report.write(to).map_err(Into::into)))
}

fn json(body: Body) -> Answer {
    Answer::Now(with_type(JSON, Response::new(body)))
}

fn text(status: StatusCode, text: impl Into<String>) -> Answer {
    Answer::Now(plain(status, text))
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = with_type(TEXT, Response::new(Body::text(text.into())));
    *response.status_mut() = status;
    response
}

fn not_allowed(allowed: &'static str) -> Answer {
    let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, format!("use {allowed} here\n"));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    Answer::Now(response)
}

fn with_type(content_type: HeaderValue, mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}
