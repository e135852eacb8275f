//! Limits: what is beyond one is refused at once, and every place comes back.

use culvert_core::traffic::policy::Overflow;

use super::*;

/// The policy with these limits.
fn limited(tcp: &str, http: &str) -> String {
    rule(&format!("{{connectionPool: {{tcp: {{{tcp}}}, http: {{{http}}}}}}}"))
}

#[test]
fn requests_beyond_the_connections_wait_and_those_beyond_these_are_refused_at_once() {
    run(async {
        let server = Server::start(false).await;
        let limits = limited("maxConnections: 1", "http1MaxPendingRequests: 1");
        let scene = Scene::new(&both(service("HTTP", &[server.at]), limits)).await;
        let first = tokio::spawn(scene.select().unwrap().send(get("/wait")));
        server.until_requests(1).await;
        let second = tokio::spawn(scene.select().unwrap().send(get("/")));
        tokio::task::yield_now().await;
        assert_eq!(scene.metric("envoy_cluster_upstream_rq_pending_active"), 1);
        assert_eq!(scene.select().err(), Some(Refused::Overflow(Overflow::Pending)));
        assert_eq!(scene.metric("envoy_cluster_upstream_rq_pending_overflow"), 1);
        assert!(scene.metric("envoy_cluster_upstream_cx_overflow") > 0);
        // The one who waits gets the connection when the other is done with it.
        server.gate.add_permits(1);
        text(first.await.unwrap().unwrap()).await;
        text(second.await.unwrap().unwrap()).await;
        assert_eq!((server.connections(), server.requests()), (1, 2));
        assert_eq!(scene.metric("envoy_cluster_upstream_rq_pending_active"), 0);
    });
}

#[test]
fn who_waits_for_a_connection_that_breaks_off_gets_another() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&both(service("HTTP", &[server.at]), limited("maxConnections: 1", ""))).await;
        let first = tokio::spawn(scene.select().unwrap().send(get("/wait")));
        server.until_requests(1).await;
        let second = tokio::spawn(scene.select().unwrap().send(get("/")));
        tokio::task::yield_now().await;
        server.cut();
        assert!(matches!(first.await.unwrap(), Err(SendError::Reset { request_sent: true, .. })));
        text(second.await.unwrap().unwrap()).await;
        assert_eq!(server.connections(), 2);
    });
}

#[test]
fn who_waits_and_goes_away_leaves_the_connection_to_the_next() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&both(service("HTTP", &[server.at]), limited("maxConnections: 1", ""))).await;
        let first = tokio::spawn(scene.select().unwrap().send(get("/wait")));
        server.until_requests(1).await;
        let gone = tokio::spawn(scene.select().unwrap().send(get("/")));
        let third = tokio::spawn(scene.select().unwrap().send(get("/")));
        tokio::task::yield_now().await;
        gone.abort();
        server.gate.add_permits(1);
        text(first.await.unwrap().unwrap()).await;
        text(third.await.unwrap().unwrap()).await;
        assert_eq!((server.connections(), scene.metric("envoy_cluster_upstream_rq_pending_active")), (1, 0));
    });
}

#[test]
fn there_are_no_more_requests_at_a_time_than_there_may_be() {
    run(async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let server = Server::start(http2).await;
            let limits = limited("", "http2MaxRequests: 2");
            let scene = Scene::new(&both(service(protocol, &[server.at]), limits)).await;
            let asked: Vec<_> = (0..2).map(|_| tokio::spawn(scene.select().unwrap().send(get("/wait")))).collect();
            server.until_requests(2).await;
            assert_eq!(scene.select().err(), Some(Refused::Overflow(Overflow::Requests)));
            server.gate.add_permits(2);
            for asked in asked {
                text(asked.await.unwrap().unwrap()).await;
            }
            scene.get().await.unwrap();
            assert_eq!(scene.metric("envoy_cluster_upstream_rq_pending_overflow"), 1);
        }
    });
}

#[test]
fn retries_keep_within_their_number_or_their_budget() {
    run(async {
        let server = Server::start(false).await;
        for policy in
            ["{connectionPool: {http: {maxRetries: 1}}}", "{retryBudget: {percent: 20, minRetryConcurrency: 1}}"]
        {
            let scene = Scene::new(&both(service("HTTP", &[server.at]), rule(policy))).await;
            let retry = Selection { is_retry: true, ..client() };
            let first = scene.cluster().select(retry, Version::HTTP_11).unwrap();
            let second = scene.cluster().select(retry, Version::HTTP_11);
            assert_eq!(second.err(), Some(Refused::Overflow(Overflow::Retries)), "{policy}");
            drop(first);
            drop(scene.cluster().select(retry, Version::HTTP_11).unwrap());
            assert_eq!(scene.metric("envoy_cluster_upstream_rq_retry_overflow"), 1);
        }
    });
}

