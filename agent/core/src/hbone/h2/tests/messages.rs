//! Requests, responses and trailers, RFC 9113 §8.

use super::*;

fn request_of(fields: &[(&str, &str)]) -> Result<Request, ErrorCode> {
    let mut server = server();
    let input = headers(1, false, fields);
    match server.receive(&input).unwrap().1 {
        Some(Event::Request { request, .. }) => Ok(request),
        None => Err(resets(&mut server)[0].1),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_headers_of_hbone_are_read() {
    let fields = [
        &CONNECT[..],
        &[
            ("baggage", "b"),
            ("forwarded", "f"),
            ("traceparent", "t"),
            ("x-istio-source", "waypoint"),
            ("te", "trailers"),
        ],
    ];
    let request = request_of(&fields.concat()).unwrap();
    assert_eq!(request.target(), "10.0.0.1:80".parse().map_err(BadTarget::Authority));
    for (name, value) in [("baggage", "b"), ("forwarded", "f"), ("traceparent", "t"), ("x-istio-source", "waypoint")] {
        assert_eq!(request.headers.get(name), Some(value));
    }
    assert_eq!(request.headers.get("x-forwarded-network"), None);
    assert_eq!(request.headers.len(), 5);
}

#[test]
fn requests_that_open_no_tunnel_are_left_to_the_caller_to_answer() {
    let get = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "10.0.0.1:80")];
    assert_eq!(request_of(&get).unwrap().target(), Err(BadTarget::NotConnect("GET".into())));
    for extra in [(":scheme", "https"), (":path", "/"), (":protocol", "websocket")] {
        let request = request_of(&[&CONNECT[..], &[extra]].concat()).unwrap();
        assert_eq!(request.target(), Err(BadTarget::SchemeOrPath));
    }
    assert_eq!(request_of(&[(":method", "CONNECT")]).unwrap().target(), Err(BadTarget::NoAuthority));
    let long = format!("{}:80", "a".repeat(5000));
    for authority in ["", "nowhere", "10.0.0.1:http", &long] {
        let request = request_of(&[(":method", "CONNECT"), (":authority", authority)]).unwrap();
        assert!(matches!(request.target(), Err(BadTarget::Authority(_))), "{authority}");
    }
    let Ok(Request { method: Method::Other(method), .. }) = request_of(&[(":method", &"\u{e9}".repeat(40))]) else {
        panic!()
    };
    assert_eq!(&*method, "\u{e9}".repeat(16));
}

#[test]
fn malformed_requests_are_reset() {
    for bad in [
        &[(":authority", "a:1")][..],
        &[(":method", "CONNECT"), (":method", "CONNECT")],
        &[(":method", "CONNECT"), (":authority", "a:1"), (":authority", "b:1")],
        &[(":method", "GET"), (":path", "/"), (":path", "/")],
        &[(":method", "CONNECT"), ("baggage", "x"), (":authority", "a:1")],
        &[(":method", "CONNECT"), (":unknown", "x")],
        &[(":method", "CONNECT"), (":status", "200")],
        &[(":method", "CONNECT"), ("Baggage", "x")],
        &[(":method", "CONNECT"), ("", "x")],
        &[(":method", "CONNECT"), ("a b", "x")],
        &[(":method", "CONNECT"), ("a:b", "x")],
        &[(":method", "CONNECT"), ("a", "x\r\ny: z")],
        &[(":method", "CONNECT"), ("a", "x\0")],
        &[(":method", "CONNECT"), ("a", " x")],
        &[(":method", "CONNECT"), (":authority", "a:1\t")],
        &[(":method", "CONNECT"), ("connection", "close")],
        &[(":method", "CONNECT"), ("keep-alive", "1")],
        &[(":method", "CONNECT"), ("proxy-connection", "close")],
        &[(":method", "CONNECT"), ("transfer-encoding", "chunked")],
        &[(":method", "CONNECT"), ("upgrade", "h2c")],
        &[(":method", "CONNECT"), ("te", "gzip")],
    ] {
        assert_eq!(request_of(bad), Err(ErrorCode::PROTOCOL_ERROR), "{bad:?}");
    }
}

