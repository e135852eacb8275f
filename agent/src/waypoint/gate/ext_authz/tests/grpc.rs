//! Providers that speak gRPC, as tonic serves it.

use std::convert::Infallible;
use std::sync::Mutex;
use std::task::{Context, Poll};

use proptest::prelude::*;
use prost::Message as _;
use tonic::codegen::BoxFuture;
use tonic::server::{Grpc, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_prost::ProstCodec;
use tower::Service;

use super::super::proto::{
    BoolValue, CHECK, CheckRequest, CheckResponse, DeniedHttpResponse, Header, HeaderValueOption, HttpStatus,
    OkHttpResponse, QueryParameter, Status,
};
use super::*;

type Says = dyn Fn() -> Result<CheckResponse, tonic::Status> + Send + Sync;

/// `envoy.service.auth.v3.Authorization` that says the same to everybody.
#[derive(Clone)]
struct Provider {
    says: Arc<Says>,
    asked: Arc<Mutex<Vec<CheckRequest>>>,
}

impl Service<::http::Request<tonic::body::Body>> for Provider {
    type Response = ::http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: ::http::Request<tonic::body::Body>) -> Self::Future {
        assert_eq!(request.uri().path(), CHECK);
        assert!(request.headers().contains_key("grpc-timeout"));
        let this = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::default()).unary(this, request).await) })
    }
}

impl UnaryService<CheckRequest> for Provider {
    type Response = CheckResponse;
    type Future = BoxFuture<tonic::Response<CheckResponse>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<CheckRequest>) -> Self::Future {
        self.asked.lock().unwrap().push(request.into_inner());
        let said = (self.says)();
        Box::pin(async move { said.map(tonic::Response::new) })
    }
}

async fn provider(
    says: impl Fn() -> Result<CheckResponse, tonic::Status> + Send + Sync + 'static,
) -> (To, Arc<Mutex<Vec<CheckRequest>>>) {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = incoming.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let provider = Provider { says: Arc::new(says), asked: asked.clone() };
    tokio::spawn(async move { Server::builder().serve_with_incoming(provider, incoming).await.unwrap() });
    (To::one(9000, address), asked)
}

fn option(name: &str, value: &str, append: Option<bool>, action: i32) -> HeaderValueOption {
    let header = Header { key: name.to_owned(), value: value.to_owned(), raw_value: Bytes::new() };
    HeaderValueOption { header: Some(header), append: append.map(|value| BoolValue { value }), append_action: action }
}

fn ok(response: OkHttpResponse) -> CheckResponse {
    CheckResponse { status: Some(Status { code: 0 }), denied_response: None, ok_response: Some(response) }
}

#[tokio::test]
async fn a_provider_is_told_who_asks_for_what() {
    let (reach, asked) = provider(|| Ok(ok(OkHttpResponse::default()))).await;
    let fields = "port: 9000, includeRequestBodyInCheck: {maxRequestBytes: 4, allowPartialMessage: true}";
    let world = world("envoyExtAuthzGrpc", fields, reach, &[]);
    let (verdict, body) = post(&world, "/ask/./a?b=c", "0123456789").await;
    allowed(verdict);
    assert_eq!(text(body).await, "0123456789");
    let asked = asked.lock().unwrap()[0].attributes.clone().unwrap();
    let address = |peer: &super::super::proto::Peer| {
        let socket = peer.address.clone().unwrap().socket_address.unwrap();
        format!("{}:{} {}", socket.address, socket.port_value.unwrap(), peer.principal)
    };
    assert_eq!(address(&asked.source.unwrap()), "10.0.0.1:4000 spiffe://cluster.local/ns/shop/sa/front");
    assert_eq!(address(&asked.destination.unwrap()), "10.96.0.1:80 spiffe://cluster.local/ns/shop/sa/wp");
    let request = asked.request.unwrap();
    assert_eq!(request.time.unwrap().seconds, crate::waypoint::gate::tests::NOW as i64);
    let http = request.http.unwrap();
    assert_eq!((&*http.method, &*http.path, &*http.host, &*http.scheme), ("POST", "/ask/a?b=c", "cart.shop", "http"));
    assert_eq!((http.size, &*http.protocol, &*http.body), (10, "HTTP/1.1", "0123"));
    let header = |name: &str| http.headers.get(name).map(String::as_str);
    assert_eq!((header(":path"), header("content-length")), (Some("/ask/a?b=c"), Some("10")));
    assert_eq!(header("x-envoy-auth-partial-body"), Some("true"));
}

