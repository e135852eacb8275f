//! Providers that speak HTTP: the request's own method and path, and a status.

use std::sync::Arc;

use culvert_core::options::ext_authz::HttpCheck;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST, LOCATION, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};

use super::answer::{Adding, Answer, Changes, may_be_changed};
use super::{Asking, Excerpt, collect, refuse};
use crate::waypoint::body::Body;
use crate::waypoint::gate::host;
use crate::waypoint::gate::reach::Server;

/// The header of an agreeing answer that lists headers of the request which are not to go on.
const TO_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");

impl Asking<'_> {
    pub(super) async fn by_http(
        &self,
        server: Server,
        check: &HttpCheck,
        head: &Parts,
        body: Option<Excerpt>,
    ) -> Result<Answer, String> {
        let request = request(check, head, body)?;
        let response = self.reach.send(server, request).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        if head.status.is_server_error() {
            return Err(format!("it answers {}", head.status));
        }
        if head.status == StatusCode::OK {
            return Ok(Answer::Agreed(agreed(check, &head.headers)));
        }
        let mut reply = *refuse(head.status, "ext_authz_denied");
        let told = head.headers.iter().filter(|(name, _)| is_told(check, name) && may_be_changed(name));
        reply.headers.extend(told.map(|(name, value)| (name.clone(), value.clone())));
        Ok(Answer::Refused(Box::new(reply.body(collect(body).await?.0))))
    }
}

fn request(check: &HttpCheck, head: &Parts, body: Option<Excerpt>) -> Result<Request<Body>, String> {
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let body = body.map(|excerpt| excerpt.data).unwrap_or_default();
    let request = Request::builder().method(head.method.clone()).uri(format!("{}{path}", check.path_prefix));
    let mut request = request.body(Body::empty()).map_err(|error| format!("pathPrefix makes no path: {error}"))?;
    let headers = request.headers_mut();
    for (name, value) in head.headers.iter().filter(|(name, _)| is_shown(check, name)) {
        headers.append(name, value.clone());
    }
    let authority = HeaderValue::try_from(host(head)).map_err(|error| error.to_string())?;
    headers.insert(HOST, authority);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    for (name, value) in &check.additional_headers {
        // They were read as headers.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(&**name), HeaderValue::try_from(&**value)) {
            headers.insert(name, value);
        }
    }
    *request.body_mut() = Body::from(body);
    Ok(request)
}

/// Whether a header of the request is sent.
fn is_shown(check: &HttpCheck, name: &HeaderName) -> bool {
    may_be_changed(name) && (*name == AUTHORIZATION || matches(&check.request_headers, name))
}

/// Whether a header of a refusing answer goes to the client.
fn is_told(check: &HttpCheck, name: &HeaderName) -> bool {
    let list = &check.to_downstream_on_deny;
    list.is_empty() || [LOCATION, WWW_AUTHENTICATE].contains(name) || matches(list, name)
}

fn agreed(check: &HttpCheck, headers: &HeaderMap) -> Changes {
    let mut changes = Changes::default();
    for (name, value) in headers {
        if matches(&check.to_upstream_on_allow, name) {
            changes.set.push((name.as_str().to_owned(), value.clone()));
        }
        if matches(&check.to_downstream_on_allow, name) {
            changes.response.0.push((name.clone(), value.clone(), Adding::Append));
        }
    }
    let lists = headers.get_all(TO_REMOVE).iter().filter_map(|list| list.to_str().ok());
    let names = lists.flat_map(|list| list.split(',')).filter_map(|name| HeaderName::try_from(name.trim()).ok());
    changes.remove.extend(names);
    changes
}

/// Whether a name is in a list of names, prefixes (`x-*`) and suffixes (`*-id`).
fn matches(list: &[Arc<str>], name: &HeaderName) -> bool {
    list.iter().any(|pattern| match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
        (Some(prefix), _) => name.as_str().starts_with(prefix),
        (None, Some(suffix)) => name.as_str().ends_with(suffix),
        (None, None) => **pattern == *name.as_str(),
    })
}
