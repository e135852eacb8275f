//! Peers that break the rules: each is refused with a clear line in the log, and nobody else notices.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod support;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use culvert_tests::objects::authorization_policy;
use culvert_tests::{Place, eventually};
use rustls::ClientConfig;
use support::authority::{Authority, Leaf};
use support::echo::{self, Echo};
use support::peer::*;
use support::{LIMIT, Mesh};

const PEER: &str = "spiffe://cluster.local/ns/shop/sa/peer";
const DENIED: &str = "spiffe://cluster.local/ns/shop/sa/denied";
const HBONE: u16 = 15008;
const PORT: u16 = 8080;
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const DENY: &str = "\
action: DENY
rules:
- from:
  - source:
      principals: [cluster.local/ns/shop/sa/denied]
";

/// `app` and its well-behaved `client`, which our agent serves, and `peer`, which misbehaves.
struct Scene {
    _echo: Echo,
    mesh: Mesh,
    place: Place,
    door: SocketAddr,
    target: SocketAddr,
}

impl Scene {
    fn new() -> Self {
        let policies = [authorization_policy("shop", "not-them", DENY)];
        let mesh = Mesh::start(&[(1, "app"), (1, "client"), (2, "peer")], &policies).unwrap();
        let app = mesh.topology.pod("app");
        let echo = Echo::start(&app.place(), SocketAddr::new(ANY, PORT)).unwrap();
        let (door, target) = (SocketAddr::new(app.ipv4(), HBONE), SocketAddr::new(app.ipv4(), PORT));
        let place = mesh.topology.pod("peer").place();
        let scene = Self { _echo: echo, mesh, place, door, target };
        scene.others_are_well();
        scene
    }

    /// A peer with a good certificate.
    fn good(&self) -> Arc<ClientConfig> {
        tls(Some(&self.mesh.authority.issue(PEER).unwrap())).unwrap()
    }

    fn status(&self, tls: &Arc<ClientConfig>, request: http::Request<()>) -> Result<u16> {
        status(&self.place, self.door, tls, request)
    }

    fn raw(&self) -> Raw {
        Raw::connect(&self.place, self.door, &self.good()).unwrap()
    }

    fn others_are_well(&self) {
        let client = self.mesh.topology.pod("client");
        let exchanged = client.run(|| echo::exchange(self.target, 10_000, LIMIT)).unwrap();
        exchanged.unwrap_or_else(|error| panic!("{error:#}\n{}", self.mesh.agent.log()));
    }

    /// The log has a line with this; lines are written a moment after the fact.
    fn says(&self, what: &str) {
        let found = eventually(Duration::from_secs(5), what, || self.mesh.agent.log().contains(what).then_some(()));
        found.unwrap_or_else(|error| panic!("{error:#}\n{}", self.mesh.agent.log()));
    }
}

#[test]
fn a_request_that_opens_no_tunnel_is_answered_with_its_status() {
    let scene = Scene::new();
    let (good, app) = (scene.good(), scene.target.ip());
    let ask = |request| scene.status(&good, request).unwrap();
    assert_eq!(ask(connect(&scene.target.to_string())), 200);

    let get = http::Request::get(format!("http://{}/", scene.target)).body(()).unwrap();
    assert_eq!(ask(get), 400);
    scene.says("the method is GET, not CONNECT");
    let elsewhere = scene.mesh.topology.pod("client").ipv4();
    assert_eq!(ask(connect(&format!("{elsewhere}:{PORT}"))), 400);
    scene.says("which was dialled");
    assert_eq!(ask(connect(&format!("{app}:{HBONE}"))), 503);
    scene.says("is the proxy's own port");
    assert_eq!(ask(connect("nowhere.example.com:80")), 503);
    scene.says("nowhere.example.com is not an address of this pod");
    assert_eq!(ask(connect(&format!("{app}:8081"))), 503);
    scene.says("the application could not be reached: Connection refused");

    let denied = tls(Some(&scene.mesh.authority.issue(DENIED).unwrap())).unwrap();
    assert_eq!(scene.status(&denied, connect(&scene.target.to_string())).unwrap(), 401);
    scene.says("shop/not-them");

    // On one connection, which survives them all.
    let mut raw = scene.raw();
    let malformed: [&[(&str, &str)]; 4] = [
        &[(":method", "CONNECT")],
        &[(":method", "CONNECT"), (":authority", "")],
        &[(":method", "CONNECT"), (":authority", "10.0.0.1")],
        &[(":method", "CONNECT"), (":authority", "10.0.0.1:99999")],
    ];
    for (i, fields) in malformed.iter().enumerate() {
        let stream = 2 * i as u32 + 1;
        raw.send(&frame(HEADERS, END_HEADERS, stream, &block(fields))).unwrap();
        let answer = raw.wait_for(|frame| frame.stream == stream).unwrap();
        // `:status: 400` of the static table (RFC 7541 appendix A), or a stream error where HTTP/2 itself is broken.
        assert!(
            answer.payload.first() == Some(&0x8c) || answer.code().ok() == Some(PROTOCOL_ERROR),
            "{fields:?}: {answer:?}"
        );
    }
    raw.send(&connect_frame(99, &scene.target.to_string())).unwrap();
    let answer = raw.wait_for(|frame| frame.stream == 99).unwrap();
    assert_eq!((answer.kind, answer.payload.first()), (HEADERS, Some(&0x88)));
    scene.others_are_well();
}

