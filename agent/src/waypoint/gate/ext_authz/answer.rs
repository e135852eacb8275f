//! What a provider has answered, and what that makes of a request and its answer.

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::waypoint::gate::set_path;
use crate::waypoint::http::reply::LocalReply;

/// The most headers that a provider may change.
const MAX_CHANGES: usize = 256;

/// What a provider says.
pub(super) enum Answer {
    /// The request goes on, like this.
    Agreed(Changes),
    /// It is answered with this.
    Refused(Box<LocalReply>),
}

/// What a provider makes of a request.
#[derive(Debug, Default)]
pub(in crate::waypoint::gate) struct Changes {
    /// Headers, in the place of what was there. A name may be that of a pseudo-header.
    pub(super) set: Vec<(String, HeaderValue)>,
    /// Headers, beside what was there: one that was not there is not added, as in Envoy.
    pub(super) append: Vec<(HeaderName, HeaderValue)>,
    /// Headers that go.
    pub(super) remove: Vec<HeaderName>,
    /// Parameters of the query, in the place of what was there.
    pub(super) set_query: Vec<(String, String)>,
    /// Parameters of the query that go.
    pub(super) remove_query: Vec<String>,
    /// What the client is told.
    pub(super) response: ResponseHeaders,
}

/// What providers add to the answer to a request that went on.
#[derive(Debug, Default)]
pub struct ResponseHeaders(pub(super) Vec<(HeaderName, HeaderValue, Adding)>);

/// How a header is added to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Adding {
    /// Beside what is there.
    Append,
    /// Where there is none.
    IfAbsent,
    /// In the place of what is there.
    Set,
    /// In the place of what is there, if there is any.
    IfPresent,
}

impl Answer {
    /// The answer, unless it changes more than anybody needs.
    pub(super) fn bounded(self) -> Result<Self, String> {
        let Self::Agreed(changes) = &self else { return Ok(self) };
        let Changes { set, append, remove, set_query, remove_query, response } = changes;
        let headers = set.len() + append.len() + remove.len() + response.0.len();
        match headers + set_query.len() + remove_query.len() {
            0..=MAX_CHANGES => Ok(self),
            more => Err(format!("it makes {more} changes, more than {MAX_CHANGES}")),
        }
    }
}

impl Changes {
    /// Makes the changes: `response` takes in what the client is told.
    pub(in crate::waypoint::gate) fn apply(self, head: &mut Parts, response: &mut ResponseHeaders) {
        for name in self.remove.iter().filter(|name| may_be_changed(name) && **name != HOST) {
            head.headers.remove(name);
        }
        let mut set: HeaderMap = HeaderMap::new();
        for (name, value) in self.set {
            match HeaderName::try_from(&name) {
                Ok(HOST) => set_pseudo(head, ":authority", &value),
                // Of several of one name that are set together, all count.
                Ok(name) if may_be_changed(&name) => drop(set.append(name, value)),
                Ok(_) => {}
                Err(_) => set_pseudo(head, &name, &value),
            }
        }
        for name in set.keys() {
            head.headers.remove(name);
        }
        let mut name = None;
        for (next, value) in set {
            name = next.or(name);
            if let Some(name) = &name {
                head.headers.append(name, value);
            }
        }
        for (name, value) in self.append {
            if may_be_changed(&name) && head.headers.contains_key(&name) {
                head.headers.append(name, value);
            }
        }
        if !self.set_query.is_empty() || !self.remove_query.is_empty() {
            change_query(head, &self.set_query, &self.remove_query);
        }
        response.0.extend(self.response.0);
    }
}

impl ResponseHeaders {
    /// Adds what the client is told to the headers of the answer.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value, adding) in self.0.iter().filter(|(name, ..)| may_be_changed(name)) {
            match (adding, headers.contains_key(name)) {
                (Adding::Append, _) => drop(headers.append(name, value.clone())),
                (Adding::IfAbsent, false) | (Adding::IfPresent, true) | (Adding::Set, _) => {
                    headers.insert(name, value.clone());
                }
                (Adding::IfAbsent, true) | (Adding::IfPresent, false) => {}
            }
        }
    }
}

/// Whether a provider may touch a header: not what says where a message ends or what becomes of its connection, or the
/// server would read other requests than were judged.
pub(super) fn may_be_changed(name: &HeaderName) -> bool {
    const FRAMING: [HeaderName; 6] = [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
    !FRAMING.contains(name) && !matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

/// Sets `:method`, `:path` or `:authority`; what cannot be one of these stays as it was.
fn set_pseudo(head: &mut Parts, name: &str, value: &HeaderValue) {
    let Ok(text) = value.to_str() else { return };
    match name {
        ":method" => {
            if let Ok(method) = Method::from_bytes(text.as_bytes())
                && method != Method::CONNECT
            {
                head.method = method;
            }
        }
        // It is normalized, and refused if it is no path, before anybody looks at it.
        ":path" if text.starts_with('/') => drop(set_path(head, text.to_owned())),
        ":authority" if Authority::try_from(text).is_ok() => {
            let mut parts = std::mem::take(&mut head.uri).into_parts();
            if parts.authority.is_some() {
                parts.authority = Authority::try_from(text).ok();
            }
            // It had all its parts before.
            head.uri = http::Uri::from_parts(parts).unwrap_or_default();
            if head.headers.contains_key(HOST) {
                head.headers.insert(HOST, value.clone());
            }
        }
        _ => {}
    }
}

fn change_query(head: &mut Parts, set: &[(String, String)], remove: &[String]) {
    let is_named = |name: &str, pair: &&str| pair.split_once('=').map_or(*pair, |(key, _)| key) == name;
    let query = head.uri.query().unwrap_or_default();
    let gone = |pair: &&str| remove.iter().chain(set.iter().map(|(name, _)| name)).any(|name| is_named(name, pair));
    let kept = query.split('&').filter(|pair| !pair.is_empty() && !gone(pair)).map(str::to_owned);
    let pairs: Vec<String> = kept.chain(set.iter().map(|(name, value)| format!("{name}={value}"))).collect();
    let path = head.uri.path();
    let changed = if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) };
    // What is no query leaves it as it was.
    let _ = set_path(head, changed);
}
