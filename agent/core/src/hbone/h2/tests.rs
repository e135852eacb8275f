//! The rules of RFC 9113, against frames written by hand.

mod floods;
mod flow;
mod messages;
mod splits;
mod streams;

use super::frame::{self, FrameHeader, flag, kind, setting};
use super::hpack;
use super::*;

/// An [`Event`] that owns its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    PeerSettings,
    Request(u32, bool),
    Response(u32, u16, bool),
    Data(u32, Vec<u8>, bool),
    Trailers(u32),
    Reset(u32, ErrorCode),
    GoAway(u32, ErrorCode),
    WindowOpen(u32),
    Pong,
}

impl From<Event<'_>> for Seen {
    fn from(event: Event<'_>) -> Self {
        match event {
            Event::PeerSettings => Self::PeerSettings,
            Event::Request { stream, end_stream, .. } => Self::Request(stream.0, end_stream),
            Event::Response { stream, response, end_stream } => Self::Response(stream.0, response.status, end_stream),
            Event::Data { stream, payload, end_stream } => Self::Data(stream.0, payload.to_vec(), end_stream),
            Event::Trailers { stream } => Self::Trailers(stream.0),
            Event::Reset { stream, code } => Self::Reset(stream.0, code),
            Event::GoAway { last_stream, code } => Self::GoAway(last_stream, code),
            Event::WindowOpen { stream } => Self::WindowOpen(stream.map_or(0, |s| s.0)),
            Event::Pong { .. } => Self::Pong,
        }
    }
}

/// All events of `input`, up to an error.
fn feed(connection: &mut Connection, mut input: &[u8]) -> (Vec<Seen>, Option<ConnectionError>) {
    let mut seen = Vec::new();
    loop {
        match connection.receive(input) {
            Ok((n, event)) => {
                input = &input[n..];
                match event {
                    Some(event) => seen.push(event.into()),
                    None => {
                        assert!(input.is_empty(), "no event means that all is consumed");
                        return (seen, None);
                    }
                }
            }
            Err(error) => return (seen, Some(error)),
        }
    }
}

fn events(connection: &mut Connection, input: &[u8]) -> Vec<Seen> {
    let (seen, error) = feed(connection, input);
    assert_eq!(error, None);
    seen
}

/// The code of the connection error that `input` ends in, which GOAWAY tells the peer too.
fn error(connection: &mut Connection, input: &[u8]) -> Option<ErrorCode> {
    let (_, error) = feed(connection, input);
    let code = error?.code;
    let said = sent(connection).into_iter().rev().find(|f| f.0 == kind::GOAWAY).unwrap();
    assert_eq!(said.3[4..8], code.0.to_be_bytes());
    assert_eq!(connection.receive(&[]), Err(error?), "the error stays");
    assert!(connection.is_draining());
    Some(code)
}

/// The frames in the output: kind, flags, stream, payload.
fn sent(connection: &mut Connection) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let output = std::mem::take(connection.pending_output());
    let mut rest = output.strip_prefix(frame::PREFACE).unwrap_or(&output);
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk() {
        let header = FrameHeader::parse(*header);
        let (payload, after) = after.split_at(header.len as usize);
        frames.push((header.kind, header.flags, header.stream, payload.to_vec()));
        rest = after;
    }
    frames
}

fn resets(connection: &mut Connection) -> Vec<(u32, ErrorCode)> {
    let code = |payload: &[u8]| ErrorCode(u32::from_be_bytes(payload.try_into().unwrap()));
    let frames = sent(connection).into_iter().filter(|f| f.0 == kind::RST_STREAM);
    frames.map(|(_, _, stream, payload)| (stream, code(&payload))).collect()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader { len: payload.len() as u32, kind, flags, stream };
    [&header.encode(), payload].concat()
}

fn settings(list: &[(u16, u32)]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put_settings(&mut out, list);
    out
}

fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

fn rst(stream: u32, code: ErrorCode) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &code.0.to_be_bytes())
}

fn data(stream: u32, payload: &[u8], end_stream: bool) -> Vec<u8> {
    frame(kind::DATA, u8::from(end_stream), stream, payload)
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    fields.iter().for_each(|(name, value)| hpack::field(&mut out, name, value));
    out
}

fn headers(stream: u32, end_stream: bool, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, flag::END_HEADERS | u8::from(end_stream), stream, &block(fields))
}

const CONNECT: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];

fn connect(stream: u32) -> Vec<u8> {
    headers(stream, false, &CONNECT)
}

