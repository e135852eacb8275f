//! What VirtualServices do, over the wire.

use super::*;

/// Rules, a request, and the status and the body of the answer.
async fn told(rules: &str, request: Request<Full<Bytes>>) -> Answered {
    Scene::with(&[], rules).await.ask(request).await
}

#[test]
fn routes_of_their_own_answer() {
    run(async {
        let answered =
            told("- redirect: {uri: /new, authority: other.example, redirectCode: 308}", get("/old?a=b")).await;
        assert_eq!((answered.status(), answered.header("location")), (308, "http://other.example/new?a=b"));
        let answered = told("- directResponse: {status: 418, body: {string: teapot}}", get("/")).await;
        assert_eq!((answered.told(), answered.header("content-type")), ((418, "teapot"), "text/plain"));
        let rules = "- directResponse: {status: 200, body: {string: '{}'}}\n  headers: {response: {set: {content-type: application/json}}}";
        let answered = told(rules, get("/")).await;
        assert_eq!((answered.told(), answered.header("content-type")), ((200, "{}"), "application/json"));
    });
}

#[test]
fn a_request_that_no_route_is_for_is_answered_with_404_and_one_to_nowhere_with_503() {
    run(async {
        let answered =
            told("- match: [{uri: {exact: /only}}]\n  route: [{destination: {host: cart.example}}]", get("/")).await;
        assert_eq!(answered.told(), (404, ""));
        let answered = told("- route: [{destination: {host: nowhere.example}}]", get("/")).await;
        assert_eq!(answered.told(), (503, ""));
        let answered = told("- route: [{destination: {host: cart.example, subset: nobody}}]", get("/")).await;
        assert_eq!(answered.told(), (503, ""));
    });
}

#[test]
fn requests_fail_and_wait_on_purpose() {
    run(async {
        let abort = "- fault: {abort: {percentage: {value: 100}, httpStatus: 599}}\n  route: [{destination: {host: cart.example}}]";
        assert_eq!(told(abort, get("/")).await.told(), (599, "fault filter abort"));
        let backend = Backend::start().await;
        let delay = "- fault: {delay: {percentage: {value: 100}, fixedDelay: 0.2s}}\n  timeout: 0.1s\n  route: [{destination: {host: cart.example}}]";
        let scene = Scene::with(&[&backend], delay).await;
        let start = std::time::Instant::now();
        assert_eq!(scene.get("/").await.status(), 200, "the delay is none of the route's time");
        assert!(start.elapsed() >= Duration::from_millis(200));
    });
}

#[test]
fn a_path_a_host_and_headers_are_rewritten() {
    run(async {
        let backend = Backend::start().await;
        let rules = "\
- match: [{uri: {prefix: /api/}}]
  rewrite: {uri: /v2/, authority: inner.example}
  headers:
    request:
      set: {x-was: '%REQ(:path)% by %REQ(x-name)%', x-gone: again}
      add: {x-more: '2'}
      remove: [x-secret]
    response:
      set: {x-asked: '%REQ(x-name)%', x-from: '%UPSTREAM_HOST%'}
      remove: [x-one]
  route: [{destination: {host: cart.example}}]";
        let scene = Scene::with(&[&backend], rules).await;
        let request =
            with(get("/api/items?q=1"), &[("x-name", "me"), ("x-more", "1"), ("x-secret", "s"), ("x-gone", "x")]);
        let answered = scene.ask(request).await;
        let (head, ..) = backend.last();
        assert_eq!(head.uri.to_string(), "/v2/items?q=1");
        let header = |name: &str| -> Vec<_> {
            head.headers.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
        };
        assert_eq!(header("host"), ["inner.example"]);
        assert_eq!(header("x-was"), ["/api/items?q=1 by me"]);
        assert_eq!((header("x-more"), header("x-gone")), (vec!["1".into(), "2".into()], vec!["again".to_owned()]));
        assert!(header("x-secret").is_empty());
        assert_eq!(header("x-envoy-original-path"), ["/api/items?q=1"]);
        assert_eq!((answered.header("x-asked"), answered.header("x-one")), ("me", ""));
        assert_eq!(answered.header("x-from"), backend.at.to_string());
    });
}

#[test]
fn traffic_is_shared_out_by_weight_and_subset() {
    run(async {
        let (first, second) = (Backend::start().await, Backend::start().await);
        let subset = |backend: &Backend| format!("{{name: p{0}, labels: {{port: p{0}}}}}", backend.at.port());
        let rule = policy(&format!("subsets: [{}, {}]", subset(&first), subset(&second)));
        let to = |backend: &Backend, weight| {
            format!("{{destination: {{host: cart.example, subset: p{}}}, weight: {weight}}}", backend.at.port())
        };
        let http = format!("- route: [{}, {}]", to(&first, 3), to(&second, 1));
        let scene = Scene::new(&[service(&[&first, &second], "HTTP"), rules(&http), rule].join("---\n")).await;
        let mut client = scene.client().await;
        for _ in 0..400 {
            client.ready().await.unwrap();
            Answered::of(client.send_request(get("/")).await.unwrap()).await;
        }
        // Five standard deviations.
        assert!((first.count() as f64 - 300.0).abs() < 45.0, "{} of 400", first.count());
        assert_eq!(first.count() + second.count(), 400);
    });
}

