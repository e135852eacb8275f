//! Requests and answers on their way through: what is changed, and what is not.

use super::*;

#[test]
fn a_request_arrives_as_it_was_sent_but_for_what_every_request_gets() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let request = with(get("/a/../b?q=%61"), &[("x-mine", "1"), ("connection", "x-hop"), ("x-hop", "1")]);
        let answered = scene.ask(request).await;
        assert_eq!(answered.status(), 200);
        let (head, body, _) = backend.last();
        assert_eq!((head.uri.to_string().as_str(), &*body), ("/b?q=%61", &b""[..]));
        let mut names: Vec<_> = head.headers.keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "x-forwarded-proto", "x-mine", "x-request-id"]);
        assert_eq!(head.headers["host"], HOST);
        assert_eq!(head.headers["x-forwarded-proto"], "http");
    });
}

#[test]
fn an_answer_arrives_as_it_was_sent_and_says_how_long_it_took() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let answered = scene.get("/headers").await;
        assert_eq!((answered.told(), answered.header("x-one")), ((200, "h"), "1"));
        assert!(answered.header("x-envoy-upstream-service-time").parse::<u64>().unwrap() < 10_000);
        assert!(!answered.head.headers.contains_key("x-hop") && !answered.head.headers.contains_key("server"));
    });
}

#[test]
fn requests_follow_each_other_over_one_connection_at_either_end() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let mut client = scene.client().await;
        for size in [0, 1, 1000, 300_000, 5] {
            client.ready().await.unwrap();
            let body = vec![b'x'; size];
            let answered = Answered::of(client.send_request(post("/echo", body)).await.unwrap()).await;
            assert_eq!((answered.status(), answered.body.len()), (200, size));
        }
        assert_eq!((backend.count(), backend.connections()), (5, 1));
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let one = |path: &str, body: &str, more: &str| {
            format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n{more}\r\n{body}", body.len())
        };
        let both = one("/echo", "first", "") + &one("/echo", "second", "connection: close\r\n");
        let answer = scene.raw(both).await;
        let (first, second) = (answer.find("first").unwrap(), answer.find("second").unwrap());
        assert!(first < second && answer.matches("200 OK").count() == 2, "{answer}");
    });
}

#[test]
fn http_1_0_is_served_with_or_without_a_host() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let answer = scene.raw("GET /x HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200 OK"), "{answer}");
        assert_eq!(backend.last().0.headers["host"], HOST);
        let answer = scene.raw("GET /grpc/0 HTTP/1.0\r\nhost: other\r\n\r\n").await;
        assert!(!answer.to_lowercase().contains("transfer-encoding"), "it knows no chunks: {answer}");
        assert_eq!(backend.last().0.headers["host"], "other");
    });
}

#[test]
fn an_absolute_request_line_names_the_host() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        scene.raw("GET http://named.example/x HTTP/1.1\r\nhost: other\r\nconnection: close\r\n\r\n").await;
        let (head, ..) = backend.last();
        assert_eq!((head.uri.to_string().as_str(), &head.headers["host"]), ("/x", &"named.example".parse().unwrap()));
    });
}

#[test]
fn who_waits_for_100_is_told_to_go_on() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let mut stream = scene.stream(HttpVersion::Http1);
        let head =
            "POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut told = [0; 25];
        stream.read_exact(&mut told).await.unwrap();
        assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"hello").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    });
}

#[test]
fn to_head_there_is_no_body() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let answer = scene.raw("HEAD /echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    });
}

#[test]
fn chunks_and_trailers_of_a_request_arrive() {
    run(async {
        let backend = Backend::speaking(http::Version::HTTP_2).await;
        let scene = Scene::new(&format!("{}---\n{}", service(&[&backend], "HTTP2"), rules(PLAIN))).await;
        let request = "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                       5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nx-checksum: 7\r\n\r\n";
        let answer = scene.raw(request).await;
        assert!(answer.contains("hello world"), "{answer}");
        let (head, body, trailers) = backend.last();
        assert_eq!((head.version, &*body), (http::Version::HTTP_2, &b"hello world"[..]));
        assert_eq!(trailers.unwrap()["x-checksum"], "7");
    });
}

#[test]
fn http_2_is_served_and_goes_on_in_what_the_service_speaks() {
    run(async {
        for version in [http::Version::HTTP_11, http::Version::HTTP_2] {
            let backend = Backend::speaking(version).await;
            let protocol = if version == http::Version::HTTP_2 { "HTTP2" } else { "HTTP" };
            let scene = Scene::new(&format!("{}---\n{}", service(&[&backend], protocol), rules(PLAIN))).await;
            let mut client = scene.client_2().await;
            let request = Request::post("http://cart.example/echo?x").body(Full::from("hello")).unwrap();
            let answered = Answered::of(client.send_request(request).await.unwrap()).await;
            assert_eq!(answered.told(), (200, "hello"));
            let (head, ..) = backend.last();
            assert_eq!((head.version, head.uri.path()), (version, "/echo"));
        }
    });
}

#[test]
fn an_answer_that_breaks_off_does_not_look_whole() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let response = scene.client().await.send_request(get("/half")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.into_body().collect().await.is_err());
        let response = scene.client_2().await.send_request(get("http://cart.example/half")).await.unwrap();
        assert!(response.into_body().collect().await.is_err());
    });
}

#[test]
fn a_connection_ends_when_the_waypoint_does_and_what_is_under_way_is_finished() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let (mut idle, mut busy) = (scene.client().await, scene.client().await);
        Answered::of(idle.send_request(get("/")).await.unwrap()).await;
        let under_way = busy.send_request(get("/endless"));
        let response = under_way.await.unwrap();
        let mut second = scene.client_2().await;
        Answered::of(second.send_request(get("http://cart.example/")).await.unwrap()).await;
        scene.draining.send_replace(true);
        while !(idle.is_closed() && second.is_closed()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!busy.is_closed());
        drop(response);
    });
}
