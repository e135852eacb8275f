//! WebSockets.

use super::*;

fn socket(path: &str) -> Request<Full<Bytes>> {
    with(get(path), &[("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "k")])
}

#[test]
fn a_websocket_carries_bytes_both_ways_until_it_is_closed() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let mut client = scene.client().await;
        let mut response = client.send_request(socket("/socket")).await.unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["sec-websocket-accept"], "yes");
        let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        // What looks like HTTP is not looked at any more.
        for text in ["hello", "GET / HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n"] {
            io.write_all(text.as_bytes()).await.unwrap();
            let mut heard = vec![0; text.len()];
            io.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, text.to_uppercase().as_bytes());
        }
        assert_eq!(backend.last().0.headers["sec-websocket-key"], "k");
        io.shutdown().await.unwrap();
        assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        while scene.metric("istio_requests_total", &["response_code"]).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(scene.metric("istio_requests_total", &["response_code", "response_flags"]), ["101 - 1"]);
        assert_eq!(scene.metric("istio_response_bytes_sum", &[]), ["70.0"]);
    });
}

#[test]
fn a_service_that_speaks_no_websocket_answers_as_ever() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let mut client = scene.client().await;
        let answered = Answered::of(client.send_request(socket("/")).await.unwrap()).await;
        assert_eq!(answered.status(), 200);
        client.ready().await.unwrap();
        assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
    });
}

#[test]
fn a_service_that_switches_though_nobody_asked_is_not_believed() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        assert_eq!(scene.get("/socket").await.status(), 502);
    });
}

#[test]
fn a_service_of_http_2_is_not_asked_for_a_websocket() {
    run(async {
        let backend = Backend::speaking(http::Version::HTTP_2).await;
        let scene = Scene::new(&service(&[&backend], "HTTP2")).await;
        let answered = scene.ask(socket("/socket")).await;
        assert_eq!((answered.status(), backend.count()), (502, 0));
    });
}