#[test]
fn an_http_2_connection_carries_as_many_requests_as_either_side_allows() {
    run(async {
        for (allowed, limits) in [(2, ""), (100, "maxConcurrentStreams: 2")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let server = Server::serve(listener, true, allowed);
            let scene = Scene::new(&both(service("HTTP2", &[server.at]), limited("", limits))).await;
            // What the endpoint allows is known once it has spoken.
            scene.get().await.unwrap();
            let asked: Vec<_> = (0..4).map(|_| tokio::spawn(scene.select().unwrap().send(get("/wait")))).collect();
            server.until_requests(5).await;
            assert_eq!(server.connections(), 2, "{allowed}");
            server.gate.add_permits(4);
            for asked in asked {
                text(asked.await.unwrap().unwrap()).await;
            }
        }
    });
}

#[test]
fn in_http_2_too_requests_wait_for_a_place_on_the_only_connection() {
    run(async {
        let server = Server::start(true).await;
        let limits = limited("maxConnections: 1", "maxConcurrentStreams: 1, http1MaxPendingRequests: 1");
        let scene = Scene::new(&both(service("HTTP2", &[server.at]), limits)).await;
        let first = tokio::spawn(scene.select().unwrap().send(get("/wait")));
        server.until_requests(1).await;
        let second = tokio::spawn(scene.select().unwrap().send(get("/")));
        tokio::task::yield_now().await;
        assert_eq!(scene.select().err(), Some(Refused::Overflow(Overflow::Pending)));
        server.gate.add_permits(1);
        text(first.await.unwrap().unwrap()).await;
        text(second.await.unwrap().unwrap()).await;
        assert_eq!(server.connections(), 1);
    });
}

#[test]
fn connections_that_carry_no_requests_keep_within_their_number() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&both(service("TCP", &[server.at]), limited("maxConnections: 1", ""))).await;
        let lease = scene.cluster().select_connection(client()).unwrap();
        let refused = || scene.cluster().select_connection(client()).err();
        assert_eq!(refused(), Some(Refused::Overflow(Overflow::Connections)));
        let stream = lease.connect().await.unwrap();
        assert_eq!(refused(), Some(Refused::Overflow(Overflow::Connections)));
        drop(stream);
        assert_eq!(refused(), None);
        assert_eq!(scene.metric("envoy_cluster_upstream_cx_overflow"), 2);
        assert_eq!(scene.metric("envoy_cluster_upstream_cx_active"), 0);
    });
}

#[test]
fn everybody_who_waits_for_an_endpoint_that_cannot_be_reached_is_told() {
    run(async {
        for protocol in ["HTTP", "HTTP2"] {
            let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            let limits = limited("maxConnections: 1", "");
            let scene = Scene::new(&both(service(protocol, &[free]), limits)).await;
            let asked: Vec<_> = (0..20).map(|_| tokio::spawn(scene.select().unwrap().send(get("/")))).collect();
            for asked in asked {
                let error = asked.await.unwrap().unwrap_err();
                assert!(matches!(&error, SendError::Connect(failure) if !failure.timed_out), "{error}");
                assert!(error.flag() == "UF" && error.to_string().contains(&free.to_string()), "{error}");
            }
            assert!(scene.metric("envoy_cluster_upstream_cx_connect_fail") > 0);
            assert_eq!(scene.metric("envoy_cluster_upstream_cx_active"), 0);
        }
    });
}

#[test]
fn a_connection_that_takes_too_long_is_given_up() {
    run(async {
        // Its queue is full, so that the kernel answers nobody.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let full = socket.local_addr().unwrap().as_socket().unwrap();
        let _queued: Vec<_> = (0..2).map(|_| std::net::TcpStream::connect_timeout(&full, LIMIT / 40)).collect();
        let scene = Scene::new(&both(service("HTTP", &[full]), limited("connectTimeout: 50ms", ""))).await;
        let error = scene.get().await.unwrap_err();
        assert!(matches!(&error, SendError::Connect(failure) if failure.timed_out), "{error}");
        assert_eq!(scene.metric("envoy_cluster_upstream_cx_connect_timeout"), 1);
    });
}
