//! Providers that speak HTTP.

use std::sync::Mutex;

use ::http::Response;
use http_body_util::Full;

use super::*;

/// What a provider was asked, and what it says.
async fn provider(
    says: impl Fn(&Request<Bytes>) -> Response<Full<Bytes>> + Send + Sync + 'static,
) -> (To, Arc<Mutex<Vec<Request<Bytes>>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let address = serve(move |request| {
        let response = says(&request);
        seen.lock().unwrap().push(request);
        response
    })
    .await;
    (To::one(8000, address), asked)
}

fn answer(status: u16, headers: &[(&'static str, &'static str)], body: &'static str) -> Response<Full<Bytes>> {
    let builder = headers.iter().fold(Response::builder().status(status), |b, (name, value)| b.header(*name, *value));
    builder.body(Full::from(body)).unwrap()
}

#[tokio::test]
async fn a_provider_is_told_what_its_fields_say_and_no_more() {
    let (reach, asked) = provider(|_| answer(200, &[], "")).await;
    let fields = "port: 8000, pathPrefix: /check, includeRequestHeadersInCheck: [x-ext-authz, 'x-b3-*'], \
                  includeAdditionalHeadersInCheck: {x-mesh: culvert, x-ext-authz: overridden}";
    let world = world("envoyExtAuthzHttp", fields, reach, &[]);
    let request = get("/ask/a?b=c")
        .header("authorization", "Basic x")
        .header("x-b3-traceid", "7")
        .header("x-ext-authz", "client")
        .header("cookie", "secret")
        .header("connection", "x-b3-traceid");
    allowed(world.cart(request).await.0);
    let asked = asked.lock().unwrap();
    let [request] = &**asked else { panic!("{asked:?}") };
    assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), ("GET", "/check/ask/a?b=c"));
    let mut headers: Vec<_> =
        request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    headers.sort();
    let expected = [
        "authorization: Basic x",
        "content-length: 0",
        "host: cart.shop",
        "x-b3-traceid: 7",
        "x-ext-authz: overridden",
        "x-mesh: culvert",
    ];
    assert_eq!(headers, expected);
}

#[tokio::test]
async fn an_agreeing_answer_changes_what_its_lists_name() {
    let headers = [
        ("x-user", "alice"),
        ("x-role", "a"),
        ("x-role", "b"),
        ("x-other", "no"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-envoy-auth-headers-to-remove", "x-secret, x-gone"),
    ];
    let (reach, _) = provider(move |_| answer(200, &headers, "")).await;
    let fields = "port: 8000, headersToUpstreamOnAllow: [x-user, 'x-ro*'], headersToDownstreamOnAllow: ['*-cookie'], \
                  clearRouteCache: true";
    // What the provider says is judged as if the client had said it.
    let roles = "action: DENY, rules: [{when: [{key: 'request.headers[x-user]', values: [mallory]}]}]";
    let world = world("envoyExtAuthzHttp", fields, reach, &[policy("d", roles)]);
    let request = get("/ask").header("x-user", "mallory").header("x-secret", "1").header("x-gone", "1");
    let (verdict, head) = world.cart(request).await;
    let allowed = allowed(verdict);
    assert!(allowed.reroute);
    let all = |name: &str| head.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((all("x-user"), all("x-role")), (vec!["alice"], vec!["a", "b"]));
    assert!(["x-other", "x-secret", "x-gone", "set-cookie"].iter().all(|name| all(name).is_empty()));
    let mut answered = HeaderMap::new();
    allowed.response.unwrap().apply(&mut answered);
    assert_eq!(answered.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert_eq!(answered.len(), 2);
}

#[tokio::test]
async fn a_refusing_answer_is_the_clients() {
    let headers = [("x-why", "no"), ("location", "https://login"), ("x-secret", "1"), ("content-type", "text/html")];
    for (lists, told) in [
        ("", vec!["content-type", "location", "x-secret", "x-why"]),
        (", headersToDownstreamOnDeny: [x-why]", vec!["location", "x-why"]),
    ] {
        let (reach, _) = provider(move |_| answer(302, &headers, "go away")).await;
        let world = world("envoyExtAuthzHttp", &format!("port: 8000{lists}"), reach, &[]);
        let (verdict, _) = world.cart(get("/ask")).await;
        let Verdict::Deny(reply) = &verdict else { panic!("{verdict:?}") };
        let mut names: Vec<_> = reply.headers.keys().map(|name| name.as_str()).filter(|name| *name != "date").collect();
        names.sort();
        assert_eq!((names, reply.flags), (told, Flags::UNAUTHORIZED_EXTERNAL));
        assert_eq!(refused(verdict), (302, "go away".to_owned(), "ext_authz_denied".to_owned()));
    }
}

#[tokio::test]
async fn only_200_agrees_and_an_error_is_no_decision() {
    for (status, refusal) in [
        (201, (201, "ext_authz_denied")),
        (403, (403, "ext_authz_denied")),
        (500, (403, "ext_authz_error")),
        (503, (403, "ext_authz_error")),
    ] {
        let (reach, _) = provider(move |_| answer(status, &[], "")).await;
        let (status, _, details) =
            refused(world("envoyExtAuthzHttp", "port: 8000", reach, &[]).cart(get("/ask")).await.0);
        assert_eq!((status, &*details), refusal);
    }
}

#[tokio::test]
async fn an_answer_without_end_is_no_answer() {
    let (reach, _) = provider(|_| Response::builder().status(403).body(Full::from(vec![b'a'; 2 << 20])).unwrap()).await;
    let world = world("envoyExtAuthzHttp", "port: 8000", reach, &[]);
    assert_eq!(refused(world.cart(get("/ask")).await.0).2, "ext_authz_error");
}

#[tokio::test]
async fn a_body_is_shown_as_far_as_is_asked_for_and_goes_on_whole() {
    for (limit, partial, shown) in
        [(100, false, Some("0123456789")), (10, false, Some("0123456789")), (4, true, Some("0123")), (4, false, None)]
    {
        let (reach, asked) = provider(|_| answer(200, &[], "")).await;
        let body = format!(
            "port: 8000, includeRequestBodyInCheck: {{maxRequestBytes: {limit}, allowPartialMessage: {partial}}}"
        );
        let world = world("envoyExtAuthzHttp", &body, reach, &[]);
        let (verdict, body) = post(&world, "/ask", "0123456789").await;
        match shown {
            None => {
                assert_eq!(
                    refused(verdict),
                    (413, "Payload Too Large".to_owned(), "request_payload_too_large".to_owned())
                );
                assert!(asked.lock().unwrap().is_empty());
            }
            Some(shown) => {
                allowed(verdict);
                assert_eq!(asked.lock().unwrap()[0].body(), shown);
                assert_eq!(text(body).await, "0123456789");
            }
        }
    }
}