#[tokio::test]
async fn an_agreeing_answer_changes_the_request_and_what_the_client_is_told() {
    let (reach, _) = provider(|| {
        Ok(ok(OkHttpResponse {
            headers: vec![
                option("x-user", "alice", None, 0),
                option("x-more", "2", Some(true), 0),
                option(":path", "/ask/../new?a=1&b=2", Some(false), 0),
            ],
            headers_to_remove: vec!["x-secret".to_owned(), ":path".to_owned()],
            response_headers_to_add: vec![option("x-seen", "1", None, 1)],
            query_parameters_to_set: vec![QueryParameter { key: "c".to_owned(), value: "3".to_owned() }],
            query_parameters_to_remove: vec!["a".to_owned()],
        }))
    })
    .await;
    let world = world("envoyExtAuthzGrpc", "port: 9000", reach, &[]);
    let (verdict, head) =
        world.cart(get("/ask").header("x-more", "1").header("x-secret", "1").header("x-user", "eve")).await;
    let allowed = allowed(verdict);
    assert!(!allowed.reroute);
    assert_eq!(head.uri.to_string(), "http://cart.shop/new?b=2&c=3");
    let all = |name: &str| head.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!((all("x-user"), all("x-more"), all("x-secret")), (vec!["alice"], vec!["1", "2"], vec![]));
    let mut answered = HeaderMap::new();
    allowed.response.unwrap().apply(&mut answered);
    assert_eq!(answered["x-seen"], "1");
}

#[tokio::test]
async fn a_refusing_answer_is_the_clients_and_without_one_it_is_403() {
    let (reach, _) = provider(|| {
        let denied = DeniedHttpResponse {
            status: Some(HttpStatus { code: 429 }),
            headers: vec![option("retry-after", "7", None, 0), option("content-length", "0", None, 0)],
            body: "slowly".to_owned(),
        };
        Ok(CheckResponse { status: Some(Status { code: 7 }), denied_response: Some(denied), ok_response: None })
    })
    .await;
    let (verdict, _) = world("envoyExtAuthzGrpc", "port: 9000", reach, &[]).cart(get("/ask")).await;
    let Verdict::Deny(reply) = &verdict else { panic!("{verdict:?}") };
    assert_eq!((reply.headers.len(), &reply.headers["retry-after"]), (1, &"7".parse().unwrap()));
    assert_eq!(reply.flags, Flags::UNAUTHORIZED_EXTERNAL);
    assert_eq!(refused(verdict), (429, "slowly".to_owned(), "ext_authz_denied".to_owned()));
    for status in [Some(Status { code: 16 }), None] {
        let (reach, _) =
            provider(move || Ok(CheckResponse { status: status.clone(), ..CheckResponse::default() })).await;
        let (verdict, _) = world("envoyExtAuthzGrpc", "port: 9000", reach, &[]).cart(get("/ask")).await;
        assert_eq!(refused(verdict).0, 403);
    }
}

#[tokio::test]
async fn an_error_of_grpc_or_a_header_that_is_none_is_no_decision() {
    let (reach, _) = provider(|| Err(tonic::Status::unavailable("busy"))).await;
    let (verdict, _) = world("envoyExtAuthzGrpc", "port: 9000, statusOnError: 503", reach, &[]).cart(get("/ask")).await;
    assert_eq!(refused(verdict), (503, String::new(), "ext_authz_error".to_owned()));
    for bad in [option("x-a", "1\r\nx-b: 2", None, 0), option("x-a", "1", Some(true), 0)] {
        let (reach, _) = provider(move || {
            let mut bad = bad.clone();
            if let Some(header) = bad.header.as_mut().filter(|_| bad.append.is_some()) {
                header.key = "a b".to_owned();
            }
            Ok(ok(OkHttpResponse { headers: vec![bad], ..OkHttpResponse::default() }))
        })
        .await;
        let (verdict, _) = world("envoyExtAuthzGrpc", "port: 9000", reach, &[]).cart(get("/ask")).await;
        assert_eq!(refused(verdict).2, "ext_authz_error");
    }
}

