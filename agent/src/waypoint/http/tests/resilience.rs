//! Endpoints that fail, are slow, or are not there.

use super::*;

const RETRIES: &str = "\
- retries: {attempts: 3, retryOn: '5xx,reset', backoff: 1ms}
  route: [{destination: {host: cart.example}}]";

#[test]
fn a_request_is_tried_again_with_its_body() {
    run(async {
        let backend = Backend::start().await;
        backend.script([503, 0, 500]);
        let scene = Scene::with(&[&backend], RETRIES).await;
        let answered = scene.ask(post("/echo", "hello")).await;
        assert_eq!((answered.told(), backend.count()), ((200, "hello"), 4));
    });
}

#[test]
fn the_last_answer_of_too_many_is_the_clients() {
    run(async {
        let backend = Backend::start().await;
        backend.script([500, 501, 502, 503]);
        let scene = Scene::with(&[&backend], RETRIES).await;
        assert_eq!((scene.get("/").await.status(), backend.count()), (503, 4));
        let lines = scene.metric("istio_requests_total", &["response_code", "response_flags"]);
        assert_eq!(lines, ["503 URX 1"]);
    });
}

#[test]
fn another_endpoint_is_tried_before_the_same_again() {
    run(async {
        let (gone, there) = (Backend::gone().await, Backend::start().await);
        // By default: after a connection that was not made.
        let scene = Scene::with(&[&gone, &there], PLAIN).await;
        for _ in 0..20 {
            assert_eq!(scene.get("/").await.status(), 200);
        }
    });
}

#[test]
fn by_default_a_503_is_the_services_own() {
    run(async {
        let backend = Backend::start().await;
        backend.script([503]);
        let scene = Scene::with(&[&backend], PLAIN).await;
        assert_eq!((scene.get("/").await.status(), backend.count()), (503, 1));
    });
}

#[test]
fn without_endpoints_the_answer_is_503() {
    run(async {
        let answered = Scene::with(&[], PLAIN).await.get("/").await;
        assert_eq!((answered.told(), answered.header("content-type")), ((503, "no healthy upstream"), "text/plain"));
    });
}

#[test]
fn an_endpoint_that_is_not_there_is_said_to_be() {
    run(async {
        let gone = Backend::gone().await;
        let scene = Scene::with(&[&gone], &format!("{PLAIN}\n  retries: {{attempts: 0}}")).await;
        let told = "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure";
        assert_eq!(scene.get("/").await.told(), (503, told));
        let lines = scene.metric("istio_requests_total", &["response_code", "response_flags", "destination_service"]);
        assert_eq!(lines, ["503 UF cart.example 1"]);
    });
}

#[test]
fn an_endpoint_that_hangs_up_is_said_to() {
    run(async {
        let backend = Backend::start().await;
        backend.script([0]);
        let scene = Scene::with(&[&backend], PLAIN).await;
        let told = "upstream connect error or disconnect/reset before headers. reset reason: connection termination";
        assert_eq!(scene.get("/").await.told(), (503, told));
    });
}

#[test]
fn a_route_has_so_much_time() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], &format!("{PLAIN}\n  timeout: 0.1s")).await;
        assert_eq!(scene.get("/hang").await.told(), (504, "upstream request timeout"));
        assert_eq!(backend.last().0.headers["x-envoy-expected-rq-timeout-ms"], "100");
        // The time is for all of the answer.
        let response = scene.client().await.send_request(get("/endless")).await.unwrap();
        assert!(response.into_body().collect().await.is_err());
        let mut lines = scene.metric("istio_requests_total", &["response_code", "response_flags"]);
        lines.sort();
        assert_eq!(lines, ["200 UT 1", "504 UT 1"]);
    });
}

#[test]
fn each_try_has_its_own_time() {
    run(async {
        let backend = Backend::start().await;
        let rules = "\
- retries: {attempts: 2, perTryTimeout: 0.1s, retryOn: '5xx', backoff: 1ms}
  route: [{destination: {host: cart.example}}]";
        let scene = Scene::with(&[&backend], rules).await;
        assert_eq!(scene.get("/hang").await.told(), (504, "upstream request timeout"));
        assert_eq!(backend.count(), 3);
    });
}

#[test]
fn beyond_the_limits_of_a_service_the_answer_is_503_at_once() {
    run(async {
        let backend = Backend::start().await;
        let rule = policy("trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}");
        let scene = Scene::new(&[service(&[&backend], "HTTP"), rules(PLAIN), rule].join("---\n")).await;
        let mut client = scene.client().await;
        let held = client.send_request(get("/endless")).await.unwrap();
        let answered = scene.get("/").await;
        let told = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
        assert_eq!((answered.told(), answered.header("x-envoy-overloaded")), ((503, told), "true"));
        drop((held, client));
        while scene.get("/").await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn a_large_body_that_was_sent_is_not_sent_again() {
    run(async {
        let backend = Backend::start().await;
        backend.script([503]);
        let scene = Scene::with(&[&backend], RETRIES).await;
        let answered = scene.ask(post("/echo", vec![b'x'; replay::LIMIT + 1])).await;
        assert_eq!((answered.status(), backend.count()), (503, 1));
    });
}
