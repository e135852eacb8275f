//! What a hostile peer may cost.

use super::*;

/// How often `input` can be repeated before the connection ends with ENHANCE_YOUR_CALM.
fn repeats(connection: &mut Connection, mut input: impl FnMut(u32) -> Vec<u8>) -> u32 {
    for i in 0..100_000 {
        if let (_, Some(error)) = feed(connection, &input(i)) {
            assert_eq!(error.code, ErrorCode::ENHANCE_YOUR_CALM);
            return i;
        }
        // A peer that reads everything.
        connection.pending_output().clear();
    }
    panic!("never bounded");
}

#[test]
fn floods_of_frames_without_progress_are_ended() {
    assert!(repeats(&mut server(), |_| frame(kind::PING, 0, 0, &[0; 8])) <= 2000);
    assert!(repeats(&mut server(), |_| frame(kind::PING, flag::ACK, 0, &[0; 8])) <= 2000);
    assert!(repeats(&mut server(), |_| settings(&[])) <= 2000);
    assert!(repeats(&mut server(), |_| frame(kind::SETTINGS, flag::ACK, 0, &[])) <= 2000);
    assert!(repeats(&mut server(), |_| frame(2, 0, 1, &[0; 5])) <= 2000, "PRIORITY");
    assert!(repeats(&mut server(), |_| frame(77, 0, 1, &[])) <= 2000, "unknown");
    assert!(repeats(&mut server(), |_| window_update(0, 1)) <= 2000);
    assert!(repeats(&mut client(&[]), |_| frame(kind::GOAWAY, 0, 0, &[0; 8])) <= 2000);
    let mut open = server();
    events(&mut open, &connect(1));
    assert!(repeats(&mut open, |_| data(1, &[], false)) <= 2000);
    let mut open = server();
    events(&mut open, &connect(1));
    assert!(repeats(&mut open, |_| frame(kind::DATA, flag::PADDED, 1, &[1, 0])) <= 2000);
    let mut gone = server();
    events(&mut gone, &[connect(1), rst(1, ErrorCode::CANCEL)].concat());
    assert!(repeats(&mut gone, |_| rst(1, ErrorCode::CANCEL)) <= 2000);
    let mut gone = server();
    events(&mut gone, &[connect(1), rst(1, ErrorCode::CANCEL)].concat());
    assert!(repeats(&mut gone, |_| connect(1)) <= 2000);
    let mut informed = client(&[]);
    informed.open_stream(&request()).unwrap();
    assert!(repeats(&mut informed, |_| headers(1, false, &[(":status", "103")])) <= 2000);
}

/// CVE-2023-44487.
#[test]
fn rapid_reset_is_ended() {
    assert!(repeats(&mut server(), |i| [connect(2 * i + 1), rst(2 * i + 1, ErrorCode::CANCEL)].concat()) <= 500);
}

/// CVE-2025-8671: the peer makes us send the reset.
#[test]
fn resets_that_the_peer_provokes_are_ended() {
    assert!(repeats(&mut server(), |i| [connect(2 * i + 1), window_update(2 * i + 1, 0)].concat()) <= 500);
    assert!(repeats(&mut server(), |i| headers(2 * i + 1, false, &[(":method", "GET"), ("A", "")])) <= 500);
    let mut full = server();
    (0..200).for_each(|i| drop(events(&mut full, &connect(2 * i + 1))));
    assert!(repeats(&mut full, |i| connect(2 * i + 1001)) <= 500);
}

#[test]
fn streams_that_are_answered_may_be_reset_for_ever() {
    let mut server = server();
    for i in 0..50_000 {
        let stream = 2 * i + 1;
        assert_eq!(events(&mut server, &connect(stream)), [Seen::Request(stream, false)]);
        server.respond(StreamId(stream), 200, &[], false).unwrap();
        assert_eq!(events(&mut server, &rst(stream, ErrorCode::CANCEL)).len(), 1);
        server.pending_output().clear();
    }
}

#[test]
fn window_updates_for_data_that_was_sent_are_never_a_flood() {
    let mut client = client_with(1, &[]);
    for _ in 0..50_000 {
        client.data_header(StreamId(1), 100, false).unwrap();
        let ping = frame(kind::PING, 0, 0, &[0; 8]);
        events(&mut client, &[window_update(0, 100), window_update(1, 100), ping].concat());
        client.pending_output().clear();
    }
}

#[test]
fn a_peer_that_updates_its_windows_every_4_kib_is_no_flood() {
    let wide = [(setting::MAX_FRAME_SIZE, 1 << 20), (setting::INITIAL_WINDOW_SIZE, 4 << 20)];
    let mut client = client_with(1, &wide);
    events(&mut client, &window_update(0, 4 << 20));
    for _ in 0..100 {
        client.data_header(StreamId(1), 1 << 20, false).unwrap();
        for _ in 0..256 {
            events(&mut client, &[window_update(0, 4096), window_update(1, 4096)].concat());
        }
    }
}

