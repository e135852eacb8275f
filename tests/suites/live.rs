//! What changes while connections are open: policies, certificates, pods, files, and the agent itself.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a suite stops where it meets the unexpected")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use culvert_tests::objects::{self, authorization_policy};
use culvert_tests::{AgentConfig, Pod, eventually};
use support::authority::Authority;
use support::echo::{self, Echo};
use support::peer::{DATA, END_STREAM, GOAWAY, HEADERS, Raw, connect, connect_frame, frame, plain, status, tls};
use support::{LIMIT, Mesh};

const HBONE: u16 = 15008;
const PORT: u16 = 8080;
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const PEER: &str = "spiffe://cluster.local/ns/shop/sa/peer";
/// How soon a change of the files is to be felt.
const SECOND: Duration = Duration::from_secs(1);
/// A file that is none.
const BROKEN: &str = "apiVersion: security.istio.io/v1\nkind: [\n";

/// `app`, its clients `client` and `other`, all served by our agent, and `peer`, which is not.
struct Scene {
    echo: Echo,
    mesh: Mesh,
    target: SocketAddr,
}

impl Scene {
    fn new() -> Self {
        Self::with(&[])
    }

    /// `policies` are documents of the file that the tests write policies to.
    fn with(policies: &[String]) -> Self {
        Self::of(policies, |_| {})
    }

    /// The same with other flags of the agent.
    fn of(policies: &[String], flags: impl FnOnce(&mut AgentConfig)) -> Self {
        let pods = [(1, "app"), (1, "client"), (1, "other"), (2, "peer")];
        let mesh = Mesh::start_with(&pods, policies, flags).unwrap();
        let app = mesh.topology.pod("app");
        let echo = Echo::start(&app.place(), SocketAddr::new(ANY, PORT)).unwrap();
        let target = SocketAddr::new(app.ipv4(), PORT);
        Self { echo, mesh, target }
    }

    fn pod(&self, name: &str) -> &Pod {
        self.mesh.topology.pod(name)
    }

    fn open(&self, from: &str) -> TcpStream {
        self.pod(from).run(|| echo::open(self.target, LIMIT)).unwrap().unwrap()
    }

    fn can_connect(&self, from: &str) -> bool {
        self.pod(from).run(|| echo::exchange(self.target, 100, LIMIT)).unwrap().is_ok()
    }

    fn deny(who: &str) -> String {
        let spec =
            format!("action: DENY\nrules:\n- from:\n  - source:\n      principals: [cluster.local/ns/shop/sa/{who}]\n");
        authorization_policy("shop", "deny-one", &spec)
    }

    /// Sets the mesh options.
    fn options(&self, options: &str) {
        let map = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: culvert, namespace: istio-system}}\n\
             data: {{mesh: '{options}'}}\n"
        );
        self.mesh.directory.write("options", &[map]).unwrap();
    }

    /// A peer of another make with a tunnel to the app and one stream open in it.
    fn tunnel(&self, leaf: &support::authority::Leaf) -> Raw {
        let door = SocketAddr::new(self.target.ip(), HBONE);
        let mut raw = Raw::connect(&self.pod("peer").place(), door, &tls(Some(leaf)).unwrap()).unwrap();
        raw.send(&connect_frame(1, &self.target.to_string())).unwrap();
        let answer = raw.wait_for(|frame| frame.kind == HEADERS).unwrap();
        assert_eq!(answer.payload.first(), Some(&0x88), "no 200: {answer:?}");
        raw
    }

    fn says(&self, what: &str) {
        let found = eventually(Duration::from_secs(5), what, || self.mesh.agent.log().contains(what).then_some(()));
        found.unwrap_or_else(|error| panic!("{error:#}\n{}", self.mesh.agent.log()));
    }
}

/// How long it takes until a connection is over; fails if it is not within the limit.
fn time_to_end(stream: &mut TcpStream, limit: Duration) -> Duration {
    let started = Instant::now();
    stream.set_read_timeout(Some(limit)).unwrap();
    match stream.read(&mut [0; 16]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("not closed: {other:?}"),
    }
    started.elapsed()
}

