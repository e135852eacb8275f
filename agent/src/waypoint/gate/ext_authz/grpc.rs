//! Providers that speak gRPC: `envoy.service.auth.v3.Authorization/Check`.
//!
//! One request and one answer: the framing of gRPC (`PROTOCOL-HTTP2.md`) is five bytes before a message, and its status
//! a trailer.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use culvert_core::identity::Identity;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, TE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use prost::Message as _;

use super::answer::{Adding, Answer, Changes, ResponseHeaders};
use super::proto::{
    Address, AttributeContext, BoolValue, CHECK, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValueOption,
    HttpRequest, OkHttpResponse, Peer, Request, SocketAddress, Timestamp, TlsSession,
};
use super::{Asking, Excerpt, collect, refuse};
use crate::waypoint::body::Body;
use crate::waypoint::gate::host;
use crate::waypoint::gate::reach::Server;
use crate::waypoint::http::reply::{GRPC_MESSAGE, GRPC_STATUS, LocalReply};

/// The header by which a provider learns whether it has seen all of the body.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

impl Asking<'_> {
    pub(super) async fn by_grpc(&self, server: Server, head: &Parts, body: Option<Excerpt>) -> Result<Answer, String> {
        let message = CheckRequest { attributes: Some(self.attributes(head, body)) };
        let length = message.encoded_len();
        let mut framed = BytesMut::with_capacity(5 + length);
        framed.put_u8(0);
        framed.put_u32(u32::try_from(length).map_err(|_| "the request is too long to be told".to_owned())?);
        message.encode(&mut framed).map_err(|error| error.to_string())?;
        let timeout = self.provider.timeout.as_millis().min(99_999_999);
        let request = http::Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(format!("http://{}:{}{CHECK}", self.provider.host, self.provider.port))
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header("grpc-timeout", format!("{timeout}m"))
            .body(Body::from(framed.freeze()))
            .map_err(|error| error.to_string())?;
        let response = self.reach.send(server, request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(format!("it answers {}", head.status));
        }
        status(&head.headers)?;
        let (data, trailers) = collect(body).await?;
        status(trailers.as_ref().unwrap_or(&head.headers))?;
        parse(&data)
    }

    fn attributes(&self, head: &Parts, body: Option<Excerpt>) -> AttributeContext {
        let session = self.session;
        let time = Timestamp {
            seconds: i64::try_from(self.now.as_secs()).unwrap_or(i64::MAX),
            nanos: i32::try_from(self.now.subsec_nanos()).unwrap_or(0),
        };
        AttributeContext {
            source: Some(peer(session.client_address, session.principal)),
            destination: Some(peer(session.destination, session.own)),
            request: Some(Request { time: Some(time), http: Some(request(head, body)) }),
            tls_session: session.sni.map(|sni| TlsSession { sni: sni.to_owned() }),
        }
    }
}

fn peer(address: SocketAddr, identity: Option<&Identity>) -> Peer {
    let socket_address =
        SocketAddress { address: address.ip().to_string(), port_value: Some(u32::from(address.port())) };
    Peer {
        address: Some(Address { socket_address: Some(socket_address) }),
        service: String::new(),
        principal: identity.map(ToString::to_string).unwrap_or_default(),
    }
}