#[test]
fn a_stranger_gets_no_tunnel() {
    let scene = Scene::new();
    let (authority, target) = (&scene.mesh.authority, scene.target.to_string());
    let strangers: [(Result<Leaf>, &str); 5] = [
        (authority.issue("spiffe://elsewhere.org/ns/shop/sa/peer"), "elsewhere.org"),
        (authority.issue("https://cluster.local/peer"), "no URI name of the form spiffe://"),
        (authority.issue_expired(PEER), "has expired"),
        (Leaf::self_signed(PEER), "leads to no root of this mesh"),
        (Authority::unknown().and_then(|unknown| unknown.issue(PEER)), "leads to no root of this mesh"),
    ];
    for (leaf, why) in strangers {
        let before = scene.mesh.agent.log().len();
        let refused = scene.status(&tls(Some(&leaf.unwrap())).unwrap(), connect(&target));
        assert!(refused.is_err(), "{why}: {refused:?}");
        let said = eventually(LIMIT, why, || {
            let log = scene.mesh.agent.log();
            let line = log[before..].lines().find(|line| line.contains("tunnel refused"))?.to_owned();
            Some(line)
        });
        let line = said.unwrap_or_else(|error| panic!("{error:#}\n{}", scene.mesh.agent.log()));
        assert!(line.contains(why) && line.contains("warn"), "{why:?} is not in {line:?}");
    }
    assert!(scene.status(&tls(None).unwrap(), connect(&target)).is_err());
    scene.says("the peer presented no certificate");

    let mut garbage = plain(&scene.place, scene.door).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = garbage.read_to_end(&mut answer);
    assert!(answer.len() < 10, "an alert at the most: {answer:?}");
    scene.says("the peer does not speak TLS");
    // Counted too, for when there are too many for the log.
    let counted = scene.mesh.agent.metric("culvert_peer_events_total", &[("event", "tunnel refused")]).unwrap();
    assert!(counted >= 7.0, "{counted}");
    scene.others_are_well();
}

