//! Providers: services that are asked about requests (CUSTOM policies).
//!
//! Whoever cannot be asked, does not answer in time, or answers what cannot be read, has not agreed: the request is
//! refused with `statusOnError`, unless the provider is `failOpen`.

mod answer;
mod grpc;
mod http;
mod proto;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ::http::request::Parts;
use ::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use culvert_core::mesh::Snapshot;
use culvert_core::options::ext_authz::{BodyInCheck, ExtAuthz, ExtAuthzProtocol};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

pub use self::answer::ResponseHeaders;
use self::answer::{Answer, Changes};
use super::SessionFacts;
use super::reach::{Reach, Server};
use crate::telemetry::Flags;
use crate::telemetry::PeerLine;
use crate::waypoint::body::Body;
use crate::waypoint::http::reply::LocalReply;

/// The longest answer of a provider.
const MAX_ANSWER: usize = 1 << 20;

/// A provider to be asked, and about what.
pub(super) struct Asking<'a> {
    pub(super) reach: &'a dyn Reach,
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) provider: &'a ExtAuthz,
    pub(super) session: &'a SessionFacts<'a>,
    /// Since 1970.
    pub(super) now: Duration,
}

/// What a provider is told of a body.
struct Excerpt {
    data: Bytes,
    /// Whether that is all of it.
    complete: bool,
    pack_as_bytes: bool,
}

impl Asking<'_> {
    /// Asks, and says what to make of the request; or what to answer in its place.
    pub(super) async fn ask(&self, head: &Parts, body: &mut Body) -> Result<Changes, Box<LocalReply>> {
        let excerpt = match self.provider.body {
            Some(wanted) => Some(read(body, wanted).await?),
            None => None,
        };
        let Some(server) = self.server() else {
            let ExtAuthz { host, port, .. } = self.provider;
            // As Istio has it: whoever names a provider that is not there has not meant that nobody is asked.
            self.say(&format!("service {host}:{port} is not in the mesh: correct the provider's service and port"));
            return Err(refuse(StatusCode::FORBIDDEN, "ext_authz_error"));
        };
        let asked = async {
            match &self.provider.protocol {
                ExtAuthzProtocol::Grpc => self.by_grpc(server, head, excerpt).await,
                ExtAuthzProtocol::Http(check) => self.by_http(server, check, head, excerpt).await,
            }
        };
        let answered = timeout(self.provider.timeout, asked).await;
        let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.provider.timeout)));
        match answered.and_then(Answer::bounded) {
            Ok(Answer::Agreed(changes)) => Ok(changes),
            Ok(Answer::Refused(reply)) => Err(reply),
            Err(why) if self.provider.fail_open => {
                self.say(&format!("{why}; the request goes on (failOpen)"));
                Ok(Changes::default())
            }
            Err(why) => {
                self.say(&why);
                let status = StatusCode::from_u16(self.provider.status_on_error).unwrap_or(StatusCode::FORBIDDEN);
                Err(refuse(status, "ext_authz_error"))
            }
        }
    }

    /// The provider's service, as the mesh has it now.
    fn server(&self) -> Option<Server> {
        let ExtAuthz { namespace, host, port, .. } = self.provider;
        let is_meant = |namespace_of: &str| namespace.as_deref().is_none_or(|namespace| *namespace == *namespace_of);
        let mut named = self.snapshot.services_by_hostname(host);
        let service = named.find(|service| is_meant(&service.key.namespace) && service.port(*port).is_some())?.clone();
        Some(Server { snapshot: self.snapshot.clone(), service, port: *port })
    }

    fn say(&self, why: &str) {
        if PeerLine::ProviderFailed.may_be_written() {
            let name = &self.provider.name;
            tracing::warn!(source = %self.session.client_address, "authorization provider {name} has not decided: {why}");
        }
    }
}

/// Reads as much of a body as a provider wants to see. All of it is still there for the server.
async fn read(body: &mut Body, wanted: BodyInCheck) -> Result<Excerpt, Box<LocalReply>> {
    let limit = wanted.max_bytes as usize;
    let Ok(peeked) = body.peek(limit).await else {
        return Err(Box::new(LocalReply::new(StatusCode::BAD_REQUEST, "ext_authz_request_body_failed")));
    };
    let whole = peeked.complete && peeked.data.len() <= limit;
    if !whole && !wanted.allow_partial {
        let reply = LocalReply::new(StatusCode::PAYLOAD_TOO_LARGE, "request_payload_too_large");
        return Err(Box::new(reply.body("Payload Too Large")));
    }
    let data = peeked.data.slice(..limit.min(peeked.data.len()));
    Ok(Excerpt { data, complete: whole, pack_as_bytes: wanted.pack_as_bytes })
}

/// The body of a provider's answer, and its trailers.
async fn collect(mut body: Body) -> Result<(Bytes, Option<HeaderMap>), String> {
    let (mut all, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| error.to_string())?.into_data() {
            Ok(data) if all.len() + data.len() > MAX_ANSWER => {
                return Err(format!("its answer is longer than {MAX_ANSWER} bytes"));
            }
            Ok(data) => all.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((all.freeze(), trailers))
}

fn refuse(status: StatusCode, details: &'static str) -> Box<LocalReply> {
    Box::new(LocalReply::new(status, details).flag(Flags::UNAUTHORIZED_EXTERNAL))
}
