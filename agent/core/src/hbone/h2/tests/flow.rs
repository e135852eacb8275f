//! Flow control, RFC 9113 §5.2 and §6.9.

use super::*;

fn writable(connection: &Connection, stream: u32) -> usize {
    connection.writable(StreamId(stream))
}

#[test]
fn sending_is_bounded_by_frame_size_stream_and_connection() {
    let mut client = client_with(2, &[]);
    assert_eq!(writable(&client, 1), 16_384);
    for _ in 0..3 {
        client.data_header(StreamId(1), 16_384, false).unwrap();
    }
    assert_eq!(writable(&client, 1), 65_535 - 3 * 16_384, "what is left of both windows");
    assert_eq!(writable(&client, 3), 65_535 - 3 * 16_384, "what is left of the connection's");
    assert_eq!(client.data_header(StreamId(1), 16_384, false), None);
    assert_eq!(events(&mut client, &window_update(0, 1 << 20)), [Seen::WindowOpen(0)]);
    assert_eq!(writable(&client, 3), 16_384);
    assert_eq!(writable(&client, 1), 65_535 - 3 * 16_384);
    assert_eq!(events(&mut client, &window_update(1, 1 << 20)), [Seen::WindowOpen(1)]);
    assert_eq!(writable(&client, 1), 16_384);
    events(&mut client, &settings(&[(setting::MAX_FRAME_SIZE, 1 << 20)]));
    assert_eq!(writable(&client, 3), 65_535);
}

#[test]
fn a_changed_initial_window_applies_to_open_streams_and_may_make_them_negative() {
    let mut client = client_with(1, &[(setting::INITIAL_WINDOW_SIZE, 1000)]);
    client.data_header(StreamId(1), 600, false).unwrap();
    events(&mut client, &settings(&[(setting::INITIAL_WINDOW_SIZE, 100)]));
    assert_eq!(writable(&client, 1), 0);
    events(&mut client, &window_update(1, 500));
    assert_eq!(writable(&client, 1), 0, "400 - 900 + 500");
    events(&mut client, &window_update(1, 1));
    assert_eq!(writable(&client, 1), 1);
    events(&mut client, &settings(&[(setting::INITIAL_WINDOW_SIZE, 1000)]));
    assert_eq!(writable(&client, 1), 901);
}

#[test]
fn the_end_can_be_sent_without_a_window() {
    let mut client = client_with(1, &[(setting::INITIAL_WINDOW_SIZE, 0)]);
    assert_eq!(writable(&client, 1), 0);
    let header = client.data_header(StreamId(1), 0, true).unwrap();
    assert_eq!(header, [0, 0, 0, kind::DATA, flag::END_STREAM, 0, 0, 0, 1]);
    assert_eq!(client.data_header(StreamId(1), 0, true), None);
    assert!(!client.is_sendable(StreamId(1)));
}

#[test]
fn windows_that_overflow_are_an_error_where_they_belong() {
    let mut client = client_with(2, &[]);
    let seen = events(&mut client, &window_update(1, 0x7fff_ffff));
    assert_eq!(seen, [Seen::Reset(1, ErrorCode::FLOW_CONTROL_ERROR)]);
    assert_eq!(resets(&mut client), [(1, ErrorCode::FLOW_CONTROL_ERROR)]);
    assert_eq!(events(&mut client, &window_update(3, 0)), [Seen::Reset(3, ErrorCode::PROTOCOL_ERROR)]);

    let mut client = client_with(1, &[]);
    events(&mut client, &window_update(1, 0x7fff_ffff - 65_535));
    let grow = settings(&[(setting::INITIAL_WINDOW_SIZE, 65_536)]);
    assert_eq!(error(&mut client, &grow), Some(ErrorCode::FLOW_CONTROL_ERROR));
}

