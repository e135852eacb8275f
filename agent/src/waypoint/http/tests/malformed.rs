//! What is no HTTP, or could be taken for something else further on: refused as Envoy refuses it.

use super::*;

/// Requests, and the status that each is answered with.
const CORPUS: &[(&str, u16)] = &[
    ("GET / HTTP/1.1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a b\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n folded\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\n folded: 1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: 1\rcontent-length: 5\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\nx : 1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\n: 1\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\nno colon\r\n\r\n", 400),
    ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("GET / HTTP/1.1 \r\nhost: a\r\n\r\n", 400),
    ("GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("GET / HTTP/3.7\r\nhost: a\r\n\r\n", 400),
    ("GET /\r\nhost: a\r\n\r\n", 400),
    ("G@T / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("nonsense\r\n\r\n", 400),
    ("\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03\r\n\r\n", 400),
    ("GET a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("GET /%00 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
    ("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", 404),
    ("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", 403),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxy", 400),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\nx", 400),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx", 400),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x1\r\n\r\nx", 400),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n", 400),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade, close\r\nupgrade: irc\r\n\r\n", 403),
    ("GET / HTTP/1.1\r\nhost: a\r\nconnection: host\r\n\r\n", 400),
];

#[test]
fn what_envoy_refuses_is_refused_and_reaches_nobody() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let mut wrong = Vec::new();
        for (request, status) in CORPUS {
            let request =
                request.replacen("\r\n", "\r\nconnection: close\r\n", usize::from(!request.contains("connection:")));
            let answer = scene.raw(&request).await;
            let line = answer.lines().next().unwrap_or_default();
            if !line.starts_with(&format!("HTTP/1.1 {status} ")) {
                wrong.push(format!("{request:?} was answered with {line:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert_eq!(backend.count(), 0);
    });
}

#[test]
fn behind_a_request_whose_length_is_ambiguous_nothing_is_a_request() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let smuggled = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 40\r\n\r\n\
                        0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
        let answer = scene.raw(smuggled).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert_eq!(backend.count(), 0);
    });
}

#[test]
fn a_head_that_is_too_large_is_refused_and_no_more_of_it_is_read() {
    run(async {
        let scene = Scene::with(&[], PLAIN).await;
        let line = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(MAX_HEAD));
        let header = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        let many: String = (0..101).map(|at| format!("x-{at}: 1\r\n")).collect();
        let many = format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n");
        for request in [line, header, many] {
            let answer = scene.raw(request).await;
            assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        }
    });
}

#[test]
fn a_chunk_that_is_none_is_the_end_of_its_request_and_of_its_connection() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        for body in
            ["5\r\nhello\r\nzz\r\n", "5\nhello\r\n0\r\n\r\n", "-1\r\n\r\n", "11111111111111111\r\n", "5\r\nhelloo\r\n"]
        {
            let head = "POST /echo HTTP/1.1\r\nhost: cart.example\r\ntransfer-encoding: chunked\r\n\r\n";
            let answer = scene.raw(format!("{head}{body}GET /after HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            assert!(!answer.contains("200 OK"), "{body:?}: {answer}");
        }
        assert_eq!(backend.count(), 0, "what broke off is no request");
    });
}

#[tokio::test(start_paused = true)]
async fn a_head_that_takes_too_long_is_answered_with_408() {
    let scene = Scene::with(&[], PLAIN).await;
    let mut stream = scene.stream(HttpVersion::Http1);
    stream.write_all(b"GET / HTTP/1.1\r\nhost: ").await.unwrap();
    let start = tokio::time::Instant::now();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(start.elapsed(), wire::HEAD_TIME);
}

#[test]
fn http_2_with_headers_of_a_connection_or_two_lengths_is_refused() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let (mut sender, connection) = h2::client::handshake(scene.stream(HttpVersion::Http2)).await.unwrap();
        tokio::spawn(connection);
        for headers in [
            &[("connection", "close")][..],
            &[("transfer-encoding", "chunked")],
            &[("te", "gzip")],
            &[("upgrade", "x")],
        ] {
            let mut request = Request::post("http://cart.example/").body(()).unwrap();
            for (name, value) in headers {
                request.headers_mut().append(*name, value.parse().unwrap());
            }
            sender = sender.ready().await.unwrap();
            // Where h2 itself does not send it, nobody else does.
            let Ok((response, _)) = sender.send_request(request, true) else { continue };
            assert!(response.await.is_err(), "{headers:?}");
        }
        let lengths = Request::post("http://cart.example/").header("content-length", "0, 0").body(()).unwrap();
        sender = sender.ready().await.unwrap();
        let answered = sender.send_request(lengths, true).unwrap().0.await;
        assert!(answered.is_err() || answered.unwrap().status() == 400);
        assert_eq!(backend.count(), 0);
    });
}

#[test]
fn who_resets_streams_as_fast_as_it_opens_them_is_sent_away() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let mut stream = scene.stream(HttpVersion::Http2);
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
        for id in (1..2000_u32).step_by(2) {
            // GET, http, / and the authority.
            let block = b"\x82\x86\x84\x01\x0ccart.example";
            bytes.extend([0, 0, block.len() as u8, 1, 5].iter().chain(&id.to_be_bytes()).chain(block));
            bytes.extend([0, 0, 4, 3, 0].iter().chain(&id.to_be_bytes()).chain(&8_u32.to_be_bytes()));
        }
        // It may be sent away before it has said all of that.
        let _ = stream.write_all(&bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        // GOAWAY with ENHANCE_YOUR_CALM.
        let is_goaway = |frame: &[u8]| frame[3] == 7 && frame.ends_with(&[0, 0, 0, 0xb]);
        assert!(frames(&answer).any(is_goaway), "{answer:?}");
        assert!(backend.count() < 200, "{}", backend.count());
        // Nobody else notices.
        assert_eq!(scene.get("/").await.status(), 200);
    });
}

/// The frames of HTTP/2 in `bytes`; of a GOAWAY up to its error.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = usize::from(*bytes.get(1)?) << 8 | usize::from(bytes[2]);
        let end = (9 + length).min(bytes.len());
        let (frame, rest) = bytes.split_at(end);
        bytes = rest;
        Some(if frame[3] == 7 { &frame[..frame.len().min(17)] } else { frame })
    })
}
