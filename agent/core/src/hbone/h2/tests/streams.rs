//! The life of a stream, RFC 9113 §5.1, and of a connection, §6.8.

use super::*;

#[test]
fn partial_data_is_delivered_as_it_comes() {
    let mut server = server();
    events(&mut server, &connect(1));
    let whole = data(1, b"hello", true);
    assert_eq!(events(&mut server, &whole[..10]), [Seen::Data(1, b"h".to_vec(), false)]);
    assert_eq!(events(&mut server, &whole[10..13]), [Seen::Data(1, b"ell".to_vec(), false)]);
    assert_eq!(events(&mut server, &whole[13..]), [Seen::Data(1, b"o".to_vec(), true)]);
}

#[test]
fn a_payload_is_a_slice_of_the_input() {
    let mut server = server();
    events(&mut server, &connect(1));
    let input = data(1, b"hello", false);
    let Ok((14, Some(Event::Data { payload, .. }))) = server.receive(&input) else { panic!() };
    assert_eq!(payload.as_ptr(), input[9..].as_ptr());
}

#[test]
fn a_stream_is_gone_when_both_halves_have_ended() {
    for peer_first in [true, false] {
        let mut server = server();
        events(&mut server, &connect(1));
        server.respond(StreamId(1), 200, &[], false).unwrap();
        if peer_first {
            events(&mut server, &data(1, &[], true));
        }
        assert!(server.data_header(StreamId(1), 0, true).is_some());
        if !peer_first {
            assert_eq!(server.open_streams(), 1);
            assert_eq!(events(&mut server, &data(1, b"x", true)), [Seen::Data(1, b"x".to_vec(), true)]);
        }
        assert_eq!(server.open_streams(), 0);
        server.pending_output().clear();
        server.reset(StreamId(1), ErrorCode::CANCEL);
        server.release(StreamId(1), 1 << 30);
        assert_eq!(sent(&mut server), [], "nothing more is said about it");
    }
}

#[test]
fn frames_after_the_end_of_a_half_reset_the_stream() {
    for late in [data(1, b"x", false), headers(1, true, &[("trailer", "x")])] {
        let mut server = server();
        events(&mut server, &headers(1, true, &CONNECT));
        assert_eq!(events(&mut server, &late), [Seen::Reset(1, ErrorCode::STREAM_CLOSED)]);
    }
}

