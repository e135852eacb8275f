//! A request as people describe it, read as a waypoint reads one.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::InputError;
use super::l7::HttpRequest;
use crate::mesh::Snapshot;
use crate::policy::HttpFacts;
use crate::route::normalize::normalize;
use crate::route::redirect::{is_authority, is_path};
use crate::route::request::RequestHead;

/// A request.
pub(super) struct Asked {
    method: Method,
    authority: String,
    /// Normalized, with its query.
    path: String,
    headers: HeaderMap,
}

impl Asked {
    /// Reads a request to `port` of `host`.
    ///
    /// # Errors
    /// Names the flag that is wrong.
    pub(super) fn read(snapshot: &Snapshot, host: &str, port: u16, request: &HttpRequest) -> Result<Self, InputError> {
        let method = Method::from_bytes(request.method.as_bytes());
        let method = method.map_err(|_| InputError::Http(format!("--method {:?} is no method", request.method)))?;
        let mut headers = HeaderMap::new();
        let mut authority = if port == 80 { host.to_owned() } else { format!("{host}:{port}") };
        for (name, value) in &request.headers {
            if name.eq_ignore_ascii_case("host") || name == ":authority" {
                if !is_authority(value) {
                    return Err(InputError::Http(format!("--header {name:?}: {value:?} is no host")));
                }
                authority.clone_from(value);
                continue;
            }
            let pair = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
            let (name, value) = pair.ok_or_else(|| InputError::Http(format!("--header {name:?} is no header")))?;
            headers.append(name, value);
        }
        if !is_path(&request.path) {
            return Err(InputError::Http(format!("--path {:?}: percent-encode what is no ASCII", request.path)));
        }
        let path = normalize(snapshot.options().path_normalization, &request.path);
        let path = path.map_err(|why| InputError::Http(format!("--path {:?}: {why}", request.path)))?.into_owned();
        Ok(Self { method, authority, path, headers })
    }

    /// As routes see it.
    pub(super) fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            scheme: "http",
            authority: &self.authority,
            path: &self.path,
            protocol: "HTTP/1.1",
            headers: &self.headers,
        }
    }

    /// As policies see it.
    pub(super) fn facts(&self) -> HttpFacts<'_> {
        let path = self.path.split('?').next().unwrap_or_default();
        HttpFacts { method: self.method.as_str(), host: &self.authority, path, headers: &self.headers }
    }

    /// The query, without its `?`.
    pub(super) fn query(&self) -> &str {
        self.path.split_once('?').map_or("", |(_, query)| query)
    }
}