#[test]
fn a_keepalive_restores_the_allowance() {
    let mut server = server();
    for _ in 0..50_000 / 1000 {
        for _ in 0..1000 {
            events(&mut server, &frame(kind::PING, 0, 0, &[0; 8]));
        }
        server.ping([0; 8]);
        server.pending_output().clear();
    }
}

/// CVE-2024-27316, CVE-2024-28182.
#[test]
fn endless_header_blocks_are_ended() {
    let mut server_a = server();
    let start = frame(kind::HEADERS, 0, 1, &block(&CONNECT));
    let mut pieces = vec![start.clone()];
    pieces.resize(40, frame(kind::CONTINUATION, 0, 1, &[]));
    assert_eq!(error(&mut server_a, &pieces.concat()), Some(ErrorCode::ENHANCE_YOUR_CALM));

    let mut server_b = server();
    let mut pieces = vec![start];
    pieces.resize(10, frame(kind::CONTINUATION, 0, 1, &[0x82; 16_000]));
    assert_eq!(error(&mut server_b, &pieces.concat()), Some(ErrorCode::ENHANCE_YOUR_CALM));

    // Refused by its header, before anything of it is kept.
    let mut server_c = server();
    let claim = FrameHeader { len: 1 << 20, kind: kind::HEADERS, flags: 0, stream: 1 }.encode();
    assert_eq!(error(&mut server_c, &claim), Some(ErrorCode::ENHANCE_YOUR_CALM));
}

#[test]
fn a_frame_that_trickles_takes_only_the_memory_it_has_sent() {
    let mut server = server();
    let claim = FrameHeader { len: 60_000, kind: kind::HEADERS, flags: 0, stream: 1 }.encode();
    events(&mut server, &[&claim[..], &[0; 10]].concat());
    assert!(server.memory() < 1024, "{}", server.memory());
}

/// A small block that expands to a large list: one entry of the dynamic table, referred to again and again.
#[test]
fn an_hpack_bomb_resets_the_stream_and_keeps_the_compression_state() {
    let mut server = server();
    let entry = [b"\x40\x01a\x7f".to_vec(), vec![0x80 | 0x01, 0x1e], vec![b'v'; 3968]].concat();
    let bomb = [block(&CONNECT), entry, vec![0x80 | 62; 60_000]].concat();
    let input = frame(kind::HEADERS, flag::END_HEADERS, 1, &bomb);
    assert_eq!(events(&mut server, &input), []);
    assert_eq!(resets(&mut server), [(1, ErrorCode::ENHANCE_YOUR_CALM)]);
    assert!(server.memory() < 12 << 10, "{}", server.memory());
    assert_eq!(events(&mut server, &connect(3)), [Seen::Request(3, false)]);
}

#[test]
fn a_peer_that_never_reads_cannot_make_the_output_grow() {
    let mut server = server();
    for i in 0..100_000u32 {
        let input = [frame(kind::PING, 0, 0, &[0; 8]), connect(2 * i + 1), rst(2 * i + 1, ErrorCode::CANCEL)].concat();
        let (_, error) = feed(&mut server, &input);
        server.ping([0; 8]); // the caller's keepalive, so that the allowance never runs out
        assert!(server.pending_output().len() < 300 << 10);
        if let Some(error) = error {
            assert_eq!(error.code, ErrorCode::ENHANCE_YOUR_CALM);
            return;
        }
    }
    panic!("never bounded");
}

#[test]
fn a_peer_that_is_refused_and_never_reads_cannot_make_the_output_grow() {
    let mut server = server();
    for i in 0..100_000u32 {
        let id = 2 * i + 1;
        let (_, error) = feed(&mut server, &connect(id));
        assert!(server.pending_output().len() < 300 << 10);
        if let Some(error) = error {
            assert_eq!(error.code, ErrorCode::ENHANCE_YOUR_CALM);
            return;
        }
        server.respond(StreamId(id), 401, &[], true).unwrap();
        server.reset(StreamId(id), ErrorCode::NO_ERROR);
    }
    panic!("never bounded");
}

#[test]
fn oversized_settings_and_go_away_are_refused_by_their_header() {
    for kind in [kind::SETTINGS, kind::GOAWAY] {
        let claim = FrameHeader { len: 60_000, kind, flags: 0, stream: 0 }.encode();
        assert_eq!(error(&mut server(), &claim), Some(ErrorCode::ENHANCE_YOUR_CALM));
    }
}
