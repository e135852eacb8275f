//! What is counted of requests.

use super::*;

#[test]
fn a_request_is_counted_with_who_asked_whom() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        scene.ask(post("/echo", "hello")).await;
        let labels = [
            "reporter",
            "source_workload",
            "source_principal",
            "destination_service",
            "destination_service_name",
            "request_protocol",
            "response_code",
            "response_flags",
            "connection_security_policy",
        ];
        let expected = "waypoint web-1 spiffe://cluster.local/ns/shop/sa/web cart.example cart http 200 - mutual_tls 1";
        assert_eq!(scene.metric("istio_requests_total", &labels), [expected]);
        assert_eq!(scene.metric("istio_request_bytes_sum", &[]), ["5.0"]);
        assert_eq!(scene.metric("istio_response_bytes_sum", &[]), ["5.0"]);
        assert_eq!(scene.metric("istio_request_duration_milliseconds_count", &[]), ["1"]);
    });
}

#[test]
fn each_way_in_which_a_request_can_end_is_flagged() {
    run(async {
        let backend = Backend::start().await;
        for (rules, path, expected) in [
            ("- match: [{uri: {exact: /only}}]\n  directResponse: {status: 200}", "/", "404 NR 1"),
            ("- route: [{destination: {host: nowhere.example}}]", "/", "503 NC 1"),
            (
                "- fault: {abort: {percentage: {value: 100}, httpStatus: 500}}\n  directResponse: {status: 200}",
                "/",
                "500 FI 1",
            ),
            ("- redirect: {uri: /x}", "/", "301 - 1"),
            (PLAIN, "/", "200 - 1"),
        ] {
            let scene = Scene::with(&[&backend], rules).await;
            scene.get(path).await;
            let lines = scene.metric("istio_requests_total", &["response_code", "response_flags"]);
            assert_eq!(lines, [expected], "{rules}");
        }
        let scene = Scene::with(&[], PLAIN).await;
        scene.get("/").await;
        scene.raw("nonsense\r\n\r\n").await;
        let mut lines = scene.metric("istio_requests_total", &["response_code", "response_flags"]);
        lines.sort();
        assert_eq!(lines, ["400 DPE 1", "503 UH 1"]);
    });
}

#[test]
fn a_client_that_goes_away_is_counted_as_that() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        for (path, code) in [("/hang", "0 DC 1"), ("/endless", "200 DC 1")] {
            let mut stream = scene.stream(HttpVersion::Http1);
            stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
            if path == "/endless" {
                stream.read_exact(&mut [0; 12]).await.unwrap();
            } else {
                backend.until(1).await;
            }
            drop(stream);
            let counted = async {
                loop {
                    let lines = scene.metric("istio_requests_total", &["response_code", "response_flags"]);
                    if lines.contains(&code.to_owned()) {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(5), counted).await.expect(code);
        }
    });
}

/// The size of what `make` makes.
fn size_of_future<A, B, F: Future>(_: fn(A, B) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_connection_has_room_for_one_request_and_that_is_not_much() {
    let size = size_of_future(exchange::answer);
    println!("{size} bytes");
    assert!(size < 8 << 10, "{size}");
}