#[test]
fn a_stream_number_is_never_used_twice() {
    let mut server = server();
    events(&mut server, &connect(5));
    events(&mut server, &rst(5, ErrorCode::CANCEL));
    assert_eq!(events(&mut server, &[connect(5), connect(3), connect(1)].concat()), []);
    assert_eq!(server.open_streams(), 0);
    assert_eq!(events(&mut server, &connect(7)), [Seen::Request(7, false)]);

    let mut client = client_with(2, &[]);
    client.reset(StreamId(3), ErrorCode::CANCEL);
    assert_eq!(client.open_stream(&request()).map(StreamId::get), Ok(5));
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_compression_state_kept() {
    let mut server = server();
    for i in 0..200 {
        assert_eq!(events(&mut server, &connect(2 * i + 1)).len(), 1);
    }
    // Literal with indexing: the next request refers to it.
    let indexed = [block(&CONNECT), b"\x40\x07baggage\x01x".to_vec()].concat();
    assert_eq!(events(&mut server, &frame(kind::HEADERS, flag::END_HEADERS, 401, &indexed)), []);
    assert_eq!(resets(&mut server), [(401, ErrorCode::REFUSED_STREAM)]);
    server.reset(StreamId(1), ErrorCode::CANCEL);
    let refers = [block(&CONNECT), vec![0x80 | 62]].concat();
    let input = frame(kind::HEADERS, flag::END_HEADERS, 403, &refers);
    let Ok((_, Some(Event::Request { request, .. }))) = server.receive(&input) else { panic!() };
    assert_eq!(request.headers.get("baggage"), Some("x"));
}

#[test]
fn a_client_keeps_to_the_servers_limit() {
    let mut client = client(&[(setting::MAX_CONCURRENT_STREAMS, 1)]);
    let stream = client.open_stream(&request()).unwrap();
    assert_eq!(client.open_stream(&request()), Err(OpenError::TooManyStreams(1)));
    client.reset(stream, ErrorCode::CANCEL);
    assert!(client.open_stream(&request()).is_ok());
}

#[test]
fn after_go_away_later_streams_are_refused_and_earlier_ones_go_on() {
    let mut server = server();
    events(&mut server, &connect(1));
    server.announce_shutdown();
    server.announce_shutdown();
    assert!(server.is_draining() && !server.may_close());
    assert_eq!(events(&mut server, &connect(3)), [Seen::Request(3, false)]);
    server.go_away(ErrorCode::NO_ERROR);
    server.go_away(ErrorCode::NO_ERROR);
    assert!(server.may_close());
    let last = |n: u32| [n.to_be_bytes(), [0; 4]].concat();
    assert_eq!(
        sent(&mut server),
        [(kind::GOAWAY, 0, 0, last(0x7fff_ffff)), (kind::GOAWAY, 0, 0, last(3))],
        "each is said once"
    );
    assert_eq!(
        events(&mut server, &[connect(5), data(1, b"x", false)].concat()),
        [Seen::Data(1, b"x".to_vec(), false)]
    );
    assert_eq!(resets(&mut server), [(5, ErrorCode::REFUSED_STREAM)]);
}

#[test]
fn a_servers_go_away_refuses_the_streams_it_does_not_cover() {
    let mut client = client_with(3, &[]);
    let go_away = frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0, b'b', b'y', b'e']);
    let refused = |stream| Seen::Reset(stream, ErrorCode::REFUSED_STREAM);
    assert_eq!(events(&mut client, &go_away), [Seen::GoAway(1, ErrorCode::NO_ERROR), refused(5), refused(3)]);
    assert_eq!(client.open_streams(), 1);
    assert_eq!(client.open_stream(&request()), Err(OpenError::Draining));
    // A second one cannot take that back.
    let later = frame(kind::GOAWAY, 0, 0, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert_eq!(events(&mut client, &later), [Seen::GoAway(1, ErrorCode::NO_ERROR)]);
}

#[test]
fn resets_that_end_a_healthy_tunnel_are_told_apart() {
    let mut server = server();
    events(&mut server, &[connect(1), connect(3)].concat());
    assert_eq!(events(&mut server, &rst(1, ErrorCode::CANCEL)), [Seen::Reset(1, ErrorCode::CANCEL)]);
    assert_eq!(events(&mut server, &rst(3, ErrorCode(0x1234))), [Seen::Reset(3, ErrorCode(0x1234))]);
    assert!(ErrorCode::CANCEL.is_end() && ErrorCode::NO_ERROR.is_end() && !ErrorCode::CONNECT_ERROR.is_end());
    assert_eq!(events(&mut server, &rst(3, ErrorCode::CANCEL)), [], "it is gone already");
}

#[test]
fn a_server_answers_each_stream_once_and_sends_data_only_then() {
    let mut server = server();
    events(&mut server, &connect(1));
    assert_eq!(server.writable(StreamId(1)), 0);
    assert_eq!(server.data_header(StreamId(1), 0, true), None);
    server.respond(StreamId(1), 200, &[], false).unwrap();
    assert!(server.writable(StreamId(1)) > 0);
    assert_eq!(server.respond(StreamId(1), 200, &[], false), Err(StreamClosed(StreamId(1))));
    assert_eq!(server.respond(StreamId(3), 200, &[], false), Err(StreamClosed(StreamId(3))));
    assert_eq!(server.open_stream(&request()), Err(OpenError::NotAClient));
}
