//! How endpoints are spoken to: the protocol of requests, tunnels, and what is sent ahead.

use culvert_core::hbone::h2::Request as Connect;
use http_body_util::Empty;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::hbone::handshake;
use crate::hbone::local::{Unanswered, offer};
use crate::hbone::tunnel::{Accept, Accepted, ResponseHeaders, Role, Tunnel};
use crate::proxy::live::Flow;

#[test]
fn the_declared_protocol_is_spoken_or_else_the_clients() {
    run(async {
        const CLIENTS: &str = "{connectionPool: {http: {useClientProtocol: true}}}";
        const UPGRADE: &str = "{connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}";
        for (protocol, policy, of_http1, of_http2) in [
            ("HTTP", "{loadBalancer: {}}", false, false),
            ("HTTP2", "{loadBalancer: {}}", true, true),
            ("GRPC", "{loadBalancer: {}}", true, true),
            ("''", "{loadBalancer: {}}", false, true),
            ("HTTP", CLIENTS, false, true),
            ("GRPC", CLIENTS, false, true),
            ("HTTP", UPGRADE, true, true),
        ] {
            let server = "127.0.0.1:1".parse().unwrap();
            let scene = Scene::new(&both(service(protocol, &[server]), rule(policy))).await;
            let is_http2 = |version| scene.cluster().select(client(), version).unwrap().is_http2();
            let found = (is_http2(Version::HTTP_11), is_http2(Version::HTTP_2));
            assert_eq!(found, (of_http1, of_http2), "{protocol} {policy}");
        }
    });
}

#[test]
fn a_request_has_the_form_of_the_endpoints_protocol_whatever_form_it_came_in() {
    run(async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let server = Server::start(http2).await;
            let scene = Scene::new(&service(protocol, &[server.at])).await;
            let absolute =
                Request::get("http://cart.example/x?y").version(Version::HTTP_2).body(Body::empty()).unwrap();
            for request in [absolute, get("/x?y")] {
                text(scene.select().unwrap().send(request).await.unwrap()).await;
            }
            for head in server.heads.lock().unwrap().iter() {
                let host = head.headers.get("host").map(|host| host.to_str().unwrap());
                let expected = match http2 {
                    false => (Version::HTTP_11, "/x?y", Some(HOST)),
                    true => (Version::HTTP_2, "http://cart.example/x?y", None),
                };
                assert_eq!((head.version, head.uri.to_string().as_str(), host), expected);
            }
        }
    });
}

#[test]
fn bodies_go_both_ways_and_a_place_is_kept_until_the_end() {
    run(async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let server = Server::start(http2).await;
            let scene = Scene::new(&service(protocol, &[server.at])).await;
            let sent = "x".repeat(1_000_000);
            let request = Request::post("/echo").header("host", HOST).body(Body::from(sent.clone())).unwrap();
            let response = scene.select().unwrap().send(request).await.unwrap();
            assert_eq!(scene.metric("envoy_cluster_upstream_rq_active"), 1);
            assert!(text(response).await == sent);
            scene.until("envoy_cluster_upstream_rq_active", 0).await;
            scene.get().await.unwrap();
            assert_eq!(server.connections(), 1);
        }
    });
}

#[test]
fn an_upgraded_connection_is_bytes_and_keeps_its_place() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut io, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _ = io.read(&mut head).await.unwrap();
            io.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
                .await
                .unwrap();
            let (mut read, mut write) = io.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let scene = Scene::new(&service("HTTP", &[at])).await;
        let request = Request::get("/").header("host", HOST).header("connection", "upgrade").header("upgrade", "echo");
        let lease = scene.select().unwrap();
        let mut response = lease.send(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 101);
        let mut upgraded = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        drop(response);
        upgraded.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        upgraded.read_exact(&mut answer).await.unwrap();
        assert_eq!((&answer, scene.metric("envoy_cluster_upstream_rq_active")), (b"ping", 1));
        drop(upgraded);
        scene.until("envoy_cluster_upstream_rq_active", 0).await;
        scene.until("envoy_cluster_upstream_cx_active", 0).await;
    });
}

#[test]
fn what_is_no_http_is_told_apart_from_a_connection_that_ends() {
    run(async {
        for (answer, flag, status) in [("nonsense\r\n\r\n", "UPE", 502), ("", "UC", 503)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            tokio::spawn(async move {
                let (mut io, _) = listener.accept().await.unwrap();
                let _ = io.read(&mut [0; 1024]).await.unwrap();
                io.write_all(answer.as_bytes()).await.unwrap();
            });
            let scene = Scene::new(&service("HTTP", &[at])).await;
            let error = scene.get().await.unwrap_err();
            assert_eq!((error.flag(), error.status()), (flag, status), "{error}");
        }
    });
}

#[test]
fn the_proxy_protocol_is_sent_ahead_and_connections_are_then_for_one_client() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (heard, mut ahead) = unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    line.push(io.read_u8().await.unwrap());
                }
                heard.send(String::from_utf8(line).unwrap()).unwrap();
                let answer = service_fn(|_: Request<Incoming>| async {
                    Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), answer));
            }
        });
        let limits = "{proxyProtocol: {version: V1}, connectionPool: {tcp: {maxConnections: 1}}}";
        let scene = Scene::new(&both(service("HTTP", &[at]), rule(limits))).await;
        for address in ["10.1.1.1:4000", "10.1.1.1:4000", "10.1.1.2:5000"] {
            let selection = Selection::first(address.parse().unwrap(), "240.0.0.1:80".parse().unwrap(), None);
            let lease = scene.cluster().select(selection, Version::HTTP_11).unwrap();
            text(lease.send(get("/")).await.unwrap()).await;
        }
        assert_eq!(ahead.recv().await.unwrap(), "PROXY TCP4 10.1.1.1 240.0.0.1 4000 80\r\n");
        // The one connection that there may be was given up for another client.
        assert_eq!(ahead.recv().await.unwrap(), "PROXY TCP4 10.1.1.2 240.0.0.1 5000 80\r\n");
        assert!(ahead.try_recv().is_err());
    });
}