#[test]
fn window_updates_are_sent_once_half_a_window_is_due() {
    let mut server = server();
    events(&mut server, &connect(1));
    let piece = vec![0; 1 << 20];
    for _ in 0..4 {
        events(&mut server, &data(1, &piece, false));
    }
    server.release(StreamId(1), (2 << 20) - 1);
    server.release_connection(4 << 20);
    assert_eq!(sent(&mut server), []);
    server.release(StreamId(1), 1);
    assert_eq!(sent(&mut server), [(kind::WINDOW_UPDATE, 0, 1, (2u32 << 20).to_be_bytes().to_vec())]);
    for _ in 0..2 {
        events(&mut server, &data(1, &piece, false));
        server.release(StreamId(1), 1 << 20);
    }
    sent(&mut server);
    for _ in 0..2 {
        events(&mut server, &data(1, &piece, false));
        server.release(StreamId(1), 1 << 20);
    }
    sent(&mut server);
    server.release_connection(4 << 20);
    assert_eq!(sent(&mut server), [(kind::WINDOW_UPDATE, 0, 0, (8u32 << 20).to_be_bytes().to_vec())]);
}

#[test]
fn a_caller_that_releases_too_much_opens_no_larger_window() {
    let mut server = server();
    events(&mut server, &connect(1));
    events(&mut server, &data(1, &[0; 1000], false));
    server.release(StreamId(1), usize::MAX);
    server.release_connection(usize::MAX);
    assert_eq!(sent(&mut server), []);
}

#[test]
fn data_beyond_a_stream_window_resets_the_stream_only() {
    let mut server = server();
    events(&mut server, &[connect(1), connect(3)].concat());
    let piece = vec![0; 1 << 20];
    for _ in 0..4 {
        events(&mut server, &data(1, &piece, false));
    }
    let seen = events(&mut server, &[data(1, &[0], false), data(3, b"x", false)].concat());
    assert_eq!(seen, [Seen::Reset(1, ErrorCode::FLOW_CONTROL_ERROR), Seen::Data(3, b"x".to_vec(), false)]);
    assert_eq!(resets(&mut server), [(1, ErrorCode::FLOW_CONTROL_ERROR)]);
}

#[test]
fn data_beyond_the_connection_window_ends_the_connection() {
    let mut server = server();
    let piece = vec![0; 1 << 20];
    for stream in [1, 3, 5, 7] {
        events(&mut server, &connect(stream));
        for _ in 0..4 {
            events(&mut server, &data(stream, &piece, false));
        }
    }
    events(&mut server, &connect(9));
    assert_eq!(error(&mut server, &data(9, &[0], false)), Some(ErrorCode::FLOW_CONTROL_ERROR));
}

#[test]
fn data_of_a_reset_stream_is_dropped_and_given_back_to_the_connection() {
    let mut server = server();
    let piece = vec![0; 1 << 20];
    events(&mut server, &connect(1));
    server.reset(StreamId(1), ErrorCode::CANCEL);
    for _ in 0..64 {
        assert_eq!(events(&mut server, &data(1, &piece, false)), []);
    }
    // Also when the reset comes in the middle of a frame.
    events(&mut server, &connect(3));
    for _ in 0..64 {
        let whole = data(3, &piece, false);
        if server.open_streams() > 0 {
            events(&mut server, &whole[..1000]);
            server.release_connection(991);
            server.reset(StreamId(3), ErrorCode::CANCEL);
            assert_eq!(events(&mut server, &whole[1000..]), []);
        } else {
            events(&mut server, &whole);
        }
    }
}

#[test]
fn padding_is_not_delivered_and_given_back() {
    let mut server = server();
    events(&mut server, &connect(1));
    let padded = frame(kind::DATA, flag::PADDED, 1, &[&[200][..], b"hello", &[0; 200]].concat());
    for _ in 0..100_000 {
        assert_eq!(events(&mut server, &padded), [Seen::Data(1, b"hello".to_vec(), false)]);
        server.release(StreamId(1), 5);
        server.release_connection(5);
        server.pending_output().clear();
    }
    let last = frame(kind::DATA, flag::PADDED | flag::END_STREAM, 1, &[1, 0]);
    assert_eq!(events(&mut server, &last), [Seen::Data(1, vec![], true)]);
}

#[test]
fn padding_longer_than_its_frame_ends_the_connection() {
    for payload in [&[1][..], &[5, 0, 0, 0, 0], &[]] {
        let mut server = server();
        events(&mut server, &connect(1));
        let code = if payload.is_empty() { ErrorCode::FRAME_SIZE_ERROR } else { ErrorCode::PROTOCOL_ERROR };
        assert_eq!(error(&mut server, &frame(kind::DATA, flag::PADDED, 1, payload)), Some(code));
    }
}
