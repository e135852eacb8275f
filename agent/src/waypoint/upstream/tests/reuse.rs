//! Connections that carry one request after the other.

use super::*;

#[test]
fn one_request_after_the_other_goes_over_one_connection() {
    run(async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let server = Server::start(http2).await;
            let scene = Scene::new(&service(protocol, &[server.at])).await;
            for _ in 0..5 {
                assert_eq!(scene.get().await.unwrap(), server.at.port().to_string());
            }
            assert_eq!((server.connections(), server.requests()), (1, 5), "{protocol}");
            assert_eq!(
                (scene.metric("envoy_cluster_upstream_cx_active"), scene.metric("envoy_cluster_upstream_rq_active")),
                (1, 0)
            );
        }
    });
}

#[test]
fn requests_at_a_time_share_a_connection_in_http_2_and_not_in_http_1() {
    run(async {
        for (protocol, http2, connections) in [("HTTP", false, 8), ("HTTP2", true, 1)] {
            let server = Server::start(http2).await;
            let scene = Scene::new(&service(protocol, &[server.at])).await;
            let asked: Vec<_> = (0..8).map(|_| scene.select().unwrap().send(get("/wait"))).collect();
            let asked: Vec<_> = asked.into_iter().map(tokio::spawn).collect();
            server.until_requests(8).await;
            assert_eq!((server.connections(), scene.metric("envoy_cluster_upstream_rq_active")), (connections, 8));
            server.gate.add_permits(8);
            for asked in asked {
                text(asked.await.unwrap().unwrap()).await;
            }
            scene.until("envoy_cluster_upstream_rq_active", 0).await;
        }
    });
}

#[test]
fn a_body_that_is_dropped_gives_its_place_back_and_so_does_a_request() {
    run(async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let server = Server::start(http2).await;
            let scene = Scene::new(&service(protocol, &[server.at])).await;
            let response = scene.select().unwrap().send(get("/")).await.unwrap();
            let request = tokio::spawn(scene.select().unwrap().send(get("/wait")));
            server.until_requests(2).await;
            assert_eq!(scene.metric("envoy_cluster_upstream_rq_active"), 2);
            drop(response);
            request.abort();
            scene.until("envoy_cluster_upstream_rq_active", 0).await;
            drop(scene.select().unwrap());
            assert_eq!(scene.metric("envoy_cluster_upstream_rq_active"), 0);
            assert_eq!(scene.metric("envoy_cluster_upstream_rq_pending_active"), 0);
            scene.get().await.unwrap();
        }
    });
}

#[test]
fn a_kept_connection_that_the_endpoint_has_closed_costs_no_request() {
    run(async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let server = Server::start(http2).await;
            let scene = Scene::new(&service(protocol, &[server.at])).await;
            for _ in 0..5 {
                scene.get().await.unwrap();
                // It has its connection before that is closed.
                let lease = scene.select().unwrap();
                server.cut();
                scene.until("envoy_cluster_upstream_cx_active", 0).await;
                assert_eq!(text(lease.send(get("/")).await.unwrap()).await, server.at.port().to_string());
            }
        }
    });
}

#[test]
fn a_request_that_may_have_been_sent_is_not_sent_again() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&service("HTTP", &[server.at])).await;
        scene.get().await.unwrap();
        let asked = tokio::spawn(scene.select().unwrap().send(get("/wait")));
        server.until_requests(2).await;
        server.cut();
        let error = asked.await.unwrap().unwrap_err();
        assert!(matches!(error, SendError::Reset { request_sent: true, .. }) && error.flag() == "UC", "{error}");
        assert_eq!(server.requests(), 2);
    });
}

#[test]
fn a_lease_that_is_not_made_use_of_gives_its_connection_back() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&service("HTTP", &[server.at])).await;
        scene.get().await.unwrap();
        drop(scene.select().unwrap());
        scene.get().await.unwrap();
        assert_eq!(server.connections(), 1);
    });
}

#[test]
fn an_endpoint_that_says_so_is_asked_over_another_connection() {
    run(async {
        let server = Server::start(false).await;
        let scene = Scene::new(&service("HTTP", &[server.at])).await;
        for _ in 0..3 {
            let response = scene.select().unwrap().send(get("/close")).await.unwrap();
            text(response).await;
        }
        assert_eq!(server.connections(), 3);
        scene.until("envoy_cluster_upstream_cx_active", 0).await;
    });
}

#[test]
fn a_connection_carries_as_many_requests_as_it_may() {
    run(async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let server = Server::start(http2).await;
            let rule = rule("{connectionPool: {http: {maxRequestsPerConnection: 2}}}");
            let scene = Scene::new(&both(service(protocol, &[server.at]), rule)).await;
            for _ in 0..6 {
                scene.get().await.unwrap();
            }
            assert_eq!((server.connections(), server.requests()), (3, 6), "{protocol}");
        }
    });
}

/// Connections before and after so many seconds.
fn timed(policy: &'static str, protocol: &'static str, http2: bool, seconds: u64) -> (usize, usize) {
    run_within(DAY, async {
        let server = Server::start(http2).await;
        let scene = Scene::new(&both(service(protocol, &[server.at]), rule(policy))).await;
        scene.get().await.unwrap();
        scene.get().await.unwrap();
        let before = server.connections();
        later(seconds).await;
        scene.get().await.unwrap();
        (before, server.connections())
    })
}

#[test]
fn a_connection_that_was_idle_for_too_long_or_is_too_old_is_not_used_again() {
    const IDLE: &str = "{connectionPool: {http: {idleTimeout: 90s}}}";
    const OLD: &str = "{connectionPool: {tcp: {maxConnectionDuration: 90s}}}";
    for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
        for policy in [IDLE, OLD] {
            assert_eq!(timed(policy, protocol, http2, 80), (1, 1), "{protocol} {policy}");
            assert_eq!(timed(policy, protocol, http2, 91), (1, 2), "{protocol} {policy}");
        }
    }
}

#[test]
fn nobody_has_to_ask_for_an_idle_connection_to_be_closed_in_time() {
    run_within(DAY, async {
        for (protocol, http2) in [("HTTP", false), ("HTTP2", true)] {
            let server = Server::start(http2).await;
            let policy = rule("{connectionPool: {http: {idleTimeout: 90s}}}");
            let scene = Scene::new(&both(service(protocol, &[server.at]), policy)).await;
            scene.get().await.unwrap();
            later(91).await;
            scene.until("envoy_cluster_upstream_cx_active", 0).await;
        }
    });
}
