//! What is proven of the endpoints.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use culvert_core::identity::Identity;
use culvert_core::mesh::Mesh;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;
use crate::ca::testing::{Root, ScriptedCa};
use crate::identity::{CertificateStore, StoreOptions, SystemClock};
use crate::telemetry::AccessLog;

fn state() -> AdminState {
    AdminState {
        config: vec![
            ("workloads", Report::new(|| vec!["w"])),
            ("options", Report::new(|| serde_json::json!({"a": 1}))),
        ],
        connections: Report::new(|| ["c"]),
        redirection: Report::new(|| ["r"]),
        readiness: vec![],
        notes: Arc::new(Vec::new),
        telemetry: Telemetry::new(AccessLog::off()),
        log: LogHandle::detached(),
        shutdown: Arc::new(|| {}),
    }
}

async fn start(endpoint: Endpoint, state: AdminState) -> SocketAddr {
    let bound = bind(endpoint, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = bound.address();
    tokio::spawn(bound.serve(state));
    address
}

/// Status and body.
async fn call(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    socket.read_to_end(&mut response).await.unwrap();
    let response = String::from_utf8(response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, if head.contains("transfer-encoding: chunked") { dechunk(body) } else { body.to_owned() })
}

fn dechunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let length = usize::from_str_radix(length, 16).unwrap();
        whole.push_str(&rest[..length]);
        body = &rest[length + 2..];
    }
    whole
}

