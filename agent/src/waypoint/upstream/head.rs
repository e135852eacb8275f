//! The head of a request, as the endpoint's protocol has it.

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Uri, Version};

/// In HTTP/1.1: the target is a path, and the host a header.
pub(super) fn for_http1<B>(request: &mut Request<B>) {
    *request.version_mut() = Version::HTTP_11;
    let authority = request.uri().authority();
    if !request.headers().contains_key(HOST) {
        let host = authority.and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
        // HTTP/1.1 wants the header even where there is nothing to say.
        let host = host.unwrap_or_else(|| HeaderValue::from_static(""));
        request.headers_mut().insert(HOST, host);
    }
    // The target of a CONNECT is an authority.
    if request.method() == Method::CONNECT || request.uri().authority().is_none() {
        return;
    }
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::from(path);
}

/// In HTTP/2: everything is a part of the target. hyper leaves out the headers that are about a connection.
pub(super) fn for_http2<B>(request: &mut Request<B>, is_tls: bool) {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(HOST);
    if request.method() == Method::CONNECT {
        return;
    }
    let uri = std::mem::take(request.uri_mut());
    let mut parts = uri.into_parts();
    let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    parts.authority = host.or(parts.authority);
    parts.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.path_and_query.get_or_insert_with(|| PathAndQuery::from_static("/"));
    if parts.authority.is_none() {
        // Nobody asked for anybody; without one there is no scheme either.
        parts.authority = Some(Authority::from_static("localhost"));
    }
    // Of parts that are all there, and none of which is empty, a URI can be made.
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, host: Option<&str>) -> Request<()> {
        let builder = host.into_iter().fold(Request::get(uri), |builder, host| builder.header(HOST, host));
        builder.body(()).unwrap()
    }

    #[test]
    fn in_http_1_the_target_is_a_path_and_the_host_a_header() {
        for (uri, host, expected) in [
            ("http://a.example/x?y", None, ("/x?y", "a.example")),
            ("http://a.example/x", Some("b.example"), ("/x", "b.example")),
            ("http://a.example", None, ("/", "a.example")),
            ("/x", Some("b.example"), ("/x", "b.example")),
            ("/x", None, ("/x", "")),
            ("*", Some("b.example"), ("*", "b.example")),
        ] {
            let mut request = request(uri, host);
            for_http1(&mut request);
            let found = (request.uri().to_string(), request.headers()[HOST].to_str().unwrap());
            assert_eq!((found.0.as_str(), found.1, request.version()), (expected.0, expected.1, Version::HTTP_11));
        }
    }

    #[test]
    fn in_http_2_the_host_is_the_targets_authority() {
        for (uri, host, is_tls, expected) in [
            ("/x?y", Some("b.example"), false, "http://b.example/x?y"),
            ("http://a.example/x", Some("b.example:80"), true, "https://b.example:80/x"),
            ("http://a.example/x", None, false, "http://a.example/x"),
        ] {
            let mut request = request(uri, host);
            for_http2(&mut request, is_tls);
            assert_eq!(request.uri().to_string(), expected);
            assert!(!request.headers().contains_key(HOST) && request.version() == Version::HTTP_2);
        }
    }
}
