//! Requests that providers decide about, on loopback.

mod grpc;
mod http;

use ::http::{HeaderMap, Request};
use bytes::Bytes;
use http_body_util::BodyExt as _;

use super::answer::Adding;
use super::*;
use crate::waypoint::gate::Verdict;
use crate::waypoint::gate::tests::reach::serve;
use crate::waypoint::gate::tests::{To, World, allowed, get, policy, refused};

/// The cart asks provider `opa`, which is these fields of an extension provider, about everything below `/ask`.
fn world(kind: &str, fields: &str, reach: To, policies: &[String]) -> World {
    let options = format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: culvert, namespace: istio-system}}\ndata:\n  mesh: |\n    \
         extensionProviders: [{{name: opa, {kind}: {{service: opa.shop.svc.cluster.local, {fields}}}}}]\n"
    );
    let custom = policy("c", "action: CUSTOM, provider: {name: opa}, rules: [{to: [{operation: {paths: ['/ask*']}}]}]");
    World::new(&[&[options, custom], policies].concat(), reach)
}

/// What becomes of a request with a body.
async fn post(world: &World, path: &str, body: &'static str) -> (Verdict, Body) {
    let request = Request::post(format!("http://cart.shop{path}")).header("content-length", body.len());
    let (verdict, _, body) = world.ask("cart", request.body(Body::from(body)).unwrap()).await;
    (verdict, body)
}

async fn text(body: Body) -> Bytes {
    body.collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn a_provider_that_cannot_be_had_refuses_unless_it_is_open() {
    for (fields, status) in [
        ("port: 8000", Some(403)),
        ("port: 8000, statusOnError: '503'", Some(503)),
        ("port: 8000, failOpen: true", None),
    ] {
        for kind in ["envoyExtAuthzHttp", "envoyExtAuthzGrpc"] {
            let world = world(kind, fields, To::nowhere(), &[]);
            let (verdict, _) = world.cart(get("/ask")).await;
            match status {
                None => drop(allowed(verdict)),
                Some(status) => assert_eq!(
                    refused(verdict),
                    (status, String::new(), "ext_authz_error".to_owned()),
                    "{kind} {fields}"
                ),
            }
            allowed(world.cart(get("/other")).await.0);
        }
    }
}

#[tokio::test]
async fn a_provider_that_is_not_there_refuses_even_if_it_is_open() {
    let world = world("envoyExtAuthzHttp", "port: 1, failOpen: true", To::nowhere(), &[]);
    assert_eq!(refused(world.cart(get("/ask")).await.0).0, 403);
}

#[tokio::test]
async fn a_provider_that_takes_too_long_has_not_agreed() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reach = To::one(8000, silent.local_addr().unwrap());
    let world = world("envoyExtAuthzHttp", "port: 8000, timeout: 50ms", reach, &[]);
    assert_eq!(refused(world.cart(get("/ask")).await.0), (403, String::new(), "ext_authz_error".to_owned()));
}

#[test]
fn what_says_where_a_message_ends_is_not_for_providers_to_change() {
    let (mut head, ()) = Request::post("http://a/p?x=1&y=2&x=3")
        .header("content-length", "5")
        .header("x-old", "1")
        .header("x-more", "1")
        .body(())
        .unwrap()
        .into_parts();
    let header = |name: &str, value: &str| (name.to_owned(), value.parse().unwrap());
    let changes = Changes {
        set: vec![
            header("content-length", "0"),
            header("transfer-encoding", "chunked"),
            header("connection", "upgrade"),
            header("x-new", "1"),
            header("x-new", "2"),
            header(":path", "/q?x=1&y=2&x=3"),
            header(":authority", "b"),
            header(":method", "CONNECT"),
            header(":scheme", "https"),
        ],
        append: vec![
            ("x-more".parse().unwrap(), "2".parse().unwrap()),
            ("x-none".parse().unwrap(), "2".parse().unwrap()),
        ],
        remove: vec!["x-old".parse().unwrap(), "content-length".parse().unwrap(), "host".parse().unwrap()],
        set_query: vec![("z".to_owned(), "4".to_owned())],
        remove_query: vec!["x".to_owned()],
        response: ResponseHeaders::default(),
    };
    changes.apply(&mut head, &mut ResponseHeaders::default());
    assert_eq!((head.method.as_str(), head.uri.to_string().as_str()), ("POST", "http://b/q?y=2&z=4"));
    let headers: Vec<_> =
        head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    assert_eq!(headers.len(), 5, "{headers:?}");
    for expected in ["content-length: 5", "x-new: 1", "x-new: 2", "x-more: 1", "x-more: 2"] {
        assert!(headers.iter().any(|header| header == expected), "{expected}: {headers:?}");
    }
}

#[test]
fn the_client_is_told_as_the_provider_has_it() {
    let mut headers: HeaderMap = [("a", "1"), ("b", "1"), ("d", "1")]
        .map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap()))
        .into_iter()
        .collect();
    let add = |name: &str, adding| (name.parse().unwrap(), "2".parse().unwrap(), adding);
    let told = ResponseHeaders(vec![
        add("a", Adding::Append),
        add("b", Adding::IfAbsent),
        add("c", Adding::IfAbsent),
        add("d", Adding::IfPresent),
        add("e", Adding::IfPresent),
        add("content-length", Adding::Set),
    ]);
    told.apply(&mut headers);
    let mut found: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
    found.sort();
    assert_eq!(found, ["a=1", "a=2", "b=1", "c=2", "d=2"]);
}

#[test]
fn an_answer_that_changes_without_end_is_no_answer() {
    let changes = Changes { remove_query: vec![String::new(); 257], ..Changes::default() };
    assert!(Answer::Agreed(changes).bounded().is_err());
}