#[test]
fn messages_have_the_bytes_that_envoy_gives_them() {
    // `ok_response` with one header, as protoc encodes it: fields 3, 2, 1, 1 and 2.
    let header = [&[0x0a, 3][..], b"x-a", &[0x12, 1], b"1"].concat();
    let option = [&[0x0a, header.len() as u8][..], &header, &[0x12, 2, 0x08, 1, 0x18, 3]].concat();
    let ok = [&[0x12, option.len() as u8][..], &option, &[0x2a, 1], b"r", &[0x42, 1], b"q"].concat();
    let bytes = [&[0x0a, 0][..], &[0x1a, ok.len() as u8], &ok].concat();
    let read = CheckResponse::decode(&*bytes).unwrap();
    let response = read.ok_response.unwrap();
    assert_eq!(
        (response.headers_to_remove, response.query_parameters_to_remove),
        (vec!["r".to_owned()], vec!["q".to_owned()])
    );
    assert_eq!(response.headers, [super::grpc::option("x-a", "1", Some(true), 3)]);
    assert_eq!(read.status.unwrap().code, 0);
    let sni = super::super::proto::TlsSession { sni: "s".to_owned() };
    let attributes = super::super::proto::AttributeContext { tls_session: Some(sni), ..Default::default() };
    let request = CheckRequest { attributes: Some(attributes) };
    assert_eq!(request.encode_to_vec(), [0x0a, 5, 0x62, 3, 0x0a, 1, b's']);
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

/// A request like any, after what the provider has made of it.
fn changed(data: &[u8]) -> Option<Parts> {
    let request = Request::post("http://cart.shop/ask?a=b").header("content-length", "5").header("x-user", "eve");
    let (mut head, ()) = request.body(()).unwrap().into_parts();
    match super::super::grpc::parse(data).and_then(Answer::bounded).ok()? {
        Answer::Agreed(changes) => changes.apply(&mut head, &mut ResponseHeaders::default()),
        Answer::Refused(reply) => assert!((200..600).contains(&reply.status.as_u16())),
    }
    Some(head)
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        changed(&bytes);
        changed(&framed(&bytes));
    }

    #[test]
    fn whatever_a_provider_says_a_request_stays_one_request(
        headers in proptest::collection::vec(
            ("(:path|:authority|:method|host|content-length|transfer-encoding|connection|x-user|[a-z -]{0,8})",
             "[/a-z0-9 ,?#%\\r\\n]{0,12}", any::<Option<bool>>()), 0..8),
        remove in proptest::collection::vec("(host|content-length|:path|x-user|[a-z ]{0,6})", 0..4),
        query in proptest::collection::vec(("[a-z=&# ]{0,4}", "[a-z&#? ]{0,4}"), 0..4),
    ) {
        let headers = headers.iter().map(|(name, value, append)| option(name, value, *append, 0)).collect();
        let query = query.into_iter().map(|(key, value)| QueryParameter { key, value }).collect();
        let response = OkHttpResponse {
            headers, headers_to_remove: remove, query_parameters_to_set: query, ..OkHttpResponse::default()
        };
        if let Some(head) = changed(&framed(&ok(response).encode_to_vec())) {
            let lengths: Vec<_> = head.headers.get_all("content-length").iter().collect();
            prop_assert_eq!(lengths, ["5"]);
            prop_assert!(!head.headers.contains_key("transfer-encoding") && !head.headers.contains_key("connection"));
            prop_assert!(head.uri.path().starts_with('/') && head.uri.authority().is_some());
        }
    }
}
