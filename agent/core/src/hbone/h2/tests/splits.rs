//! However the peer's bytes are cut, they mean the same.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Joins neighbouring pieces of DATA, which is all that a cut may change.
fn joined(seen: Vec<Seen>) -> Vec<Seen> {
    let mut out: Vec<Seen> = Vec::new();
    for event in seen {
        match (out.last_mut(), event) {
            (Some(Seen::Data(a, bytes, end @ false)), Seen::Data(b, more, ends)) if *a == b => {
                bytes.extend(more);
                *end = ends;
            }
            (_, event) => out.push(event),
        }
    }
    out
}

/// What a peer may send: mostly well-formed, in every order.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let stream = 0u32..10;
    prop_oneof![
        4 => (stream.clone(), any::<bool>()).prop_map(|(s, end)| headers(s * 2 + 1, end, &CONNECT)),
        2 => (stream.clone(), any::<bool>(), "[a-z:A-Z]{1,8}").prop_map(|(s, end, n)| headers(s * 2 + 1, end, &[(":status", "200"), (&n, "v")])),
        4 => (stream.clone(), prop::collection::vec(any::<u8>(), 0..40), any::<u8>())
            .prop_map(|(s, payload, flags)| frame(kind::DATA, flags & 9, s * 2 + 1, &payload)),
        1 => (stream.clone(), any::<u32>()).prop_map(|(s, code)| rst(s * 2 + 1, ErrorCode(code))),
        1 => (stream.clone(), 0u32..100_000).prop_map(|(s, n)| window_update(s, n)),
        1 => (1u16..7, 0u32..70_000).prop_map(|(id, value)| settings(&[(id, value)])),
        1 => any::<u8>().prop_map(|flags| frame(kind::PING, flags, 0, &[7; 8])),
        1 => (0u32..20).prop_map(|last| frame(kind::GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat())),
        1 => (any::<u8>(), any::<u8>(), stream, prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(kind, flags, s, payload)| frame(kind, flags, s, &payload)),
    ]
}

fn connection(as_client: bool) -> Connection {
    if as_client { client_with(5, &[]) } else { server() }
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_events(
        as_client: bool,
        frames in prop::collection::vec(any_frame(), 1..20),
        cuts in prop::collection::vec(any::<Index>(), 0..20),
    ) {
        let input = frames.concat();
        let mut whole = connection(as_client);
        let want = feed(&mut whole, &input);

        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).chain([0, input.len()]).collect();
        cuts.sort_unstable();
        let mut pieces = connection(as_client);
        let (mut seen, mut error) = (Vec::new(), None);
        for pair in cuts.windows(2) {
            let (more, failed) = feed(&mut pieces, &input[pair[0]..pair[1]]);
            seen.extend(more);
            error = failed;
            if error.is_some() {
                break;
            }
        }
        prop_assert_eq!((joined(seen), error), (joined(want.0), want.1));
        prop_assert_eq!(whole.pending_output(), pieces.pending_output());
        prop_assert_eq!(whole.open_streams(), pieces.open_streams());
    }

    #[test]
    fn no_bytes_make_it_panic(as_client: bool, input in prop::collection::vec(any::<u8>(), 0..500)) {
        let _ = feed(&mut connection(as_client), &input);
    }
}
