//! What several fuzz targets share.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use culvert_core::hbone::h2::{Connection, ErrorCode, Event, Request, StreamId};

/// What a connection may hold at most: 256 KiB of answers, a header block, 200 streams and the HPACK table, with what
/// vectors keep in reserve.
const MAX_MEMORY: usize = 2 << 20;

/// Whatever text parses is printed to text that parses to the same value.
pub fn survives_printing<T: FromStr + Display + PartialEq + Debug>(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(value) = text.parse::<T>() else { return };
    let printed = value.to_string();
    assert!(printed.parse().is_ok_and(|again: T| again == value), "{text:?} prints as {printed:?}");
}

/// Feeds `input` to `connection`, cut and answered as its first bytes say, and checks what must always hold.
pub fn drive(connection: &mut Connection, input: &[u8]) {
    let Some((seed, input)) = input.split_first_chunk::<4>() else { return };
    let mut dice = Dice(u32::from_le_bytes(*seed));
    let mut rest = input;
    while !rest.is_empty() {
        let (mut piece, after) = rest.split_at(dice.roll_up_to(rest.len()));
        rest = after;
        loop {
            let (consumed, event) = match connection.receive(piece) {
                Ok(outcome) => outcome,
                Err(error) => {
                    assert_eq!(connection.receive(piece), Err(error));
                    assert!(connection.is_draining());
                    return;
                }
            };
            piece = &piece[consumed..];
            let Some(event) = event else {
                assert!(piece.is_empty());
                break;
            };
            act(connection, &event, &mut dice);
            check(connection);
        }
        if dice.one_in(8) {
            connection.pending_output().clear();
        }
    }
}

/// Opens streams, so that a server's answers mean something.
pub fn open_streams(connection: &mut Connection, count: usize) {
    for _ in 0..count {
        let request = Request::connect(&"10.0.0.1:80".parse().expect("an authority")).with_header("baggage", "a=b");
        connection.open_stream(&request).expect("a fresh connection opens streams");
    }
}

fn act(connection: &mut Connection, event: &Event<'_>, dice: &mut Dice) {
    match event {
        Event::Request { stream, request, .. } => {
            let _ = request.target();
            assert_eq!(request.headers.iter().count(), request.headers.len());
            if !dice.one_in(4) {
                let end_stream = dice.one_in(4);
                connection.respond(*stream, 200, &[("baggage", "a=b")], end_stream).expect("a new stream is answered");
            }
        }
        Event::Response { stream, .. } => send(connection, *stream, dice),
        Event::Data { stream, payload, end_stream } => {
            assert!(!payload.is_empty() || *end_stream, "an empty piece says something");
            connection.release(*stream, payload.len());
            connection.release_connection(payload.len());
            send(connection, *stream, dice);
        }
        Event::Reset { stream, .. } => {
            assert_eq!(connection.writable(*stream), 0);
            assert!(!connection.is_sendable(*stream));
        }
        Event::WindowOpen { stream: Some(stream) } => send(connection, *stream, dice),
        _ => {}
    }
    if dice.one_in(64) {
        connection.ping([1; 8]);
    }
    if dice.one_in(256) {
        connection.go_away(ErrorCode::NO_ERROR);
    }
}

fn send(connection: &mut Connection, stream: StreamId, dice: &mut Dice) {
    let room = connection.writable(stream);
    assert_eq!(connection.data_header(stream, room + 1, false), None);
    let end_stream = dice.one_in(8);
    let header = connection.data_header(stream, room / 2, end_stream);
    assert!(header.is_some() || room == 0);
    if dice.one_in(32) {
        connection.reset(stream, ErrorCode::CANCEL);
        assert!(!connection.is_sendable(stream));
    }
}

fn check(connection: &Connection) {
    assert!(connection.open_streams() <= 200);
    assert!(connection.memory() <= MAX_MEMORY, "{} bytes", connection.memory());
}

/// A source of decisions that only depends on the input.
struct Dice(u32);

impl Dice {
    fn roll(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.roll() % n == 0
    }

    /// 1 to `max`, small as often as not.
    fn roll_up_to(&mut self, max: usize) -> usize {
        let limit = if self.one_in(2) { max.min(16) } else { max };
        self.roll() as usize % limit + 1
    }
}