#[tokio::test]
async fn the_dump_is_one_document_and_each_member_can_be_had_alone() {
    let admin = start(Endpoint::Admin, state()).await;
    let (status, dump) = call(admin, "GET", "/config_dump").await;
    assert_eq!(status, 200);
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump, serde_json::json!({"workloads": ["w"], "options": {"a": 1}}));
    let (_, member) = call(admin, "GET", "/config_dump/options").await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&member).unwrap(), dump["options"]);
    assert_eq!(call(admin, "GET", "/config_dump/secrets").await.0, 404);
    assert_eq!(call(admin, "GET", "/connections").await.1.replace(char::is_whitespace, ""), r#"["c"]"#);
    assert_eq!(call(admin, "GET", "/redirection").await.1.replace(char::is_whitespace, ""), r#"["r"]"#);
}

#[tokio::test]
async fn the_mesh_is_dumped_with_certificates_and_without_keys() {
    let root = Root::new("root");
    let store = CertificateStore::new(ScriptedCa::new(&root, Arc::new(SystemClock)), StoreOptions::default());
    store.fetch(&Identity::new("cluster.local", "shop", "cart")).await.unwrap();
    let snapshot = Mesh::new().snapshot();
    let config = mesh_members(Arc::new(move || snapshot.clone()), store);
    let admin = start(Endpoint::Admin, AdminState { config, ..state() }).await;
    let (_, text) = call(admin, "GET", "/config_dump").await;
    let dump: serde_json::Value = serde_json::from_str(&text).unwrap();
    let members: Vec<_> = dump.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["certificates", "findings", "options", "policies", "services", "version", "waypoints", "workloads"];
    assert_eq!(members, expected);
    assert_eq!(dump["certificates"][0]["identity"], "spiffe://cluster.local/ns/shop/sa/cart");
    assert!(!text.contains("PRIVATE"));
}

#[tokio::test]
async fn readiness_tells_its_reasons() {
    let ready = Arc::new(AtomicBool::new(false));
    let told = ready.clone();
    let check: ReadinessCheck =
        Arc::new(
            move || {
                if told.load(Ordering::SeqCst) { vec![] } else { vec!["pod shop/cart is not enrolled".to_owned()] }
            },
        );
    let state = AdminState { readiness: vec![check], ..state() };
    for endpoint in [Endpoint::Readiness, Endpoint::Metrics, Endpoint::Admin] {
        ready.store(false, Ordering::SeqCst);
        let address = start(endpoint, state.clone()).await;
        let unready = (503, "pod shop/cart is not enrolled\n".to_owned());
        assert_eq!(call(address, "GET", "/healthz/ready").await, unready);
        ready.store(true, Ordering::SeqCst);
        assert_eq!(call(address, "GET", "/healthz/ready").await, (200, "ready\n".to_owned()));
    }
}

#[tokio::test]
async fn a_ready_agent_admits_what_is_not_as_it_should_be() {
    let notes: ReadinessCheck = Arc::new(|| vec!["configuration from yesterday".to_owned()]);
    let address = start(Endpoint::Readiness, AdminState { notes, ..state() }).await;
    let answer = (200, "ready\nconfiguration from yesterday\n".to_owned());
    assert_eq!(call(address, "GET", "/healthz/ready").await, answer);
}

#[tokio::test]
async fn one_that_is_not_ready_admits_it_as_well() {
    let notes: ReadinessCheck = Arc::new(|| vec!["configuration from yesterday".to_owned()]);
    let readiness: Vec<ReadinessCheck> = vec![Arc::new(|| vec!["pod shop/cart is being enrolled".to_owned()])];
    let address = start(Endpoint::Readiness, AdminState { notes, readiness, ..state() }).await;
    let answer = (503, "pod shop/cart is being enrolled\nconfiguration from yesterday\n".to_owned());
    assert_eq!(call(address, "GET", "/healthz/ready").await, answer);
}

#[tokio::test]
async fn metrics_are_on_both_of_their_paths_and_nothing_else_is_on_their_port() {
    let metrics = start(Endpoint::Metrics, state()).await;
    for path in ["/metrics", "/stats/prometheus"] {
        let (status, text) = call(metrics, "GET", path).await;
        assert_eq!(status, 200);
        assert!(text.contains("istio_build") && text.ends_with("# EOF\n"), "{text}");
    }
    let readiness = start(Endpoint::Readiness, state()).await;
    for (address, path) in [(metrics, "/config_dump"), (metrics, "/quitquitquit"), (readiness, "/metrics")] {
        assert_eq!(call(address, "POST", path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn the_level_is_set_by_post_only() {
    let state = state();
    let log = state.log.clone();
    let admin = start(Endpoint::Admin, state).await;
    assert_eq!(call(admin, "GET", "/logging").await, (200, "info\n".to_owned()));
    assert_eq!(call(admin, "GET", "/logging?level=debug").await.0, 405);
    assert_eq!(call(admin, "POST", "/logging?level=debug").await, (200, "debug\n".to_owned()));
    assert_eq!(call(admin, "POST", "/logging?level=hbone%3Atrace%2Caccess:off").await.0, 200);
    assert!(log.level().contains("hbone=trace") && log.level().contains("access=off"), "{}", log.level());
    let before = log.level();
    let (status, body) = call(admin, "POST", "/logging?level=loud").await;
    assert!(status == 400 && body.contains("\"loud\" is no log level; use off"), "{body}");
    assert_eq!(call(admin, "POST", "/logging?level=%zz").await.0, 400);
    assert_eq!(log.level(), before);
}

#[tokio::test]
async fn quitting_takes_a_post() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let shutdown = Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let admin = start(Endpoint::Admin, AdminState { shutdown, ..state() }).await;
    assert_eq!(call(admin, "GET", "/quitquitquit").await.0, 405);
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    assert_eq!(call(admin, "POST", "/quitquitquit").await.0, 200);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_first_page_names_every_path() {
    let admin = start(Endpoint::Admin, state()).await;
    let (_, help) = call(admin, "GET", "/").await;
    let paths = help.lines().filter_map(|line| line.split_whitespace().nth(1));
    for path in paths {
        let path = path.split('?').next().unwrap();
        assert_ne!(call(admin, "GET", path).await.0, 404, "{path}");
    }
    assert_eq!(call(admin, "GET", "/nothing").await.0, 404);
}

#[tokio::test]
async fn an_address_that_is_taken_is_named_with_its_flag() {
    let first = bind(Endpoint::Metrics, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let error = bind(Endpoint::Metrics, first.address()).await.unwrap_err().to_string();
    assert!(error.starts_with("--metrics-addr: cannot listen on 127.0.0.1:"), "{error}");
    assert!(error.contains("another process has the port") && !error.contains('\n'), "{error}");
}

#[tokio::test]
async fn a_head_without_end_is_cut_off() {
    let admin = start(Endpoint::Admin, state()).await;
    let mut socket = TcpStream::connect(admin).await.unwrap();
    let endless = format!("GET / HTTP/1.1\r\nx: {}", "y".repeat(1 << 20));
    let _ = socket.write_all(endless.as_bytes()).await;
    let mut response = Vec::new();
    let _ = socket.read_to_end(&mut response).await;
    assert!(response.is_empty() || response.starts_with(b"HTTP/1.1 431"), "{:?}", String::from_utf8_lossy(&response));
}

#[tokio::test]
async fn whoever_holds_many_connections_makes_room_for_others() {
    let readiness = start(Endpoint::Readiness, state()).await;
    let connect = async |from: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        socket.connect(readiness).await.unwrap()
    };
    let ask = async |socket: &mut TcpStream| {
        socket.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut answer = [0; 12];
        // Sooner than any connection that is slow is given up on its own.
        let read = tokio::time::timeout(Duration::from_secs(3), socket.read_exact(&mut answer));
        read.await.map_err(io::Error::from)??;
        assert_eq!(&answer, b"HTTP/1.1 200");
        io::Result::Ok(())
    };
    let mut probe = connect("127.0.0.2").await;
    ask(&mut probe).await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..2 * places::MAX_CONNECTIONS {
        let mut socket = connect("127.0.0.3").await;
        socket.write_all(b"GET /").await.unwrap();
        slow.push(socket);
    }
    ask(&mut connect("127.0.0.4").await).await.unwrap();
    // Though it is the oldest.
    let mut rest = vec![0; 1 << 10];
    assert!(probe.try_read(&mut rest).is_ok_and(|read| read > 0));
    ask(&mut probe).await.unwrap();
    let oldest = tokio::time::timeout(Duration::from_secs(3), slow[0].read(&mut rest)).await;
    assert_eq!(oldest.unwrap().unwrap_or_default(), 0, "it has made room");
}

#[tokio::test]
async fn a_big_dump_is_written_as_it_is_read() {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let big = Report::writing(move |to: &mut dyn Write| {
        for _ in 0..(256 << 10) {
            to.write_all(&[b' '; 1024]).map_err(serde::ser::Error::custom)?;
            count.fetch_add(1024, Ordering::SeqCst);
        }
        Ok(())
    });
    let admin = start(Endpoint::Admin, AdminState { connections: big, ..state() }).await;
    let mut stalled = TcpStream::connect(admin).await.unwrap();
    stalled.write_all(b"GET /connections HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // Others are answered while one client does not read.
    assert_eq!(call(admin, "GET", "/healthz/ready").await.0, 200);
    let begin = Instant::now();
    let mut before = usize::MAX;
    while before != written.load(Ordering::SeqCst) && begin.elapsed() < Duration::from_secs(10) {
        before = written.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let buffered = written.load(Ordering::SeqCst);
    assert!(buffered < 32 << 20, "{buffered} bytes are in flight of 256 MiB");
    drop(stalled);
}
