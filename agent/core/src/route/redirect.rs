//! Where a client is sent.

use super::matcher::UriMatch;
use super::request::{Origin, RequestHead, split_path};
use super::rewrite::{PathRewrite, TooLong};

/// Where a client is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    /// The status: 301, 302, 303, 307 or 308.
    pub status: u16,
    /// In place of the scheme.
    pub scheme: Option<Box<str>>,
    /// In place of the host, and of the port if it has one.
    pub authority: Option<Box<str>>,
    /// The port.
    pub port: RedirectPort,
    /// In place of the path.
    pub path: Option<PathRewrite>,
}

/// The port of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectPort {
    /// That of the authority, or else the default of the scheme.
    Unchanged,
    /// That of the scheme, which is not written.
    OfScheme,
    /// The service port that was asked.
    OfRequest,
    /// This.
    Number(u16),
}

impl Redirect {
    /// The `Location` that a client is sent to.
    ///
    /// # Errors
    /// When the path becomes too long.
    pub fn location(
        &self,
        origin: &Origin<'_>,
        request: &RequestHead<'_>,
        uri: Option<&UriMatch>,
    ) -> Result<String, TooLong> {
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme);
        let (host, port) = split_port(self.authority.as_deref().unwrap_or(request.authority));
        let default = match scheme {
            "https" => 443,
            _ => 80,
        };
        let kept = match (port, &self.authority) {
            (Some(port), Some(_)) => Some(port),
            // The default port of the old scheme would be wrong under the new one (Envoy `RedirectEntryImpl`).
            (Some(80 | 443), None) if self.scheme.is_some() => None,
            (port, _) => port,
        };
        let port = match self.port {
            RedirectPort::Unchanged => kept,
            RedirectPort::OfScheme => None,
            RedirectPort::OfRequest => Some(origin.port).filter(|port| *port != default),
            RedirectPort::Number(port) => Some(port).filter(|port| *port != default),
        };
        let path = match &self.path {
            None => request.path.to_owned(),
            // A path that has a query has its own: Envoy then drops the request's.
            Some(PathRewrite::Full(path)) if path.contains('?') => path.to_string(),
            Some(rewrite) => rewrite.apply(request.path, uri)?,
        };
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        Ok(format!("{scheme}://{host}{port}{path}"))
    }
}

/// The host of an authority, and its port.
pub(super) fn split_port(authority: &str) -> (&str, Option<u16>) {
    let (rest, port) = match authority.rsplit_once(':') {
        // The last colon of an IPv6 address is within its brackets.
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => return (authority, None),
    };
    match port {
        Some(port) => (rest, Some(port)),
        None => (authority, None),
    }
}

/// A path that a `Location` and a request line may have.
pub(crate) fn is_path(text: &str) -> bool {
    let (path, query) = split_path(text);
    let known = |b: u8| matches!(b, b'!'..=b'~') && b != b'#';
    path.bytes().chain(query.unwrap_or_default().bytes()).all(known)
}

/// A host that a `Location` and a `Host` header may have, with or without a port.
pub(crate) fn is_authority(text: &str) -> bool {
    !text.is_empty() && !text.contains('@') && text.parse::<http::uri::Authority>().is_ok()
}
