use culvert_core::route::normalize::PathNormalization::Base;
use http::Request;

use super::trust::REQUEST_ID;
use super::*;

/// A request line, with `2 ` before it if it came over HTTP/2, and headers.
fn head(line: &str, headers: &[(&str, &str)]) -> Parts {
    let (http2, line) = line.strip_prefix("2 ").map_or((false, line), |rest| (true, rest));
    let (method, uri) = line.split_once(' ').unwrap();
    let (uri, version) = uri.strip_suffix(" 1.0").map_or((uri, Version::HTTP_11), |uri| (uri, Version::HTTP_10));
    let mut request = Request::builder().method(method).uri(uri);
    request = request.version(if http2 { Version::HTTP_2 } else { version });
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request.body(()).unwrap().into_parts().0
}

fn admitted(line: &str, headers: &[(&str, &str)]) -> (Parts, Admitted) {
    let mut head = head(line, headers);
    let admitted = admit(&mut head, Base, || HeaderValue::from_static("default")).unwrap();
    (head, admitted)
}

fn refused(line: &str, headers: &[(&str, &str)]) -> (u16, String) {
    let reply = admit(&mut head(line, headers), Base, || HeaderValue::from_static("default")).unwrap_err();
    (reply.status.as_u16(), reply.details.into_owned())
}

const HOST: (&str, &str) = ("host", "a");

#[test]
fn whatever_its_form_a_request_has_a_path_and_a_host() {
    for (line, headers, path, host, scheme) in [
        ("GET /x?y", &[HOST][..], "/x?y", "a", "http"),
        ("GET http://b:8080/x", &[HOST], "/x", "b:8080", "http"),
        ("GET https://b", &[HOST], "/", "b", "https"),
        ("2 GET https://b/x", &[], "/x", "b", "https"),
        ("2 GET https://b/x", &[HOST], "/x", "b", "https"),
        ("2 GET /x", &[HOST], "/x", "a", "http"),
        ("GET /x 1.0", &[], "/x", "default", "http"),
        ("GET /x", &[HOST, ("x-forwarded-proto", "https")], "/x", "a", "https"),
        ("2 GET http://b/x", &[("x-forwarded-proto", "https")], "/x", "b", "http"),
        ("GET /a/../%61?%61", &[HOST], "/a?%61", "a", "http"),
    ] {
        let (head, admitted) = admitted(line, headers);
        let view = admitted.view(&head);
        assert_eq!((view.path, view.authority, view.scheme), (path, host, scheme), "{line}");
        assert_eq!(head.uri.to_string(), path, "{line}");
        assert_eq!(head.headers.get_all("host").iter().count(), 1, "{line}");
    }
}

