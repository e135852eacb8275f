//! gRPC: trailers, messages both ways, and errors in its own words.

use std::convert::Infallible;

use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::*;

/// A message as gRPC frames it.
fn message(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.into()
}

fn call(path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    let request = Request::post(format!("http://{HOST}{path}")).header("content-type", "application/grpc");
    request.header("te", "trailers").body(Full::new(body.into())).unwrap()
}

async fn scene(backend: &Backend, rules_: &str) -> Scene {
    Scene::new(&format!("{}---\n{}", service(&[backend], "GRPC"), rules(rules_))).await
}

#[test]
fn messages_and_trailers_pass() {
    run(async {
        let backend = Backend::speaking(http::Version::HTTP_2).await;
        let scene = scene(&backend, PLAIN).await;
        let body = [message("one"), message("two")].concat();
        let answered = Answered::of(scene.client_2().await.send_request(call("/grpc/5", body)).await.unwrap()).await;
        assert_eq!((answered.status(), answered.header("content-type")), (200, "application/grpc"));
        assert_eq!(
            (answered.trailers.unwrap()["grpc-status"].clone(), answered.body.len()),
            ("5".parse().unwrap(), 16)
        );
        assert_eq!(backend.last().0.headers["te"], "trailers");
        let labels = ["request_protocol", "response_code", "grpc_response_status"];
        assert_eq!(scene.metric("istio_requests_total", &labels), ["grpc 200 5 1"]);
        assert_eq!(scene.metric("istio_request_messages_total", &[]), ["2"]);
        assert_eq!(scene.metric("istio_response_messages_total", &[]), ["2"]);
    });
}

#[test]
fn messages_flow_both_ways_before_either_end() {
    run(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        // Says everything back as it comes.
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let echo = hyper::service::service_fn(async |request: Request<Incoming>| {
                Ok::<_, Infallible>(Response::new(request.into_body()))
            });
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), echo)
                .await
                .unwrap();
        });
        let entry = service(&[], "GRPC")
            .replace("endpoints: []", &format!("endpoints: [{{address: 127.0.0.1, ports: {{web: {}}}}}]", at.port()));
        let scene = Scene::new(&entry).await;
        let io = TokioIo::new(scene.stream(HttpVersion::Http2));
        let (mut client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let (say, said) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
        let said = futures_util::stream::unfold(said, async |mut said| Some((said.recv().await?, said)));
        let request = call("/", "").map(|_| StreamBody::new(Box::pin(said)));
        say.send(Ok(Frame::data(message("0")))).await.unwrap();
        let mut answer = client.send_request(request).await.unwrap().into_body();
        for count in 0..5 {
            let heard = answer.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(heard, message(&count.to_string()));
            say.send(Ok(Frame::data(message(&(count + 1).to_string())))).await.unwrap();
        }
        drop(say);
        assert_eq!(answer.collect().await.unwrap().to_bytes(), message("5"));
    });
}

#[test]
fn errors_of_the_waypoint_are_grpcs() {
    run(async {
        let gone = Backend::gone().await;
        for (rules, status, told) in [
            (PLAIN, "14", "upstream connect error"),
            ("- directResponse: {status: 404}", "12", ""),
            (
                "- fault: {abort: {percentage: {value: 100}, grpcStatus: RESOURCE_EXHAUSTED}}\n  route: [{destination: {host: cart.example}}]",
                "8",
                "fault filter abort",
            ),
        ] {
            let scene = scene(&gone, rules).await;
            let answered = Answered::of(scene.client_2().await.send_request(call("/", "")).await.unwrap()).await;
            assert_eq!((answered.status(), answered.header("grpc-status")), (200, status), "{rules}");
            assert!(answered.header("grpc-message").starts_with(told), "{answered:?}");
        }
    });
}

#[test]
fn what_the_client_waits_for_is_what_the_service_has() {
    run(async {
        let backend = Backend::speaking(http::Version::HTTP_2).await;
        let scene = scene(&backend, PLAIN).await;
        let mut request = call("/hang", "");
        request.headers_mut().insert("grpc-timeout", "50m".parse().unwrap());
        let answered = Answered::of(scene.client_2().await.send_request(request).await.unwrap()).await;
        assert_eq!(
            (answered.header("grpc-status"), answered.header("grpc-message")),
            ("14", "upstream request timeout")
        );
    });
}

#[test]
fn a_status_that_says_to_try_again_is_tried_again() {
    run(async {
        let backend = Backend::speaking(http::Version::HTTP_2).await;
        let scene = scene(&backend, PLAIN).await;
        let answered = Answered::of(scene.client_2().await.send_request(call("/refuse/14", "")).await.unwrap()).await;
        assert_eq!((answered.header("grpc-status"), backend.count()), ("14", 3), "Istio tries UNAVAILABLE twice more");
        let answered = Answered::of(scene.client_2().await.send_request(call("/refuse/5", "")).await.unwrap()).await;
        assert_eq!((answered.header("grpc-status"), backend.count()), ("5", 4));
    });
}