#[test]
fn other_headers_are_kept_as_far_as_a_bound() {
    let names: Vec<String> = (0..100).map(|i| format!("x-{i}")).collect();
    let mut fields = CONNECT.to_vec();
    fields.extend(names.iter().map(|name| (name.as_str(), "v")));
    let big = "v".repeat(9000);
    fields.extend([("x-big", big.as_str()), ("baggage", big.as_str())]);
    let request = request_of(&fields).unwrap();
    assert_eq!(request.headers.len(), 33);
    assert_eq!(request.headers.get("baggage"), Some(big.as_str()), "what HBONE knows is always kept");
}

#[test]
fn padded_prioritised_headers_in_pieces_are_one_request() {
    let mut server = server();
    let block = block(&CONNECT);
    let (first, second) = block.split_at(4);
    let payload = [&[3, 0, 0, 0, 0, 16][..], first, &[0; 3]].concat();
    let input = [
        frame(kind::HEADERS, flag::PADDED | flag::PRIORITY | flag::END_STREAM, 1, &payload),
        frame(kind::CONTINUATION, 0, 1, second),
        frame(kind::CONTINUATION, flag::END_HEADERS, 1, &[]),
    ];
    assert_eq!(events(&mut server, &input.concat()), [Seen::Request(1, true)]);
}

#[test]
fn a_header_block_is_not_interrupted() {
    let start = frame(kind::HEADERS, 0, 1, &block(&CONNECT));
    let stop = flag::END_HEADERS;
    for other in [frame(kind::PING, 0, 0, &[0; 8]), frame(77, 0, 0, &[]), frame(kind::CONTINUATION, stop, 3, &[])] {
        assert_eq!(error(&mut server(), &[start.clone(), other].concat()), Some(ErrorCode::PROTOCOL_ERROR));
    }
}

#[test]
fn informational_responses_are_skipped_and_trailers_end_the_stream() {
    let mut client = client(&[]);
    let stream = client.open_stream(&request()).unwrap().0;
    let input = [
        headers(stream, false, &[(":status", "103")]),
        headers(stream, false, &[(":status", "200"), ("baggage", "b")]),
        data(stream, b"x", false),
        headers(stream, true, &[("trailer", "t")]),
    ];
    let want = [Seen::Response(1, 200, false), Seen::Data(1, b"x".to_vec(), false), Seen::Trailers(1)];
    assert_eq!(events(&mut client, &input.concat()), want);
    assert!(client.is_sendable(StreamId(stream)), "our half is still open");
}

#[test]
fn malformed_responses_reset_the_stream() {
    for bad in [
        headers(1, false, &[]),
        headers(1, false, &[(":status", "20")]),
        headers(1, false, &[(":status", "099")]),
        headers(1, false, &[(":status", "+20")]),
        headers(1, false, &[(":status", "200"), (":method", "GET")]),
        headers(1, true, &[(":status", "100")]),
        data(1, b"too early", false),
    ] {
        let mut client = client(&[]);
        client.open_stream(&request()).unwrap();
        assert_eq!(events(&mut client, &bad), [Seen::Reset(1, ErrorCode::PROTOCOL_ERROR)]);
    }
    for bad in [headers(1, false, &[("trailer", "but no end")]), headers(1, true, &[(":status", "200")])] {
        assert_eq!(events(&mut client_with(1, &[]), &bad), [Seen::Reset(1, ErrorCode::PROTOCOL_ERROR)]);
    }
}

#[test]
fn a_request_larger_than_the_peer_accepts_is_not_sent() {
    let mut client = client(&[(setting::MAX_HEADER_LIST_SIZE, 200)]);
    let long = request().with_header("baggage", &"x".repeat(200));
    assert!(matches!(client.open_stream(&long), Err(OpenError::HeadersTooLarge { limit: 200, .. })));
    assert!(client.open_stream(&request()).is_ok());
}
