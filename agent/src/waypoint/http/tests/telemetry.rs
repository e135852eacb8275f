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
    assert!(size < 8 << 10, "{size}");
}

#[test]
fn each_request_has_a_line_in_the_access_log() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(
            &[&backend],
            "- match: [{uri: {prefix: /gone}}]\n  name: gone\n  directResponse: {status: 410}\n- route: [{destination: {host: cart.example}}]\n",
        )
        .await;
        let headers = [("x-request-id", "r1"), ("user-agent", "a\"b")];
        scene.ask(with(post("/echo?q=1", "hello"), &headers)).await;
        scene.get("/gone").await;
        scene.shared.telemetry.access_log().flush(Duration::from_secs(5));
        let text = scene.log.text();
        let lines: Vec<_> = text.lines().filter_map(|line| line.split_once("] ").map(|(_, rest)| rest)).collect();
        let [echoed, gone] = *lines else { panic!("{text}") };
        assert!(echoed.starts_with("\"POST /echo?q=1 HTTP/1.1\" 200 - via_upstream - \"-\" 5 5 "), "{echoed}");
        let upstream = format!("\"{}\" inbound-vip|80|http|{HOST};", backend.at);
        for part in [" \"a\\\"b\" \"r1\" ", &upstream, " 240.0.0.1:80 10.1.1.1:4000 - "] {
            assert!(echoed.contains(part), "{part} in {echoed}");
        }
        assert!(gone.starts_with("\"GET /gone HTTP/1.1\" 410 - direct_response "), "{gone}");
        assert!(gone.ends_with(" 240.0.0.1:80 10.1.1.1:4000 - gone"), "{gone}");
    });
}