/// Asks the agent to stop.
fn terminate(scene: &Scene) {
    let pid = i32::try_from(scene.mesh.agent.pid()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
}

fn resident(pid: u32) -> usize {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_policy_closes_what_it_no_longer_allows_and_nothing_else() {
    let scene = Scene::new();
    let (mut client, mut other) = (scene.open("client"), scene.open("other"));
    scene.mesh.directory.write("policies", &[Scene::deny("client")]).unwrap();
    let took = time_to_end(&mut client, LIMIT);
    assert!(took < SECOND, "{took:?}");
    assert!(!scene.can_connect("client"));
    echo::ping(&mut other).unwrap();
    scene.says("connection closed due to policy change");
    scene.mesh.directory.write("policies", &[]).unwrap();
    eventually(SECOND, "the client to be allowed again", || scene.can_connect("client").then_some(())).unwrap();
    echo::ping(&mut other).unwrap();
}

#[test]
fn a_policy_does_not_wait_until_the_programs_have_been_told_of_destinations() {
    let scene = Scene::new();
    scene.options("culvert: {outboundBypass: {ports: [1]}}");
    let told = || scene.mesh.agent.admin("/redirection").unwrap().body.contains("\"complete\": true").then_some(());
    eventually(LIMIT, "the programs to be told of destinations", told).unwrap();
    let (mut client, mut other) = (scene.open("client"), scene.open("other"));
    // As if another agent took charge, for as long as it likes.
    let pins = fs::File::open(scene.mesh.topology.scope().pin_directory("n1").unwrap()).unwrap();
    pins.lock().unwrap();
    scene.mesh.directory.write("policies", &[Scene::deny("client")]).unwrap();
    let took = time_to_end(&mut client, LIMIT);
    assert!(took < SECOND, "{took:?}");
    echo::ping(&mut other).unwrap();
    drop(pins);
}

#[test]
fn a_pod_that_comes_to_be_selected_loses_what_the_policy_denies() {
    let guarded = Scene::deny("client").replace("spec:\n", "spec:\n  selector: {matchLabels: {guarded: 'yes'}}\n");
    let scene = Scene::with(&[guarded]);
    let (mut client, mut other) = (scene.open("client"), scene.open("other"));
    echo::ping(&mut client).unwrap();
    let pods = scene.mesh.topology.pods().iter();
    let labelled: Vec<_> =
        pods.map(|pod| objects::pod(pod, pod.name()).replace("{app: app}", "{app: app, guarded: 'yes'}")).collect();
    scene.mesh.directory.write("pods", &labelled).unwrap();
    let took = time_to_end(&mut client, LIMIT);
    assert!(took < SECOND, "{took:?}");
    assert!(!scene.can_connect("client"));
    echo::ping(&mut other).unwrap();
}

#[test]
fn strict_closes_plaintext_and_leaves_the_mesh_alone() {
    let scene = Scene::new();
    scene.mesh.directory.write("peer-authentication", &[objects::peer_authentication("shop", "PERMISSIVE")]).unwrap();
    eventually(SECOND, "plaintext to be allowed", || scene.can_connect("peer").then_some(())).unwrap();
    let (mut plaintext, mut meshed) = (scene.open("peer"), scene.open("client"));
    scene.mesh.directory.write("peer-authentication", &[objects::peer_authentication("shop", "STRICT")]).unwrap();
    let took = time_to_end(&mut plaintext, LIMIT);
    assert!(took < SECOND, "{took:?}");
    assert!(!scene.can_connect("peer"));
    echo::ping(&mut meshed).unwrap();
}

#[test]
fn a_plaintext_peer_that_vanishes_is_noticed_though_nothing_is_sent_to_it() {
    let scene = Scene::new();
    scene.mesh.directory.write("peer-authentication", &[objects::peer_authentication("shop", "PERMISSIVE")]).unwrap();
    eventually(SECOND, "plaintext to be allowed", || scene.can_connect("peer").then_some(())).unwrap();
    // Into the mesh, and out of it.
    let outside = scene.mesh.topology.node(2);
    let _echo = Echo::start(&outside.place(), SocketAddr::new(ANY, PORT)).unwrap();
    let away = SocketAddr::new(outside.addresses()[0], PORT);
    let _inbound = scene.open("peer");
    let _outbound = scene.pod("client").run(|| echo::open(away, LIMIT)).unwrap().unwrap();
    let kept = |pod: &str, to: IpAddr| {
        let filter = ["-Htno", "state", "established", "dst", &to.to_string()];
        let sockets = scene.pod(pod).output(LIMIT, "ss", &filter).unwrap();
        sockets.success().unwrap().lines().any(|socket| socket.contains("timer:(keepalive"))
    };
    assert!(kept("app", scene.pod("peer").ipv4()), "the client's connection");
    assert!(kept("client", away.ip()), "the agent's connection to where there is no mesh");
}

#[test]
fn a_revoked_certificate_loses_its_connections_and_gets_no_others() {
    let scene = Scene::new();
    let (bad, good) = (scene.mesh.authority.issue(PEER).unwrap(), scene.mesh.authority.issue(PEER).unwrap());
    let (mut revoked, mut kept, mut own) = (scene.tunnel(&bad), scene.tunnel(&good), scene.open("client"));
    scene.mesh.authority.revoke(&bad).unwrap();
    assert!(revoked.ends());
    scene.says("connection closed: the peer's certificate is revoked");
    let door = SocketAddr::new(scene.target.ip(), HBONE);
    let again =
        |leaf| status(&scene.pod("peer").place(), door, &tls(Some(leaf)).unwrap(), connect(&scene.target.to_string()));
    assert!(again(&bad).is_err());
    scene.says("the peer's certificate is revoked");
    assert_eq!(again(&good).unwrap(), 200);
    kept.send(&frame(DATA, END_STREAM, 1, b"kept")).unwrap();
    assert!(kept.wait_for(|frame| frame.kind == DATA).unwrap().payload.starts_with(b"kept"));
    echo::ping(&mut own).unwrap();
}

#[test]
fn peers_under_a_root_or_of_a_trust_domain_that_goes_lose_their_connections_and_others_do_not() {
    let scene = Scene::new();
    let (own, other) = (&scene.mesh.authority, Authority::unknown().unwrap());
    let trust = |roots: &[&str]| {
        let part = scene.mesh.ca.join(".root-cert.pem.part");
        fs::write(&part, roots.concat()).unwrap();
        fs::rename(part, scene.mesh.ca.join("root-cert.pem")).unwrap();
    };
    let alias = |names: &str| scene.options(&format!("trustDomainAliases: [{names}]"));
    trust(&[own.root(), other.root()]);
    alias("old-name");
    let (of_own, of_other) = (own.issue(PEER).unwrap(), other.issue(PEER).unwrap());
    let of_alias = own.issue("spiffe://old-name/ns/shop/sa/peer").unwrap();
    let door = SocketAddr::new(scene.target.ip(), HBONE);
    let lets_in = |leaf| {
        let tls = tls(Some(leaf)).unwrap();
        status(&scene.pod("peer").place(), door, &tls, connect(&scene.target.to_string())).is_ok()
    };
    eventually(LIMIT, "all to be let in", || (lets_in(&of_other) && lets_in(&of_alias)).then_some(())).unwrap();
    let (mut kept, mut unrooted, mut renamed) =
        (scene.tunnel(&of_own), scene.tunnel(&of_other), scene.tunnel(&of_alias));
    let mut meshed = scene.open("client");

    alias("");
    assert!(renamed.ends());
    scene.says("connection closed: the peer's trust domain old-name is not the mesh's any more");
    assert!(!lets_in(&of_alias) && lets_in(&of_other));
    trust(&[own.root()]);
    assert!(unrooted.ends());
    scene.says("connection closed: the peer's certificate leads to no root of this mesh");
    assert!(!lets_in(&of_other) && lets_in(&of_own));
    kept.send(&frame(DATA, END_STREAM, 1, b"kept")).unwrap();
    assert!(kept.wait_for(|frame| frame.kind == DATA).unwrap().payload.starts_with(b"kept"));
    echo::ping(&mut meshed).unwrap();
}

#[test]
fn connections_of_a_proxy_that_was_replaced_stay_subject_to_policies_and_revocation() {
    let scene = Scene::new();
    let door = SocketAddr::new(scene.target.ip(), HBONE);
    let (bad, good) = (scene.mesh.authority.issue(PEER).unwrap(), scene.mesh.authority.issue(PEER).unwrap());
    let (mut revoked, mut client, mut other) = (scene.tunnel(&bad), scene.open("client"), scene.open("other"));
    // Its handshake is still to come when the proxy is replaced.
    let slow = plain(&scene.pod("peer").place(), door).unwrap();
    let enrolled = || scene.mesh.agent.log().matches("enrolled").count();
    let before = enrolled();
    let pods = scene.mesh.topology.pods().iter().filter(|pod| pod.node() == "n1");
    let changed = pods.map(|pod| {
        let yaml = objects::pod(pod, pod.name());
        yaml.replace("annotations:\n", "annotations:\n    ambient.istio.io/dns-capture: \"false\"\n")
    });
    scene.mesh.directory.write("pods", &changed.collect::<Vec<_>>()).unwrap();
    eventually(LIMIT, "the pods to be taken in anew", || (enrolled() >= before + 3).then_some(())).unwrap();

    // Told GOAWAY, and cut off, perhaps while it still writes.
    if let Ok(mut late) = Raw::over(slow, door, &tls(Some(&good)).unwrap()) {
        assert!(late.ends());
    }
    assert!(scene.can_connect("client") && scene.can_connect("other"));
    echo::ping(&mut client).unwrap();
    let report = scene.mesh.agent.admin("/connections").unwrap().body;
    assert!(report.contains(&client.local_addr().unwrap().to_string()), "{report}");

    scene.mesh.authority.revoke(&bad).unwrap();
    assert!(revoked.ends());
    scene.says("connection closed: the peer's certificate is revoked");
    scene.mesh.directory.write("policies", &[Scene::deny("client")]).unwrap();
    let took = time_to_end(&mut client, LIMIT);
    assert!(took < SECOND, "{took:?}");
    echo::ping(&mut other).unwrap();
}

#[test]
fn an_upgrade_to_another_layout_of_maps_leaves_no_pod_in_clear_however_long_it_takes() {
    let mut scene = Scene::new();
    scene.mesh.directory.write("peer-authentication", &[objects::peer_authentication("shop", "PERMISSIVE")]).unwrap();
    eventually(SECOND, "plaintext to be allowed", || scene.can_connect("peer").then_some(())).unwrap();
    let pods = |mesh: &Mesh, misled: &str| {
        let pods = mesh.topology.pods().iter().filter(|pod| pod.node() == "n1").map(|pod| {
            let yaml = objects::pod(pod, pod.name());
            match pod.name() == misled {
                true => yaml.replace(&pod.netns().path().display().to_string(), "/run/netns/nowhere"),
                false => yaml,
            }
        });
        mesh.directory.write("pods", &pods.collect::<Vec<_>>())
    };
    let pins = scene.mesh.topology.scope().pin_directory("n1").unwrap();
    let layouts = || fs::read_dir(&pins).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let restarted = scene.mesh.restart_agent_after(|mesh| {
        let [own] = &layouts()[..] else { panic!("{:?}", layouts()) };
        // As a version of another layout would have left it.
        fs::rename(own, pins.join("v0"))?;
        pods(mesh, "other")
    });
    restarted.unwrap_or_else(|error| panic!("{error:#}\n{}", scene.mesh.agent.log()));
    scene.says("cannot be enrolled: ");
    // What is taken in is served, tunnels of the agent's own included, though the old programs are still attached.
    eventually(LIMIT, "the client to be served", || scene.can_connect("client").then_some(()))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", scene.mesh.agent.log()));
    // What is not is refused as by a dead agent; in clear it would be let in.
    assert!(!scene.can_connect("other"));
    assert_eq!(layouts().len(), 2);

    pods(&scene.mesh, "").unwrap();
    eventually(LIMIT, "the last pod to be served", || scene.can_connect("other").then_some(()))
        .unwrap_or_else(|error| panic!("{error:#}\n{}", scene.mesh.agent.log()));
    eventually(LIMIT, "the old programs to be detached", || (layouts().len() == 1).then_some(())).unwrap();
    assert!(scene.can_connect("client") && scene.can_connect("other"));
}

#[test]
fn a_pod_that_is_deleted_says_goaway_and_finishes_what_it_carries() {
    let scene = Scene::new();
    let mut raw = scene.tunnel(&scene.mesh.authority.issue(PEER).unwrap());
    let left: Vec<_> = ["client", "other"].map(|name| objects::pod(scene.pod(name), name)).to_vec();
    scene.mesh.directory.write("pods", &left).unwrap();
    assert_eq!(raw.wait_for(|frame| frame.kind == GOAWAY).unwrap().payload[4..8], [0; 4]);
    raw.send(&frame(DATA, END_STREAM, 1, b"last words")).unwrap();
    assert!(raw.wait_for(|frame| frame.kind == DATA).unwrap().payload.starts_with(b"last words"));
    assert!(raw.ends());
}

#[test]
fn a_stopped_agent_says_goaway_and_ends_once_its_connections_have() {
    let mut scene = Scene::new();
    let mut raw = scene.tunnel(&scene.mesh.authority.issue(PEER).unwrap());
    terminate(&scene);
    raw.wait_for(|frame| frame.kind == GOAWAY).unwrap();
    raw.send(&frame(DATA, END_STREAM, 1, b"last words")).unwrap();
    assert!(raw.wait_for(|frame| frame.kind == DATA).unwrap().payload.starts_with(b"last words"));
    assert!(raw.ends());
    assert!(scene.mesh.agent.terminate(Duration::from_secs(5)).unwrap().success());
    assert!(!scene.can_connect("client"), "a pod without its agent is refused");
}

#[test]
fn a_stopped_agent_says_its_last_word_to_a_peer_that_asks_for_nothing() {
    let mut scene = Scene::new();
    let mut raw = scene.tunnel(&scene.mesh.authority.issue(PEER).unwrap());
    raw.send(&frame(DATA, END_STREAM, 1, b"")).unwrap();
    raw.wait_for(|frame| frame.kind == DATA && frame.flags == END_STREAM).unwrap();
    terminate(&scene);
    let mut last_stream = || raw.wait_for(|frame| frame.kind == GOAWAY).unwrap().payload[..4].to_vec();
    assert_eq!([last_stream(), last_stream()], [[0x7f, 0xff, 0xff, 0xff], [0, 0, 0, 1]]);
    assert!(raw.ends());
    assert!(scene.mesh.agent.terminate(Duration::from_secs(5)).unwrap().success());
}

#[test]
fn what_a_stopped_agent_cannot_let_finish_is_reset() {
    let scene = Scene::of(&[], |config| config.arguments = vec!["--drain-seconds".into(), "1".into()]);
    let mut open = scene.open("client");
    terminate(&scene);
    open.set_read_timeout(Some(LIMIT)).unwrap();
    assert_eq!(open.read(&mut [0; 16]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn while_a_file_was_never_in_order_nothing_is_allowed_and_it_is_named_with_its_line() {
    let scene = Scene::with(&[BROKEN.to_owned()]);
    scene.says("policies.yaml:2:7: unclosed bracket '['");
    assert!(!scene.can_connect("client") && !scene.can_connect("other"));
    scene.says("connections to the node's pods are refused: policies may be missing");
    scene.mesh.directory.write("policies", &[Scene::deny("client")]).unwrap();
    eventually(SECOND, "the file to be read again", || scene.can_connect("other").then_some(())).unwrap();
    assert!(!scene.can_connect("client"));
}

#[test]
fn a_file_that_breaks_while_no_agent_runs_keeps_its_policies_in_force() {
    let mut scene = Scene::with(&[Scene::deny("client")]);
    assert!(!scene.can_connect("client") && scene.can_connect("other"));
    scene.mesh.directory.write("policies", &[BROKEN.to_owned()]).unwrap();
    scene.mesh.restart_agent().unwrap();
    assert!(!scene.can_connect("client") && scene.can_connect("other"));
    scene.says("policies.yaml: broken: the 1 objects that it held stay as they were");
    scene.mesh.directory.write("policies", &[]).unwrap();
    eventually(SECOND, "the file to be read again", || scene.can_connect("client").then_some(())).unwrap();
}

#[test]
fn a_broken_file_keeps_the_last_good_policy_in_force_and_is_named_with_its_line() {
    let scene = Scene::new();
    let file = scene.mesh.directory.path().join("policies.yaml");
    scene.mesh.directory.write("policies", &[Scene::deny("client")]).unwrap();
    eventually(SECOND, "the policy", || (!scene.can_connect("client")).then_some(())).unwrap();
    let good = fs::read_to_string(&file).unwrap();
    let broken: [(&str, Vec<u8>, &str); 7] = [
        ("tabs", good.replace("  action", "\taction").into(), "policies.yaml:7:"),
        (
            "a duplicate key",
            good.replace("  action: DENY", "  action: ALLOW\n  action: ALLOW").into(),
            "policies.yaml:8:",
        ),
        ("binary", (0..=255).cycle().take(10_000).collect(), "not UTF-8 text"),
        ("10 MB", format!("# {}\n", "x".repeat(99)).repeat(100_000).into(), "split the file"),
        // These two are taken, and told of.
        (
            "an unknown kind",
            format!("{good}---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\n").into(),
            "Deployment d: Culvert does not read Deployment of apps/v1",
        ),
        (
            "an unknown field",
            good.replace("  action", "  acton: DENY\n  action").into(),
            "unknown field spec.acton: it has no effect",
        ),
        ("half a file", good[..good.len() / 2].into(), "policies.yaml:"),
    ];
    for (what, bytes, line) in broken {
        let before = scene.mesh.agent.log().matches(line).count();
        fs::write(&file, bytes).unwrap();
        let said = eventually(Duration::from_secs(3), line, || {
            (scene.mesh.agent.log().matches(line).count() > before).then_some(())
        });
        said.unwrap_or_else(|error| panic!("{what}: {error:#}\n{}", scene.mesh.agent.log()));
        assert!(!scene.can_connect("client"), "{what}");
        assert!(scene.can_connect("other"), "{what}");
        fs::write(&file, &good).unwrap();
        thread::sleep(Duration::from_millis(300));
    }
    let (here, gone) = (scene.mesh.directory.path(), scene.mesh.directory.path().with_extension("gone"));
    fs::rename(here, &gone).unwrap();
    scene.says("the objects stay as they were");
    assert!(!scene.can_connect("client") && scene.can_connect("other"));
    fs::rename(&gone, here).unwrap();
    scene.says("the configuration directory is back");
    scene.mesh.directory.write("policies", &[]).unwrap();
    eventually(3 * SECOND, "the policy to be gone", || scene.can_connect("client").then_some(())).unwrap();
}

#[test]
fn a_reader_that_stalls_holds_up_nobody_and_costs_a_bounded_amount() {
    let scene = Scene::new();
    let stalled = SocketAddr::new(scene.target.ip(), 8081);
    let listener = scene.pod("app").run(|| TcpListener::bind(SocketAddr::new(ANY, 8081))).unwrap().unwrap();
    let before = resident(scene.mesh.agent.pid());
    let mut writers: Vec<_> =
        (0..3).map(|_| scene.pod("client").run(|| TcpStream::connect(stalled)).unwrap().unwrap()).collect();
    let _readers: Vec<_> = writers.iter().map(|_| listener.accept().unwrap()).collect();
    let piece = vec![7; 1 << 16];
    for writer in &mut writers {
        writer.set_write_timeout(Some(Duration::from_millis(400))).unwrap();
        let mut sent = 0_usize;
        while sent < 200 << 20 {
            match writer.write(&piece) {
                Ok(n) => sent += n,
                Err(_) => break,
            }
        }
        assert!(sent < 40 << 20, "{} MB went to a reader that does not read", sent >> 20);
        // Through the same tunnel.
        assert!(scene.can_connect("client"));
    }
    let grown = resident(scene.mesh.agent.pid()).saturating_sub(before);
    assert!(grown < 40 << 20, "the agent grew by {} MB", grown >> 20);
}

#[test]
fn a_reset_is_passed_on_as_a_reset_in_both_directions() {
    let scene = Scene::new();
    let to = SocketAddr::new(scene.target.ip(), 8082);
    let listener = scene.pod("app").run(|| TcpListener::bind(SocketAddr::new(ANY, 8082))).unwrap().unwrap();
    for server_resets in [true, false] {
        let mut client = scene.pod("client").run(|| TcpStream::connect(to)).unwrap().unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        let (resets, mut sees) = if server_resets { (server, client) } else { (client, server) };
        socket2::SockRef::from(&resets).set_linger(Some(Duration::ZERO)).unwrap();
        drop(resets);
        sees.set_read_timeout(Some(LIMIT)).unwrap();
        let error = sees.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn each_call_is_counted_and_logged_on_both_sides() {
    let scene = Scene::new();
    scene.mesh.directory.write("policies", &[Scene::deny("other")]).unwrap();
    eventually(SECOND, "the policy", || (!scene.can_connect("other")).then_some(())).unwrap();
    let unreachable = SocketAddr::new(scene.target.ip(), 8081);
    let of = |reporter: &'static str, who: &'static str, flags: &'static str| {
        let policy = ("connection_security_policy", "mutual_tls");
        [
            ("reporter", reporter),
            ("source_workload", who),
            ("destination_workload", "app"),
            ("response_flags", flags),
            policy,
        ]
    };
    let refused =
        || scene.mesh.agent.metric("istio_tcp_connections_closed_total", &of("destination", "other", "DENY")).unwrap();
    let denied = refused();
    assert!(scene.can_connect("client"));
    assert!(!scene.can_connect("other"));
    assert!(scene.pod("client").run(|| echo::exchange(unreachable, 1, LIMIT)).unwrap().is_err());
    scene.says("http status 503");
    scene.says("http status 401");

    let page = scene.mesh.agent.metrics().unwrap();
    let metric = |name: &str, labels: &[(&str, &str)]| scene.mesh.agent.metric(name, labels).unwrap();
    for reporter in ["source", "destination"] {
        let closed = |who, flags| metric("istio_tcp_connections_closed_total", &of(reporter, who, flags));
        eventually(LIMIT, "the counters", || (closed("client", "-") == 1.0).then_some(()))
            .unwrap_or_else(|error| panic!("{reporter}: {error:#}\n{page}"));
        assert_eq!(closed("client", "CONNECT"), 1.0, "{reporter}\n{page}");
        assert!(closed("other", "DENY") >= 1.0, "{reporter}\n{page}");
        let bytes = |name| metric(name, &of(reporter, "client", "-"));
        assert_eq!(bytes("istio_tcp_received_bytes_total"), 100.0, "{reporter}: what the client sent");
        assert!(bytes("istio_tcp_sent_bytes_total") > 100.0, "{reporter}: the echo and its farewell");
    }
    assert_eq!(refused(), denied + 1.0);

    let log = scene.mesh.agent.log();
    let line = |level: &str, parts: &[&str]| {
        let mut lines = log.lines().filter(|line| line.contains(&format!("\t{level}\taccess\t")));
        assert!(
            lines.any(|line| parts.iter().all(|part| line.contains(part))),
            "no {level} line with {parts:?}:\n{log}"
        );
    };
    let (hbone, identity) =
        (format!("dst.hbone_addr={}", scene.target), "src.identity=\"spiffe://cluster.local/ns/shop/sa/client\"");
    line("info", &["direction=\"inbound\"", &hbone, identity, "bytes_recv=100"]);
    line("info", &["direction=\"outbound\"", &hbone, identity, "bytes_sent=100"]);
    line("error", &["direction=\"inbound\"", "sa/other", "shop/deny-one"]);
    line("error", &["direction=\"outbound\"", "sa/other", "http status 401"]);
    line("error", &["direction=\"inbound\"", "Connection refused"]);
    line("error", &["direction=\"outbound\"", "http status 503"]);
    assert!(scene.echo.accepted() >= 1);
}

#[test]
fn a_pod_is_taken_in_only_once_its_certificate_is_there() {
    const LIFETIME: Duration = Duration::from_secs(6);
    let mut made = Instant::now();
    let mesh = Mesh::start_with(&[(1, "app"), (1, "late")], &[], |config| {
        Authority::create(&config.ca, LIFETIME).unwrap();
        made = Instant::now();
    })
    .unwrap();
    let report = || mesh.agent.admin("/redirection").unwrap().body;
    let captured = |uid: &str| {
        let report: serde_json::Value = serde_json::from_str(&report()).unwrap();
        report["programs"].as_array().unwrap().iter().any(|pod| pod["uid"] == uid)
    };
    assert!(captured("shop-app") && captured("shop-late"), "{}", report());
    let pods = |late: bool| {
        let each = ["app", "late"].into_iter().filter(|name| late || *name != "late");
        each.map(|name| objects::pod(mesh.topology.pod(name), name)).collect::<Vec<_>>()
    };
    mesh.directory.write("pods", &pods(false)).unwrap();
    eventually(LIMIT, "the pod to leave", || (!captured("shop-late")).then_some(())).unwrap();
    thread::sleep((LIFETIME + SECOND).saturating_sub(made.elapsed()));

    // The authority has ended: nobody can certify who the pod is.
    mesh.directory.write("pods", &pods(true)).unwrap();
    let says = |what: &str| {
        let found = eventually(LIMIT, what, || mesh.agent.log().contains(what).then_some(()));
        found.unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.agent.log()));
    };
    says("cannot be enrolled: ");
    says("ca-cert.pem: has expired");
    assert!(!captured("shop-late"), "a pod without a certificate is captured: {}", report());
    Authority::create(&mesh.ca, Duration::from_secs(3600)).unwrap();
    eventually(2 * LIMIT, "the pod to be taken in", || captured("shop-late").then_some(())).unwrap();
}