/// A node's end of tunnels, whose streams end in a server of HTTP.
struct Node {
    asked: UnboundedReceiver<Connect>,
}

struct Hand(tokio::sync::mpsc::UnboundedSender<Unanswered>);

impl Accept for Hand {
    fn accept(&self, request: Connect) -> Accepted {
        let (unanswered, end) = offer(request);
        self.0.send(unanswered).unwrap();
        Accepted::Serve { end, flow: Flow::unlisted() }
    }
}

impl Node {
    /// At an address of its own, as the workload `cart` of `scene`. Streams to port 403 are refused.
    async fn start(scene: &Scene, at: IpAddr) -> Self {
        let identity = Identity::new("cluster.local", "shop", "cart");
        let certificate = scene.certificates.fetch(&identity).await.unwrap();
        let listener = TcpListener::bind((at, 15008)).await.unwrap();
        let ((to, mut unanswered), (tell, asked)) = (unbounded_channel(), unbounded_channel());
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let established = handshake::accept(io, certificate.server.clone()).await.unwrap();
                let role = Role::Server(Arc::new(Hand(to.clone())));
                let (tunnel, _) = Tunnel::new(established, role, 200, &Buffers::new(usize::MAX));
                tokio::spawn(async { drop(tunnel.await) });
            }
        });
        tokio::spawn(async move {
            while let Some(unanswered) = unanswered.recv().await {
                let request: &Connect = Unanswered::request(&unanswered);
                tell.send(request.clone()).unwrap();
                if request.authority.as_deref().is_some_and(|authority| authority.ends_with(":403")) {
                    unanswered.refuse(401);
                    continue;
                }
                let io = TokioIo::new(unanswered.accept(ResponseHeaders::new()));
                let answer = service_fn(|_: Request<Incoming>| async {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"tunnelled"))))
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, answer));
            }
        });
        Self { asked }
    }
}

/// A service of one workload of the mesh.
fn tunnelled(at: IpAddr, port: u16, account: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: cart, namespace: shop}}\n\
         spec: {{hosts: [{HOST}], addresses: [240.0.0.1], resolution: STATIC, workloadSelector: {{labels: {{app: cart}}}}, \
         ports: [{{number: 80, name: web, protocol: HTTP, targetPort: {port}}}]}}\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: cart-1, namespace: shop, \
         annotations: {{ambient.istio.io/redirection: enabled}}}}\n\
         spec: {{address: {at}, serviceAccount: {account}, labels: {{app: cart}}}}\n"
    )
}

#[test]
fn a_workload_of_the_mesh_is_reached_through_its_own_agent_as_the_waypoint() {
    run(async {
        let at = own_loopback();
        let scene = Scene::new(&tunnelled(at, 8080, "cart")).await;
        let mut node = Node::start(&scene, at).await;
        for _ in 0..3 {
            assert_eq!(scene.get().await.unwrap(), "tunnelled");
        }
        let asked = node.asked.recv().await.unwrap();
        assert_eq!(asked.authority.as_deref(), Some(&*format!("{at}:8080")));
        assert_eq!(asked.headers.get("forwarded"), Some("for=\"10.1.1.1:4000\";host=cart.example"));
        assert!(asked.headers.get("baggage").unwrap().contains("k8s.namespace.name=shop"));
        assert!(node.asked.try_recv().is_err(), "one stream carries them all");
    });
}

#[test]
fn a_stream_to_a_node_is_for_one_client_whom_it_names() {
    run(async {
        for limits in ["{loadBalancer: {}}", "{connectionPool: {tcp: {maxConnections: 1}}}"] {
            let at = own_loopback();
            let scene = Scene::new(&both(tunnelled(at, 8080, "cart"), rule(limits))).await;
            let mut node = Node::start(&scene, at).await;
            let [front, back] = ["front", "back"].map(|name| Arc::new(Identity::new("cluster.local", "shop", name)));
            for principal in [&front, &front, &back, &back, &front] {
                let selection = Selection { principal: Some(principal), ..client() };
                let lease = scene.cluster().select(selection, Version::HTTP_11).unwrap();
                assert_eq!(text(lease.send(get("/")).await.unwrap()).await, "tunnelled");
            }
            let mut named = || {
                let asked = node.asked.try_recv().ok()?;
                asked.headers.get("culvert-client-identity").map(ToOwned::to_owned)
            };
            assert_eq!((named(), named()), (Some(front.to_string()), Some(back.to_string())));
            // Both are kept, unless there may be one alone.
            assert_eq!(named(), limits.contains('1').then(|| front.to_string()), "{limits}");
        }
    });
}

#[test]
fn who_answers_for_a_workload_has_to_be_it() {
    run(async {
        let at = own_loopback();
        let scene = Scene::new(&tunnelled(at, 8080, "someone-else")).await;
        let mut node = Node::start(&scene, at).await;
        let error = scene.get().await.unwrap_err();
        assert!(error.flag() == "UF" && error.to_string().contains("expected the peer to be"), "{error}");
        assert!(node.asked.try_recv().is_err());
    });
}

#[test]
fn a_policy_at_the_destination_that_refuses_the_waypoint_is_named() {
    run(async {
        let at = own_loopback();
        let scene = Scene::new(&tunnelled(at, 403, "cart")).await;
        let _node = Node::start(&scene, at).await;
        let error = scene.get().await.unwrap_err();
        assert!(error.to_string().contains("a policy at the destination denies it"), "{error}");
    });
}