/// A server after the client's preface and empty SETTINGS.
fn server() -> Connection {
    let mut connection = Connection::server(Settings::SERVER);
    let seen = events(&mut connection, &[&frame::PREFACE[..], &settings(&[])].concat());
    assert_eq!(seen, [Seen::PeerSettings]);
    connection.pending_output().clear();
    connection
}

/// A client after the server's SETTINGS.
fn client(list: &[(u16, u32)]) -> Connection {
    let mut connection = Connection::client(Settings::CLIENT);
    assert_eq!(events(&mut connection, &settings(list)), [Seen::PeerSettings]);
    connection.pending_output().clear();
    connection
}

fn request() -> Request {
    Request::connect(&"10.0.0.1:80".parse().unwrap())
}

/// A client with so many streams open and answered.
fn client_with(streams: u32, list: &[(u16, u32)]) -> Connection {
    let mut connection = client(list);
    for i in 0..streams {
        let stream = connection.open_stream(&request()).unwrap();
        assert_eq!(stream.0, 2 * i + 1);
        events(&mut connection, &headers(stream.0, false, &[(":status", "200")]));
    }
    connection.pending_output().clear();
    connection
}

#[test]
fn each_side_announces_what_ztunnel_announces() {
    let mut server = Connection::server(Settings::SERVER);
    let frames = sent(&mut server);
    let want = [
        (setting::MAX_CONCURRENT_STREAMS, 200),
        (setting::INITIAL_WINDOW_SIZE, 4 << 20),
        (setting::MAX_FRAME_SIZE, 1 << 20),
        (setting::MAX_HEADER_LIST_SIZE, 64 << 10),
    ];
    assert_eq!(frames[0].3, settings(&want)[9..]);
    assert_eq!(frames[1], (kind::WINDOW_UPDATE, 0, 0, ((16u32 << 20) - 65_535).to_be_bytes().to_vec()));

    let mut client = Connection::client(Settings::CLIENT);
    assert!(client.pending_output().starts_with(frame::PREFACE));
    let frames = sent(&mut client);
    let want = [
        (setting::ENABLE_PUSH, 0),
        (setting::INITIAL_WINDOW_SIZE, 4 << 20),
        (setting::MAX_FRAME_SIZE, 1 << 20),
        (setting::MAX_HEADER_LIST_SIZE, 16 << 10),
    ];
    assert_eq!(frames[0].3, settings(&want)[9..]);
}

#[test]
fn a_client_that_does_not_speak_http2_is_refused() {
    for bad in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nXX", &[0x16, 3, 1]] {
        assert_eq!(error(&mut Connection::server(Settings::SERVER), bad), Some(ErrorCode::PROTOCOL_ERROR));
    }
}

#[test]
fn the_first_frame_must_be_settings() {
    let ping = frame(kind::PING, 0, 0, &[0; 8]);
    let ack = frame(kind::SETTINGS, flag::ACK, 0, &[]);
    for first in [&ping, &ack] {
        assert_eq!(error(&mut Connection::client(Settings::CLIENT), first), Some(ErrorCode::PROTOCOL_ERROR));
        let with_preface = [&frame::PREFACE[..], first].concat();
        assert_eq!(error(&mut Connection::server(Settings::SERVER), &with_preface), Some(ErrorCode::PROTOCOL_ERROR));
    }
}

#[test]
fn settings_and_pings_are_acknowledged() {
    let mut server = server();
    events(&mut server, &[settings(&[(99, 1)]), frame(kind::PING, 0, 0, b"12345678")].concat());
    let want = [(kind::SETTINGS, flag::ACK, 0, vec![]), (kind::PING, flag::ACK, 0, b"12345678".to_vec())];
    assert_eq!(sent(&mut server), want);
    server.ping(*b"abcdefgh");
    assert_eq!(sent(&mut server), [(kind::PING, 0, 0, b"abcdefgh".to_vec())]);
    assert_eq!(events(&mut server, &frame(kind::PING, flag::ACK, 0, b"abcdefgh")), [Seen::Pong]);
}

