//! What a request or connection says of itself, as far as routes look at it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, Method};

use crate::service::Service;
use crate::workload::Workload;

/// The head of a request, as it arrived.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The authority, or `Host`.
    pub authority: &'a str,
    /// The path and, after `?`, the query.
    pub path: &'a str,
    /// `HTTP/1.1`, as access logs and `%PROTOCOL%` have it.
    pub protocol: &'a str,
    /// The headers, without pseudo-headers.
    pub headers: &'a HeaderMap,
}

/// Whose request or connection it is, and what it is addressed to.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The service that is addressed.
    pub service: &'a Service,
    /// The port of it.
    pub port: u16,
    /// The client, where it is known.
    pub client: Option<&'a Workload>,
    /// The client's address.
    pub client_address: SocketAddr,
    /// The address that the client dialled.
    pub destination: IpAddr,
    /// The server name that the client asked for, of TLS that is passed through.
    pub sni: Option<&'a str>,
}

impl<'a> RequestHead<'a> {
    /// The path alone.
    pub fn path_alone(&self) -> &'a str {
        split_path(self.path).0
    }

    /// The query alone, without `?`.
    pub fn query(&self) -> Option<&'a str> {
        split_path(self.path).1
    }

    /// The value of a header: of several, all of them in order, separated by commas.
    pub fn header(&self, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
        let mut values = self.headers.get_all(name).iter();
        let first = values.next()?.as_bytes();
        let mut all = Cow::Borrowed(first);
        for value in values {
            let joined = all.to_mut();
            joined.push(b',');
            joined.extend_from_slice(value.as_bytes());
        }
        Some(all)
    }

    /// The first value of a query parameter, as it is written; empty where it has none.
    pub fn parameter(&self, name: &str) -> Option<&'a str> {
        let pairs = self.query()?.split('&');
        pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

/// A path, and the query after `?`.
pub fn split_path(path: &str) -> (&str, Option<&str>) {
    match path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path, None),
    }
}