fn request(head: &Parts, body: Option<Excerpt>) -> HttpRequest {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let scheme = head.uri.scheme_str().unwrap_or("http");
    let mut headers: HashMap<String, String> = HashMap::new();
    for (name, value) in &head.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        headers
            .entry(name.as_str().to_owned())
            .and_modify(|all| *all = format!("{all},{value}"))
            .or_insert(value.into());
    }
    let pseudo = [(":method", head.method.as_str()), (":path", path), (":authority", host(head)), (":scheme", scheme)];
    headers.extend(pseudo.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let (mut text, mut raw) = (String::new(), Bytes::new());
    if let Some(Excerpt { data, complete, pack_as_bytes }) = body {
        headers.insert(PARTIAL_BODY.to_owned(), (!complete).to_string());
        match pack_as_bytes {
            true => raw = data,
            // A string of protobuf is UTF-8; what is not would make the whole message unreadable.
            false => text = String::from_utf8_lossy(&data).into_owned(),
        }
    }
    let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    HttpRequest {
        id: head.headers.get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned(),
        method: head.method.as_str().to_owned(),
        path: path.to_owned(),
        host: host(head).to_owned(),
        scheme: scheme.to_owned(),
        size: length.unwrap_or(-1),
        protocol: protocol(head.version).to_owned(),
        headers,
        body: text,
        raw_body: raw,
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// Whether gRPC says that all is well, or says nothing yet.
fn status(headers: &HeaderMap) -> Result<(), String> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    match text(GRPC_STATUS) {
        None | Some("0") => Ok(()),
        Some(status) => {
            let message: String = text(GRPC_MESSAGE).unwrap_or_default().chars().take(200).collect();
            Err(format!("it answers with gRPC status {status} {message:?}"))
        }
    }
}

/// What an answer says, framed as gRPC has it.
pub(super) fn parse(data: &[u8]) -> Result<Answer, String> {
    read(message_of(data)?)
}

/// The one message of an answer.
fn message_of(data: &[u8]) -> Result<CheckResponse, String> {
    let message = match data {
        [0, a, b, c, d, message @ ..] if u32::from_be_bytes([*a, *b, *c, *d]) as usize == message.len() => message,
        _ => return Err("its answer is not one message of gRPC".to_owned()),
    };
    CheckResponse::decode(message).map_err(|error| format!("its answer cannot be read: {error}"))
}

fn read(response: CheckResponse) -> Result<Answer, String> {
    // Without a status nobody has said that all is well.
    let agreed = response.status.is_some_and(|status| status.code == 0);
    Ok(match agreed {
        true => Answer::Agreed(changes(response.ok_response.unwrap_or_default())?),
        false => Answer::Refused(refusal(response.denied_response.unwrap_or_default())?),
    })
}

fn changes(ok: OkHttpResponse) -> Result<Changes, String> {
    let mut changes = Changes::default();
    for option in ok.headers {
        let appends = matches!(option.append, Some(BoolValue { value: true }));
        let (name, value) = pair(option)?;
        match appends {
            true => changes.append.push((header_name(&name)?, value)),
            false => changes.set.push((name, value)),
        }
    }
    for name in ok.headers_to_remove {
        // Pseudo-headers cannot be taken away.
        if !name.starts_with(':') {
            changes.remove.push(header_name(&name)?);
        }
    }
    for option in ok.response_headers_to_add {
        let adding = adding(&option)?;
        let (name, value) = pair(option)?;
        changes.response.0.push((header_name(&name)?, value, adding));
    }
    changes.set_query = ok.query_parameters_to_set.into_iter().map(|pair| (pair.key, pair.value)).collect();
    changes.remove_query = ok.query_parameters_to_remove;
    Ok(changes)
}

fn refusal(denied: DeniedHttpResponse) -> Result<Box<LocalReply>, String> {
    let code = denied.status.map_or(0, |status| status.code);
    let code = u16::try_from(code).ok().filter(|code| (200..=599).contains(code));
    let status = code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::FORBIDDEN);
    let mut headers = ResponseHeaders::default();
    for option in denied.headers {
        let appends = matches!(option.append, Some(BoolValue { value: true }));
        let (name, value) = pair(option)?;
        headers.0.push((header_name(&name)?, value, if appends { Adding::Append } else { Adding::Set }));
    }
    let mut reply = *refuse(status, "ext_authz_denied");
    headers.apply(&mut reply.headers);
    Ok(Box::new(reply.body(denied.body)))
}

fn adding(option: &HeaderValueOption) -> Result<Adding, String> {
    Ok(match (&option.append, option.append_action) {
        (Some(BoolValue { value: true }), _) | (None, 0) => Adding::Append,
        (Some(BoolValue { value: false }), _) | (None, 2) => Adding::Set,
        (None, 1) => Adding::IfAbsent,
        (None, 3) => Adding::IfPresent,
        (None, other) => return Err(format!("it adds a header in a way that is not known ({other})")),
    })
}

/// Name and value of a header.
fn pair(option: HeaderValueOption) -> Result<(String, HeaderValue), String> {
    let header = option.header.unwrap_or_default();
    let raw = if header.raw_value.is_empty() { header.value.into_bytes().into() } else { header.raw_value };
    let shown: String = header.key.chars().take(100).collect();
    match HeaderValue::from_maybe_shared(raw) {
        Ok(value) => Ok((header.key, value)),
        Err(_) => Err(format!("its value for header {shown:?} is none")),
    }
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    let shown: String = name.chars().take(100).collect();
    HeaderName::try_from(name).map_err(|_| format!("{shown:?} is not the name of a header"))
}