#[test]
fn what_envoy_refuses_is_refused() {
    let many: Vec<_> = (0..=MAX_HEADERS).map(|at| (format!("x-{at}"), "v")).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    for (line, headers, status, details) in [
        ("GET /", &[][..], 400, "missing_host_header"),
        ("2 GET /", &[], 400, "missing_host_header"),
        ("GET /", &[HOST, ("host", "b")], 400, "http1.multiple_host_headers"),
        ("GET /", &[HOST, HOST], 400, "http1.multiple_host_headers"),
        ("GET /", &[("host", "")], 400, "http.invalid_authority"),
        ("GET /", &[("host", "a b")], 400, "http.invalid_authority"),
        ("GET /", &[("host", "a/b")], 400, "http.invalid_authority"),
        ("GET /", &[("host", "user@a")], 400, "http.invalid_authority"),
        ("GET http://user@a/", &[], 400, "http.invalid_authority"),
        ("GET a", &[HOST], 400, "http1.codec_error"),
        ("OPTIONS *", &[HOST], 404, "absolute_path_rejected"),
        ("CONNECT a:80", &[HOST], 403, "upgrade_failed"),
        ("GET /%00", &[HOST], 400, "path_normalization_failed"),
        ("POST /", &[HOST, ("transfer-encoding", "gzip, chunked")], 501, "http1.invalid_transfer_encoding"),
        (
            "POST /",
            &[HOST, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            501,
            "http1.invalid_transfer_encoding",
        ),
        (
            "POST /",
            &[HOST, ("transfer-encoding", "chunked"), ("content-length", "1")],
            400,
            "http1.content_length_and_chunked_not_allowed",
        ),
        ("2 POST http://a/", &[("content-length", "1"), ("content-length", "2")], 400, "http.content_length_invalid"),
        ("2 POST http://a/", &[("content-length", "1, 1")], 400, "http.content_length_invalid"),
        ("2 POST http://a/", &[("content-length", "+1")], 400, "http.content_length_invalid"),
        ("2 GET http://a/", &many, 431, "request_headers_too_large"),
        ("GET /", &[HOST, ("connection", "upgrade"), ("upgrade", "irc")], 403, "upgrade_failed"),
        ("GET /", &[HOST, ("connection", "upgrade"), ("upgrade", "h2c, websocket")], 403, "upgrade_failed"),
        ("GET /", &[HOST, ("connection", "host")], 400, "http1.connection_header_rejected"),
        ("GET /", &[HOST, ("connection", "close, X-Forwarded-For")], 400, "http1.connection_header_rejected"),
        ("GET /", &[HOST, ("connection", "a,b,c,d,e,f,g,h,i,j,k")], 400, "http1.connection_header_rejected"),
    ] {
        assert_eq!(refused(line, headers), (status, details.to_owned()), "{line} {headers:?}");
    }
}

#[test]
fn what_is_between_two_hops_goes_no_further() {
    let (head, admitted) = admitted(
        "POST /",
        &[
            HOST,
            ("connection", "keep-alive, X-Mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("expect", "100-continue"),
            ("trailer", "x-checksum"),
            ("x-yours", "1"),
        ],
    );
    let mut names: Vec<_> = head.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["host", "te", "trailer", "x-forwarded-proto", "x-request-id", "x-yours"]);
    assert_eq!((&head.headers["te"], admitted.upgrade), (&HeaderValue::from_static("trailers"), None));
}

#[test]
fn a_websocket_is_told_apart_from_what_only_looks_like_one() {
    let upgrade = ("upgrade", "WebSocket");
    for (line, headers, expected) in [
        ("GET /", &[HOST, ("connection", "keep-alive, Upgrade"), upgrade][..], Some(Upgrade::WebSocket)),
        ("GET /", &[HOST, upgrade], None),
        ("GET / 1.0", &[HOST, ("connection", "upgrade"), upgrade], None),
        ("GET /", &[HOST, ("connection", "upgrade, http2-settings"), ("upgrade", "h2c"), ("http2-settings", "")], None),
    ] {
        let (head, admitted) = admitted(line, headers);
        assert_eq!(admitted.upgrade, expected, "{headers:?}");
        assert!(!head.headers.contains_key("upgrade") && !head.headers.contains_key("http2-settings"));
    }
}

#[test]
fn a_client_gives_no_orders() {
    let (head, _) = admitted(
        "GET /",
        &[
            HOST,
            ("x-envoy-retry-on", "5xx"),
            ("x-envoy-upstream-rq-per-try-timeout-ms", "1"),
            ("x-envoy-attempt-count", "7"),
            ("x-envoy-external-address", "1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
        ],
    );
    let mut names: Vec<_> = head.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["host", "x-envoy-external-address", "x-forwarded-for", "x-forwarded-proto", "x-request-id"]);
}

#[test]
fn a_request_keeps_its_id_and_gets_one_if_it_has_none() {
    let (head, _) = admitted("GET /", &[HOST, ("x-request-id", "mine")]);
    assert_eq!(head.headers[REQUEST_ID], "mine");
    let mut ids: Vec<_> = (0..3).map(|_| admitted("GET /", &[HOST]).0.headers.remove(REQUEST_ID).unwrap()).collect();
    for id in &ids {
        let text = id.to_str().unwrap();
        let groups: Vec<_> = text.split('-').map(str::len).collect();
        assert_eq!(groups, [8, 4, 4, 4, 12], "{text}");
        assert!(text.as_bytes()[14] == b'4' && b"89ab".contains(&text.as_bytes()[19]), "{text}");
    }
    ids.dedup();
    assert_eq!(ids.len(), 3);
}

#[test]
fn an_answer_has_nothing_of_its_connection() {
    let mut headers: http::HeaderMap =
        [("connection", "x-mine"), ("x-mine", "1"), ("keep-alive", "5"), ("upgrade", "h2")]
            .into_iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), HeaderValue::from_static(value)))
            .collect();
    hops::strip_answer(&mut headers);
    assert!(headers.is_empty(), "{headers:?}");
}
