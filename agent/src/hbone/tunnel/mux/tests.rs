//! The multiplexer without a socket: what a peer sends, and what is kept of it.

use culvert_core::hbone::Authority;
use culvert_core::hbone::h2::{Request, Settings};

use super::*;
use crate::hbone::local::{Connecting, connect};
use crate::hbone::tunnel::{Detached, Redial};

struct Nowhere;

impl Redial for Nowhere {
    fn redial(&self, open: Box<Open>) {
        open.refuse(Outcome::error("there is no other tunnel"));
    }
}

/// A client's multiplexer with one stream that has something to send, and the peer's end of the connection.
struct Scene {
    mux: Mux,
    peer: Connection,
    _stream: Connecting,
}

impl Scene {
    fn new() -> Self {
        let shared = Arc::<Shared>::default();
        let mut mux = Mux::new(Connection::client(Settings::CLIENT), Role::Client(Arc::new(Nowhere)), shared, 100);
        let (stream, end) = connect();
        let request = Request::connect(&Authority::Ip("10.0.0.1:80".parse().unwrap()));
        mux.open(Box::new(Open { app: Detached::Local(end), request, flow: Flow::unlisted(), attempts: 0 }));
        let mut scene = Self { mux, peer: Connection::server(Settings::SERVER), _stream: stream };
        scene.say();
        let id = scene.mux.slots[0].0;
        scene.peer.respond(id, 200, &[], false).unwrap();
        scene.hear();
        scene
    }

    /// The peer is given what is to be said to it.
    fn say(&mut self) {
        let bytes = std::mem::take(self.mux.h2.pending_output());
        let mut input = &bytes[..];
        loop {
            let (consumed, event) = self.peer.receive(input).unwrap();
            input = &input[consumed..];
            if event.is_none() && input.is_empty() {
                return;
            }
        }
    }

    /// What the peer says arrives.
    fn hear(&mut self) {
        let bytes = std::mem::take(self.peer.pending_output());
        self.arrives(&bytes);
    }

    fn arrives(&mut self, bytes: &[u8]) {
        let (mut input, mut batch) = (bytes, Batch::default());
        loop {
            let (consumed, event) = self.mux.h2.receive(input).unwrap();
            input = &input[consumed..];
            match event {
                Some(event) => self.mux.event(event, bytes, &mut batch),
                None if input.is_empty() => return,
                None => {}
            }
        }
    }
}

/// WINDOW_UPDATE by one byte for the first stream.
const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 0, 1];

#[test]
fn a_peer_that_does_not_read_and_opens_its_window_again_and_again_makes_no_list_grow() {
    let mut scene = Scene::new();
    for _ in 0..1000 {
        scene.arrives(&WINDOW_UPDATE);
        // The socket is blocked: what the application has to say waits.
        scene.mux.serve(None).unwrap();
    }
    assert_eq!(scene.mux.deferred.take().len(), 1);
}

#[test]
fn those_on_their_way_are_still_counted_when_all_that_is_carried_has_failed() {
    let mut scene = Scene::new();
    scene.mux.shared.streams.store(3, Ordering::Relaxed);
    scene.mux.fail(|_| true, "the peer has gone", ResponseFlags::None);
    assert_eq!(scene.mux.shared.streams.load(Ordering::Relaxed), 2);
}