#[test]
fn a_peer_that_floods_loses_its_tunnel() {
    let scene = Scene::new();
    let target = scene.target.to_string();
    let flood = |name: &str, mut bytes: Box<dyn FnMut(u32) -> Vec<u8>>| {
        let mut raw = scene.raw();
        for i in 0..5000 {
            if raw.send(&bytes(i)).is_err() {
                break;
            }
        }
        // Whoever still writes when the connection is closed may find a reset in place of the GOAWAY.
        match raw.goaway() {
            Ok(code) => assert_eq!(code, ENHANCE_YOUR_CALM, "{name}"),
            Err(error) => {
                assert!(error.to_string().contains("reset") || error.to_string().contains("pipe"), "{name}: {error}")
            }
        }
        scene.others_are_well();
    };
    let request = block(&[(":method", "CONNECT"), (":authority", &target)]);
    flood("endless headers", {
        let request = request.clone();
        Box::new(move |i| match i {
            0 => frame(HEADERS, 0, 1, &request),
            _ => frame(CONTINUATION, 0, 1, &block(&[("a", &"b".repeat(1000))])),
        })
    });
    flood(
        "empty CONTINUATION",
        Box::new(move |i| match i {
            0 => frame(HEADERS, 0, 1, &request),
            _ => frame(CONTINUATION, 0, 1, &[]),
        }),
    );
    flood("oversized headers", Box::new(|i| frame(HEADERS, END_HEADERS, 2 * i + 1, &vec![0x82; 500_000])));
    let closed = format!("{}:8081", scene.target.ip());
    flood(
        "rapid reset",
        Box::new(move |i| {
            let stream = 2 * i + 1;
            [connect_frame(stream, &closed), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat()
        }),
    );
    flood("a thousand streams", Box::new(move |i| connect_frame(2 * i + 1, &target)));
    flood("PING", Box::new(|_| frame(6, 0, 0, &[0; 8])));
    flood("SETTINGS", Box::new(|_| frame(SETTINGS, 0, 0, &[])));
    scene.says("a header block is larger than our SETTINGS allow");
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_others_live_on() {
    let scene = Scene::new();
    let mut raw = scene.raw();
    let target = scene.target.to_string();
    for i in 0..250 {
        raw.send(&connect_frame(2 * i + 1, &target)).unwrap();
    }
    let (mut opened, mut refused) = (0, 0);
    while opened + refused < 250 {
        let frame = raw.next().unwrap();
        match frame.kind {
            HEADERS if frame.payload.first() == Some(&0x88) => opened += 1,
            RST_STREAM => {
                assert_eq!(frame.code().unwrap(), REFUSED_STREAM);
                refused += 1;
            }
            HEADERS => panic!("{frame:?}"),
            _ => {}
        }
    }
    assert_eq!((opened, refused), (200, 50));
    raw.send(&frame(DATA, END_STREAM, 1, b"still here")).unwrap();
    let mut said = Vec::new();
    while !said.starts_with(b"still here") {
        said.extend(raw.wait_for(|frame| frame.kind == DATA && frame.stream == 1).unwrap().payload);
    }
    scene.others_are_well();
}

#[test]
fn a_handshake_that_trickles_ends_after_ten_seconds() {
    let scene = Scene::new();
    let mut socket = plain(&scene.place, scene.door).unwrap();
    // The start of a long ClientHello.
    socket.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let started = Instant::now();
    while started.elapsed() < LIMIT {
        let mut byte = [0];
        match socket.read(&mut byte) {
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            _ => break,
        }
        if socket.write_all(&[0]).is_err() {
            break;
        }
    }
    let took = started.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(13)).contains(&took), "{took:?}");
    scene.says("the TLS handshake took more than 10 s");
    scene.others_are_well();
}

#[test]
fn handshakes_that_are_never_finished_take_a_bounded_number_of_places() {
    let scene = Scene::new();
    let sockets: Vec<_> = (0..100).filter_map(|_| plain(&scene.place, scene.door).ok()).collect();
    let is_open = |socket: &std::net::TcpStream| {
        let mut byte = [0];
        socket.set_nonblocking(true).unwrap();
        matches!((&mut &*socket).read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let open = || sockets.iter().filter(|socket| is_open(socket)).count();
    let settled = eventually(LIMIT, "the limit", || (open() <= 32).then_some(()));
    settled.unwrap_or_else(|error| panic!("{error:#}: {} are open", open()));
    assert_eq!(open(), 32);
    scene.says("32 handshakes of this address are open already");
    scene.others_are_well();
    drop(sockets);
    let again = eventually(LIMIT, "a tunnel from the same address", || {
        scene.status(&scene.good(), connect(&scene.target.to_string())).ok()
    });
    assert_eq!(again.unwrap(), 200);
}

#[test]
fn a_peer_that_never_reads_costs_its_windows_and_no_more() {
    let scene = Scene::new();
    let target = scene.target.to_string();
    let before = resident(scene.mesh.agent.pid());
    let mut peers: Vec<_> = (0..3).map(|_| scene.raw()).collect();
    for raw in &mut peers {
        raw.send(&connect_frame(1, &target)).unwrap();
        raw.wait_for(|frame| frame.stream == 1).unwrap();
        raw.socket().set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        // As much as the stream's window allows; the echo of it is not read.
        let piece = frame(DATA, 0, 1, &[7; 16_000]);
        for _ in 0..(4 << 20) / 16_000 {
            if raw.send(&piece).is_err() {
                break;
            }
        }
    }
    scene.others_are_well();
    thread::sleep(Duration::from_millis(300));
    let grown = resident(scene.mesh.agent.pid()).saturating_sub(before);
    assert!(grown < 24 << 20, "the agent grew by {} MB", grown >> 20);
    drop(peers);
    scene.others_are_well();
}

/// Bytes of memory of a process.
fn resident(pid: u32) -> usize {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