#[test]
fn frames_that_break_a_rule_of_the_connection_end_it() {
    let none: &[u8] = &[];
    for (input, code) in [
        (frame(kind::SETTINGS, 0, 1, none), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::SETTINGS, 0, 0, &[0; 5]), ErrorCode::FRAME_SIZE_ERROR),
        (frame(kind::SETTINGS, flag::ACK, 0, &[0; 6]), ErrorCode::FRAME_SIZE_ERROR),
        (settings(&[(setting::ENABLE_PUSH, 2)]), ErrorCode::PROTOCOL_ERROR),
        (settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)]), ErrorCode::FLOW_CONTROL_ERROR),
        (settings(&[(setting::MAX_FRAME_SIZE, 16_383)]), ErrorCode::PROTOCOL_ERROR),
        (settings(&[(setting::MAX_FRAME_SIZE, 1 << 24)]), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::PING, 0, 1, &[0; 8]), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::PING, 0, 0, &[0; 7]), ErrorCode::FRAME_SIZE_ERROR),
        (frame(kind::GOAWAY, 0, 1, &[0; 8]), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::GOAWAY, 0, 0, &[0; 7]), ErrorCode::FRAME_SIZE_ERROR),
        (frame(kind::RST_STREAM, 0, 0, &[0; 4]), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::RST_STREAM, 0, 1, &[0; 4]), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::RST_STREAM, 0, 1, &[0; 3]), ErrorCode::FRAME_SIZE_ERROR),
        (frame(kind::WINDOW_UPDATE, 0, 0, &[0; 3]), ErrorCode::FRAME_SIZE_ERROR),
        (window_update(0, 0), ErrorCode::PROTOCOL_ERROR),
        (window_update(0, 0x7fff_ffff), ErrorCode::FLOW_CONTROL_ERROR),
        (window_update(1, 1), ErrorCode::PROTOCOL_ERROR),
        (data(0, none, false), ErrorCode::PROTOCOL_ERROR),
        (data(1, none, false), ErrorCode::PROTOCOL_ERROR),
        (data(2, none, false), ErrorCode::PROTOCOL_ERROR),
        (headers(0, false, &CONNECT), ErrorCode::PROTOCOL_ERROR),
        (headers(2, false, &CONNECT), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::HEADERS, flag::END_HEADERS, 1, &[0x80]), ErrorCode::COMPRESSION_ERROR),
        (frame(kind::HEADERS, flag::END_HEADERS | flag::PADDED, 1, &[3, 0x82]), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::HEADERS, flag::END_HEADERS | flag::PRIORITY, 1, &[0; 4]), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[0, 0, 0, 2]), ErrorCode::PROTOCOL_ERROR),
        (frame(kind::CONTINUATION, flag::END_HEADERS, 1, none), ErrorCode::PROTOCOL_ERROR),
        (
            FrameHeader { len: (1 << 20) + 1, kind: 77, flags: 0, stream: 0 }.encode().to_vec(),
            ErrorCode::FRAME_SIZE_ERROR,
        ),
    ] {
        assert_eq!(error(&mut server(), &input), Some(code), "{input:02x?}");
    }
}

#[test]
fn a_server_that_pushes_is_refused() {
    let push = frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, &[0, 0, 0, 2]);
    assert_eq!(error(&mut client_with(1, &[]), &push), Some(ErrorCode::PROTOCOL_ERROR));
    let allow = settings(&[(setting::ENABLE_PUSH, 1)]);
    assert_eq!(error(&mut client(&[]), &allow), Some(ErrorCode::PROTOCOL_ERROR));
    assert_eq!(error(&mut client(&[]), &headers(2, false, &[(":status", "200")])), Some(ErrorCode::PROTOCOL_ERROR));
}

#[test]
fn priority_and_unknown_frames_are_ignored() {
    let mut server = server();
    let input = [frame(2, 0, 1, &[0; 5]), frame(77, 0xff, 3, &[1; 1000]), connect(1)].concat();
    assert_eq!(events(&mut server, &input), [Seen::Request(1, false)]);
}

#[test]
fn a_connection_with_one_idle_stream_is_small() {
    let mut server = server();
    let baggage = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart";
    let fields = [&CONNECT[..], &[("baggage", baggage), ("forwarded", "for=\"10.0.0.9:40000\"")]].concat();
    events(&mut server, &headers(1, false, &fields));
    server.respond(StreamId(1), 200, &[("baggage", baggage)], false).unwrap();
    server.pending_output().clear();
    server.ping([0; 8]);
    server.pending_output().clear();
    assert!(size_of::<Connection>() <= 512, "{}", size_of::<Connection>());
    assert!(server.memory() <= 1024, "{}", server.memory());

    let mut client = client_with(1, &[]);
    client.pending_output().clear();
    client.ping([0; 8]);
    assert!(client.memory() <= 1024, "{}", client.memory());
}

#[test]
fn memory_of_a_burst_is_given_back() {
    let mut server = server();
    for i in 0..200 {
        events(&mut server, &connect(2 * i + 1));
        server.respond(StreamId(2 * i + 1), 200, &[("baggage", "service.name=cart")], false).unwrap();
    }
    for i in 0..200 {
        server.reset(StreamId(2 * i + 1), ErrorCode::CANCEL);
    }
    assert!(server.memory() > 4096);
    server.pending_output().clear();
    server.ping([0; 8]);
    assert!(server.memory() < 1024, "{}", server.memory());
}