#[test]
fn a_copy_goes_to_the_mirror_and_nobody_waits_for_it() {
    run(async {
        let (backend, mirror) = (Backend::start().await, Backend::start().await);
        let other = service_named("copy", "copy.example", "240.0.0.2", &[&mirror], "HTTP");
        let http = "- route: [{destination: {host: cart.example}}]\n  mirrors: [{destination: {host: copy.example}}]";
        let scene = Scene::new(&[service(&[&backend], "HTTP"), other, rules(http)].join("---\n")).await;
        let answered = scene.ask(post("/echo", "hello")).await;
        assert_eq!((answered.told(), answered.header("x-backend")), ((200, "hello"), &*backend.at.port().to_string()));
        mirror.until(1).await;
        let (head, body, _) = mirror.last();
        assert_eq!((head.method.as_str(), head.uri.path(), &*body), ("POST", "/echo", &b"hello"[..]));
        drop(mirror);
        assert_eq!(scene.get("/").await.status(), 200);
    });
}

#[test]
fn web_pages_are_told_what_they_may() {
    run(async {
        let backend = Backend::start().await;
        let rules = "\
- corsPolicy: {allowOrigins: [{exact: 'https://a.example'}], allowMethods: [GET], exposeHeaders: [x-one]}
  route: [{destination: {host: cart.example}}]";
        let scene = Scene::with(&[&backend], rules).await;
        let mut preflight =
            with(get("/"), &[("origin", "https://a.example"), ("access-control-request-method", "GET")]);
        *preflight.method_mut() = http::Method::OPTIONS;
        let answered = scene.ask(preflight).await;
        assert_eq!((answered.status(), answered.header("access-control-allow-methods")), (200, "GET"));
        assert_eq!(backend.count(), 0);
        let answered = scene.ask(with(get("/"), &[("origin", "https://a.example")])).await;
        assert_eq!(answered.header("access-control-allow-origin"), "https://a.example");
        let answered = Scene::with(&[], rules).await.ask(with(get("/"), &[("origin", "https://a.example")])).await;
        assert_eq!((answered.status(), answered.header("access-control-allow-origin")), (503, "https://a.example"));
    });
}

#[test]
fn a_client_that_is_given_a_cookie_comes_back_to_the_same_endpoint() {
    run(async {
        let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
        let rule =
            policy("trafficPolicy: {loadBalancer: {consistentHash: {httpCookie: {name: session, ttl: 60s, path: /}}}}");
        let all: Vec<_> = backends.iter().collect();
        let scene = Scene::new(&[service(&all, "HTTP"), rule].join("---\n")).await;
        for _ in 0..5 {
            let answered = scene.get("/").await;
            let cookie = answered.header("set-cookie").split(';').next().unwrap().to_owned();
            assert!(cookie.starts_with("session=\""), "{cookie}");
            for _ in 0..3 {
                let again = scene.ask(with(get("/"), &[("cookie", &cookie)])).await;
                assert_eq!((again.body, again.head.headers.get("set-cookie")), (answered.body.clone(), None));
            }
        }
    });
}

#[test]
fn a_change_of_routes_is_live_for_the_next_request_of_a_connection() {
    run(async {
        let backend = Backend::start().await;
        let scene = Scene::with(&[&backend], PLAIN).await;
        let mut client = scene.client().await;
        Answered::of(client.send_request(get("/")).await.unwrap()).await;
        scene.apply(&rules("- directResponse: {status: 204}"));
        client.ready().await.unwrap();
        assert_eq!(client.send_request(get("/")).await.unwrap().status(), 204);
    });
}

#[test]
fn a_session_of_gateway_api_stays_with_its_endpoint_while_that_is_there() {
    run(async {
        let backends = [Backend::start().await, Backend::start().await, Backend::start().await];
        let all: Vec<_> = backends.iter().collect();
        let route = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{group: networking.istio.io, kind: ServiceEntry, name: cart}]
  rules:
  - sessionPersistence: {sessionName: x-session, type: Header}
    backendRefs: [{group: networking.istio.io, kind: Hostname, name: cart.example, port: 80}]
";
        let scene = Scene::new(&[service(&all, "HTTP"), route.to_owned()].join("---\n")).await;
        let first = scene.get("/").await;
        let session = first.header("x-session").to_owned();
        assert!(!session.is_empty(), "{first:?}");
        for _ in 0..10 {
            let again = scene.ask(with(get("/"), &[("x-session", &session)])).await;
            assert_eq!((&again.body, again.header("x-session")), (&first.body, ""));
        }
        let rest: Vec<_> = all.iter().copied().filter(|backend| backend.at.port().to_string() != first.body).collect();
        scene.apply(&service(&rest, "HTTP"));
        let moved = scene.ask(with(get("/"), &[("x-session", &session)])).await;
        assert!(moved.status() == 200 && moved.body != first.body && moved.header("x-session") != session, "{moved:?}");
    });
}
