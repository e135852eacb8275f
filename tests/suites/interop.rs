//! The tunnel with peers of another make: Envoy at either end, and OpenSSL knocking at the door.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use culvert_tests::{Place, Pod};
use support::authority::LeafFiles;
use support::echo::{self, Echo};
use support::envoy::Envoy;
use support::{LIMIT, Mesh};

const APP: &str = "spiffe://cluster.local/ns/shop/sa/app";
const PEER: &str = "spiffe://cluster.local/ns/shop/sa/peer";
const HBONE: u16 = 15008;
const PORT: u16 = 8080;
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const BULK: usize = 20 << 20;
const STREAMS: usize = 12;

/// `app`, which our agent serves, and `peer`, which it does not.
fn mesh() -> (Mesh, LeafFiles) {
    let mesh = Mesh::start(&[(1, "app"), (2, "peer")], &[]).unwrap();
    let leaf = mesh.authority.issue(PEER).unwrap();
    let files = leaf.write(mesh.topology.scope().directory(), "peer", mesh.authority.root()).unwrap();
    (mesh, files)
}

/// Small, large and many, each with its half-close.
fn traffic(from: &Place, to: SocketAddr) -> anyhow::Result<()> {
    from.run(|| echo::exchange(to, 10, LIMIT))??;
    from.run(|| echo::exchange(to, 0, LIMIT))??;
    from.run(|| echo::exchange(to, BULK, LIMIT))??;
    let many: Vec<_> = (0..STREAMS).map(|i| from.spawn(move || echo::exchange(to, 100_000 * i, LIMIT))).collect();
    many.into_iter().try_for_each(|one| one.join().expect("no panic")?)
}

#[test]
fn envoy_opens_tunnels_to_our_pods() {
    let (mesh, leaf) = mesh();
    let (app, peer) = (mesh.topology.pod("app"), mesh.topology.pod("peer"));
    let echo = Echo::start(&app.place(), SocketAddr::new(ANY, PORT)).unwrap();
    let listen = SocketAddr::new(LOOPBACK, 10000);
    let (door, target) = (SocketAddr::new(app.ipv4(), HBONE), SocketAddr::new(app.ipv4(), PORT));
    let envoy = Envoy::client(mesh.topology.scope(), peer, listen, door, target, APP, &leaf).unwrap();
    if let Err(error) = traffic(&peer.place(), listen) {
        panic!("{error:#}\n{}\n{}", envoy.log(), mesh.agent.log());
    }
    // One to see whether Envoy listens.
    assert!((STREAMS + 3..=STREAMS + 4).contains(&echo.accepted()), "{}", echo.accepted());
    let labels = [
        ("reporter", "destination"),
        ("connection_security_policy", "mutual_tls"),
        ("source_principal", PEER),
        ("response_flags", "-"),
    ];
    let opened = mesh.agent.metric("istio_tcp_connections_opened_total", &labels).unwrap();
    assert_eq!(opened, echo.accepted() as f64);
}

#[test]
fn our_pods_open_tunnels_to_envoy() {
    let (mesh, leaf) = mesh();
    let (app, peer) = (mesh.topology.pod("app"), mesh.topology.pod("peer"));
    let echo = Echo::start(&peer.place(), SocketAddr::new(LOOPBACK, PORT)).unwrap();
    let door = SocketAddr::new(peer.ipv4(), HBONE);
    let envoy = Envoy::server(mesh.topology.scope(), peer, door, echo.address(), APP, &leaf).unwrap();
    // Nothing listens on this address and port but in the tunnel.
    if let Err(error) = traffic(&app.place(), SocketAddr::new(peer.ipv4(), PORT)) {
        panic!("{error:#}\n{}\n{}", envoy.log(), mesh.agent.log());
    }
    assert_eq!(echo.accepted(), STREAMS + 3);
}

#[test]
fn openssl_gets_a_handshake_only_as_the_mesh_speaks_it() {
    let (mesh, leaf) = mesh();
    let (app, peer) = (mesh.topology.pod("app"), mesh.topology.pod("peer"));
    let door = SocketAddr::new(app.ipv4(), HBONE);
    let (certificate, key) = (leaf.certificate.to_str().unwrap(), leaf.key.to_str().unwrap());
    let root = ["-CAfile", leaf.root.to_str().unwrap(), "-verify_return_error"];
    let own = ["-cert", certificate, "-key", key];

    let said = s_client(peer, door, &[&root[..], &own, &["-alpn", "h2"]].concat());
    assert!(said.contains("ALPN protocol: h2") && said.contains("TLSv1.3"), "{said}");
    assert!(said.contains("AES_256_GCM"), "{said}");
    let said = s_client(peer, door, &[&root[..], &own].concat());
    assert!(said.contains("No ALPN negotiated") && said.contains("Verify return code: 0"), "{said}");

    let said = s_client(peer, door, &[&root[..], &own, &["-tls1_2"]].concat());
    assert!(said.contains("alert protocol version"), "{said}");
    let said = s_client(peer, door, &[&root[..], &own, &["-alpn", "http/1.1"]].concat());
    assert!(said.contains("no application protocol"), "{said}");
    let said = s_client(peer, door, &[&root[..], &own, &["-ciphersuites", "TLS_CHACHA20_POLY1305_SHA256"]].concat());
    assert!(said.contains("handshake failure"), "{said}");
    let said = s_client(peer, door, &[&root[..], &["-alpn", "h2"]].concat());
    assert!(said.contains("certificate required"), "{said}");

    let log = mesh.agent.log();
    for line in ["TLS 1.3 with AES-GCM", "another protocol than h2", "presented no certificate"] {
        assert!(log.contains(line), "no line with {line:?}:\n{log}");
    }
}

/// What `openssl s_client` prints within a second, or until it is refused: in TLS 1.3 the server judges the client's
/// certificate after the client is done.
fn s_client(from: &Pod, to: SocketAddr, arguments: &[&str]) -> String {
    let to = to.to_string();
    let arguments = [&["1", "openssl", "s_client", "-connect", &to, "-ign_eof"], arguments].concat();
    let finished = from.output(LIMIT, "timeout", &arguments).unwrap();
    finished.stdout + &finished.stderr
}
